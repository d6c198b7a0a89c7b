"""A fleet's trunk and its trainer's head make one timm checkpoint with a model card, which exports again."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors

from adc_edge.errors import BundleError, SettingError
from adc_edge.export.build import ExportSettings, export_bundle
from adc_edge.export.card.text import export_command
from adc_edge.export.card.writing import CARD
from adc_edge.export.merge import merge_runs
from adc_edge.method.ratio import Ratio
from adc_edge.storage.bundle import CLIENT, HEAD, TRUNK, Bundle
from adc_edge.storage.checkpoint import save_checkpoint
from adc_edge.storage.fleet_trunk import FleetTrunk, keep_fleet_trunk
from adc_edge.storage.halves import TRUNK_PREFIX, label_weights
from adc_edge.storage.run_dir import CLASSES
from tests.export.fleet_run import HALL, KITCHEN, FleetRun


def test_the_trunk_of_the_newest_round_joins_the_head_and_both_tell_what_they_have_learned(complete: FleetRun) -> None:
    merged, trunk, head = complete.merge()
    assert (merged.round, trunk, head) == (2, 2, 40)
    assert (merged.trunk, merged.head) == ({KITCHEN: 20, HALL: 20}, {KITCHEN: 20, HALL: 20})
    manifest = complete.bundle.manifest
    vit = timm.create_model(manifest.model, num_classes=manifest.classes, **manifest.model_args)
    vit.load_state_dict(load_tensors(complete.output), strict=True)
    lines = complete.typed("--no-card").output.splitlines()
    assert lines[:3] == [
        f"wrote {complete.output}: the fleet's trunk of round 2, and the head of step 40",
        "the trunk has learned 20 steps of kitchen, 20 steps of hall | <b>7</b>�[2J",
        "the head has learned 20 steps of kitchen, 20 steps of hall | <b>7</b>�[2J",
    ]


def test_a_head_may_be_ahead_of_the_trunk_and_not_behind_it(fleet: FleetRun) -> None:
    fleet.trunk(2, {KITCHEN: 20, HALL: 20})
    fleet.head({KITCHEN: 20, HALL: 13})
    refusal = fleet.refusal()
    assert f"the trunk of round 2 has learned 20 steps of session {HALL:016x}, and the head on disk 13" in refusal
    assert "start it again if it was killed" in refusal
    fleet.head({KITCHEN: 20, HALL: 25, 0xC: 3})
    assert fleet.merge()[0].head == {KITCHEN: 20, HALL: 25, 0xC: 3}


def test_a_head_of_other_devices_does_not_belong_to_the_trunk(fleet: FleetRun) -> None:
    fleet.trunk(2, {KITCHEN: 20, HALL: 20})
    fleet.head({0xC: 90})
    assert "(and less of 1 others)" in fleet.refusal()
    fleet.head({0xC: 90}, 90 + 40)  # it has learned 40 steps of sessions that gave way to newer ones
    assert fleet.merge()[1:] == (2, 130)


def test_a_run_without_a_common_trunk_is_refused_and_says_what_to_name(bundle: Bundle, tmp_path: Path) -> None:
    parallel = FleetRun(bundle, tmp_path, "parallel")
    assert "keeps no trained weights" in parallel.refusal()
    parallel.head({KITCHEN: 20})
    assert "each device has its own (--mode parallel)" in parallel.refusal()
    assert "--run-device DIR" in parallel.refusal()
    early = FleetRun(bundle, tmp_path / "early")
    early.head({KITCHEN: 5})
    assert "no round has closed yet (--mode averaged)" in early.refusal()
    for options in ({"best": True}, {"step": 3}):
        with pytest.raises(SettingError, match="without --run-device"):
            merge_runs(None, parallel.run, parallel.output, **options)


def test_a_devices_run_in_the_trainers_place_is_named(bundle: Bundle, tmp_path: Path) -> None:
    run = FleetRun(bundle, tmp_path)
    arrays = {TRUNK_PREFIX + name: value for name, value in run.at(TRUNK, 1).items()}
    save_checkpoint(run.run, 5, arrays, {"session": KITCHEN, "tally": {}})
    assert f"--run-trainer {run.run} is a device's run" in run.refusal()


def test_a_frozen_fleet_has_the_trunk_of_its_bundle_while_that_is_there(bundle: Bundle, tmp_path: Path) -> None:
    own = tmp_path / "bundle"
    shutil.copytree(bundle.path, own)
    fleet = FleetRun(Bundle.load(own, ()), tmp_path, "frozen")
    fleet.head({KITCHEN: 20})
    merged, _, head = fleet.merge()
    assert (merged.round, head) == (0, 20)
    assert np.array_equal(load_file(fleet.output)["cls_token"], load_file(own / TRUNK)["cls_token"])
    assert "the bundle's trunk, which no device trained, and the head of step 20" in fleet.typed("--no-card").output
    fleet.output.unlink()
    shutil.rmtree(own)
    assert "--run-device DIR" in fleet.refusal(BundleError)


@pytest.mark.slow
def test_the_merged_file_exports_again_with_the_command_of_its_card(complete: FleetRun, tmp_path: Path) -> None:
    (complete.run / CLASSES).write_text(json.dumps({"head": [f"c{n}" for n in range(10)]}))
    learned = {KITCHEN: 20, HALL: 20}
    weights = {name: np.float32(1.01) * value for name, value in load_file(complete.bundle.path / TRUNK).items()}
    keep_fleet_trunk(complete.run, FleetTrunk(3, weights, learned))
    (complete.run / HEAD).write_bytes(label_weights((complete.bundle.path / HEAD).read_bytes(), learned, 40))
    merged, *_ = complete.merge()
    command = shlex.split(export_command(merged, complete.output))
    assert command[:2] == ["adc-edge", "export"]
    options = dict(zip(command[2::2], command[3::2], strict=True))
    arguments = [value for name, value in zip(command[2::2], command[3::2], strict=True) if name == "--model-arg"]
    assert {text.partition("=")[0] for text in arguments} == set(complete.bundle.manifest.model_args)
    complete.typed()
    assert f"$ {shlex.join(command)}" in complete.output.with_name(CARD).read_text()
    settings = ExportSettings(
        options["--model"],
        int(options["--split"]),
        tmp_path / "again",
        Ratio(xi=0.4),
        batch_size=4,
        weights=complete.output,
        model_args={key: json.loads(value) for key, _, value in (text.partition("=") for text in arguments)},
        crop_pct=float(options["--crop-pct"]),
    )
    export_bundle(settings)
    again = Bundle.load(tmp_path / "again", (CLIENT, TRUNK, HEAD))
    assert again.manifest.class_names == [f"c{n}" for n in range(10)]
    assert again.manifest.trunk == complete.bundle.manifest.trunk
    assert again.manifest.preprocessing == complete.bundle.manifest.preprocessing
    for half in (TRUNK, HEAD):
        state = load_file(complete.output)
        assert all(np.array_equal(value, state[name]) for name, value in load_file(again.path / half).items())
