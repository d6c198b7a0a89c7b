"""`merge` joins a trunk and a head that have learned together, or refuses; it never makes another model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import timm
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save
from safetensors.torch import load_file as load_tensors

from adc_edge.cli import main
from adc_edge.data.sources import load_dataset
from adc_edge.errors import CheckpointError, DataError, SettingError
from adc_edge.export.merge import Merged, merge_runs
from adc_edge.storage.bundle import HEAD, MANIFEST, TRUNK, Bundle
from adc_edge.storage.checkpoint import checkpoint_name, save_checkpoint
from adc_edge.storage.halves import BEST_TRUNK, FROZEN_FROM, HEAD_PREFIX, TRUNK_PREFIX, best_head_name, label_weights
from adc_edge.storage.run_dir import CLASSES, METRICS

OURS, THEIRS = 7, 8  # sessions


class Halves:
    """The run directories of a device and of its trainer; weights tell the step that they are of."""

    def __init__(self, bundle: Bundle, where: Path) -> None:
        self.bundle, self.device, self.trainer = bundle, where / "device", where / "trainer"
        self.output = where / "model.safetensors"
        for run in (self.device, self.trainer):
            run.mkdir()
            shutil.copy(bundle.path / MANIFEST, run)

    def _at(self, half: str, mark: float) -> dict[str, npt.NDArray[Any]]:
        return {name: np.full_like(value, mark) for name, value in load_file(self.bundle.path / half).items()}

    def trunk_checkpoint(self, step: int, session: int = OURS, frozen: bool = False) -> None:
        arrays = {} if frozen else {TRUNK_PREFIX + name: value for name, value in self._at(TRUNK, step).items()}
        save_checkpoint(self.device, step, arrays, {"session": session, "tally": {}})

    def trunk_end(self, step: int, session: int = OURS) -> None:
        self.trunk_checkpoint(step, session)
        (self.device / TRUNK).write_bytes(label_weights(save(self._at(TRUNK, step)), {session: step}, step))

    def head_checkpoint(self, learned: Mapping[int, int]) -> None:
        total = sum(learned.values())
        records = {str(s): {"device": "orin", "owner": "", "applied": n, "finished": False} for s, n in learned.items()}
        arrays = {HEAD_PREFIX + name: value for name, value in self._at(HEAD, total).items()}
        save_checkpoint(self.trainer, total, arrays, {"sessions": records})

    def head_end(self, learned: Mapping[int, int]) -> None:
        self.head_checkpoint(learned)
        total = sum(learned.values())
        (self.trainer / HEAD).write_bytes(label_weights(save(self._at(HEAD, total)), learned, total))

    def best(self, trunk: int | None, *heads: int, session: int = OURS, frozen: bool = False) -> None:
        if trunk is not None:
            weights = save({} if frozen else self._at(TRUNK, trunk))
            (self.device / BEST_TRUNK).write_bytes(label_weights(weights, {OURS: trunk}, trunk, frozen, trunk / 100))
        for step in heads:
            learned = {session: step, 9: 5}  # another device trains the same head
            weights = label_weights(save(self._at(HEAD, step)), learned, step + 5)
            (self.trainer / best_head_name(session, step)).write_bytes(weights)

    def merge_best(self) -> tuple[Merged, float, float]:
        merged = merge_runs(self.device, self.trainer, self.output, best=True)
        state = load_tensors(self.output)
        return merged, float(state["cls_token"].mean()), float(state["head.weight"].mean())

    def best_refusal(self) -> str:
        with pytest.raises(CheckpointError) as error:
            merge_runs(self.device, self.trainer, self.output, best=True)
        assert not self.output.exists()
        return str(error.value)

    def merge(self, step: int | None = None) -> tuple[float, float]:
        """The marks of the two halves that were merged: the trunk's step, and all steps of the head."""
        merge_runs(self.device, self.trainer, self.output, step)
        state = load_tensors(self.output)
        manifest = self.bundle.manifest
        vit = timm.create_model(manifest.model, num_classes=manifest.classes, **manifest.model_args)
        vit.load_state_dict(state, strict=True)
        assert all(
            bool((state[name] == state["cls_token"][0, 0, 0]).all()) for name in load_file(self.bundle.path / TRUNK)
        )
        return float(state["cls_token"].mean()), float(state["head.weight"].mean())

    def refusal(self, step: int | None = None) -> str:
        with pytest.raises(CheckpointError) as error:
            merge_runs(self.device, self.trainer, self.output, step)
        assert not self.output.exists()
        return str(error.value)


@pytest.fixture
def halves(bundle: Bundle, tmp_path: Path) -> Halves:
    return Halves(bundle, tmp_path)


def test_two_runs_that_came_to_their_end(halves: Halves) -> None:
    halves.trunk_end(60)
    halves.head_end({OURS: 60})
    assert halves.merge() == (60, 60)


def test_a_trainer_that_was_stopped_resumed_and_is_still_running_gives_its_newest_head(halves: Halves) -> None:
    halves.head_end({OURS: 24})
    halves.trunk_end(60)
    halves.head_checkpoint({OURS: 60})  # of the device's end; head.safetensors is still of step 24
    assert halves.merge() == (60, 60)


def test_a_running_trainer_that_has_kept_less_than_the_device_is_refused(halves: Halves) -> None:
    halves.head_end({OURS: 20})
    halves.trunk_checkpoint(20)
    halves.trunk_end(34)
    refusal = halves.refusal()
    assert "trunk stands at step 34, the trainer's head at step 20" in refusal
    assert "type --step 20" in refusal
    assert halves.merge(step=20) == (20, 20)


def test_step_24_does_not_join_step_25(halves: Halves) -> None:
    halves.trunk_end(24)
    halves.head_end({OURS: 25})
    refusal = halves.refusal()
    assert "step 24" in refusal
    assert "step 25" in refusal
    assert "--step" not in refusal  # no step is kept by both


def test_two_killed_processes_are_merged_at_the_step_that_both_have_kept(halves: Halves) -> None:
    for step in (10, 20):
        halves.trunk_checkpoint(step)
        halves.head_checkpoint({OURS: step})
    assert halves.merge() == (20, 20)
    assert halves.merge(step=10) == (10, 10)


def test_a_step_that_is_not_kept_is_refused_with_those_that_are(halves: Halves) -> None:
    for step in (10, 20):
        halves.trunk_checkpoint(step)
        halves.head_checkpoint({OURS: step})
    assert "the trunk is kept at step 10, 20, the head at step 10, 20" in halves.refusal(step=15)


def test_a_killed_trainer_and_a_device_that_ended_are_refused_or_merged_at_a_common_step(halves: Halves) -> None:
    for step in (40, 50):
        halves.trunk_checkpoint(step)
        halves.head_checkpoint({OURS: step})
    halves.trunk_end(52)
    assert "type --step 50" in halves.refusal()
    assert halves.merge(step=50) == (50, 50)


def test_a_trunk_and_a_head_that_never_trained_together_are_refused(halves: Halves) -> None:
    halves.trunk_end(60)
    halves.head_end({THEIRS: 60})
    assert "has never trained with this trunk" in halves.refusal()
    assert "has never trained with this trunk" in halves.refusal(step=60)


def test_a_head_that_other_devices_went_on_to_train_is_merged_as_it_is_now(halves: Halves) -> None:
    halves.trunk_end(60)
    halves.head_checkpoint({OURS: 60, THEIRS: 10})
    halves.head_end({OURS: 60, THEIRS: 40})
    assert halves.merge() == (60, 100)
    assert merge_runs(halves.device, halves.trainer, halves.device / "again").other_steps == 40


def test_a_head_that_learned_on_after_the_end_is_newer_than_its_final_weights(halves: Halves) -> None:
    halves.trunk_end(60)
    halves.head_end({OURS: 60})
    halves.head_checkpoint({OURS: 60, THEIRS: 30})
    assert halves.merge() == (60, 90)


def test_final_weights_alone_are_enough(halves: Halves) -> None:
    halves.trunk_end(60)
    halves.head_end({OURS: 60})
    (halves.device / checkpoint_name(60)).unlink()
    (halves.trainer / checkpoint_name(60)).unlink()
    assert halves.merge() == (60, 60)


def test_final_weights_of_version_0_6_say_nothing_and_the_checkpoints_decide(halves: Halves) -> None:
    halves.trunk_checkpoint(60)
    halves.head_checkpoint({OURS: 60})
    for run, half in ((halves.device, TRUNK), (halves.trainer, HEAD)):
        (run / half).write_bytes(save(halves._at(half, 1)))
    assert halves.merge() == (60, 60)


def test_a_torn_newest_checkpoint_is_passed_over(halves: Halves) -> None:
    for step in (10, 20):
        halves.trunk_checkpoint(step)
        halves.head_checkpoint({OURS: step})
    torn = halves.trainer / checkpoint_name(20)
    torn.write_bytes(torn.read_bytes()[:100])
    assert "type --step 10" in halves.refusal()
    assert halves.merge(step=10) == (10, 10)


def test_a_frozen_trunk_fits_every_step_of_its_session(halves: Halves) -> None:
    halves.trunk_checkpoint(24, frozen=True)
    (halves.device / TRUNK).write_bytes(label_weights(save(halves._at(TRUNK, 0)), {OURS: 24}, 24, frozen=True))
    halves.head_end({OURS: 25})
    assert halves.merge() == (0, 25)
    halves.head_end({THEIRS: 26})
    (halves.trainer / checkpoint_name(25)).unlink()
    (halves.device.parent / "model.safetensors").unlink()
    assert "has never trained with this trunk" in halves.refusal()


def test_a_trunk_that_froze_on_the_way_fits_every_head_since_then(halves: Halves) -> None:
    """It learned for 24 steps, and stood at step 30 when all was sent; the trainer went on to step 60."""
    halves.trunk_checkpoint(20)
    trunk = {TRUNK_PREFIX + name: value for name, value in halves._at(TRUNK, 24).items()}
    save_checkpoint(halves.device, 30, trunk, {"session": OURS, "tally": {}, FROZEN_FROM: 24})
    halves.head_end({OURS: 60})
    assert halves.merge() == (24, 60)
    (halves.device / TRUNK).write_bytes(label_weights(save(halves._at(TRUNK, 24)), {OURS: 24}, 24, final=True))
    assert halves.merge() == (24, 60)
    for path in (halves.output, *halves.trainer.glob("*.safetensors")):
        path.unlink()
    halves.head_end({OURS: 23})
    assert "trunk stands at step 24, the trainer's head at step 23" in halves.refusal()
    halves.head_checkpoint({OURS: 20})
    assert halves.merge(step=20) == (20, 20)


@pytest.mark.parametrize("side", ["device", "trainer"])
def test_a_run_without_weights_is_refused(halves: Halves, side: str) -> None:
    halves.trunk_end(60) if side == "trainer" else halves.head_end({OURS: 60})
    assert "keeps no trained weights" in halves.refusal()


def test_runs_of_different_bundles_are_refused(halves: Halves) -> None:
    halves.trunk_end(60)
    halves.head_end({OURS: 60})
    manifest = halves.trainer / MANIFEST
    manifest.write_text(manifest.read_text().replace('"batch_size": 16', '"batch_size": 8'))
    assert "runs of different bundles" in halves.refusal()


def test_the_best_halves_are_merged_whatever_the_run_has_learned_since(halves: Halves) -> None:
    halves.trunk_end(60)
    halves.head_end({OURS: 60})
    halves.best(40, 20, 40)  # the trainer keeps the head before as well
    merged, trunk, head = halves.merge_best()
    assert (merged.step, merged.accuracy, merged.other_steps, trunk, head) == (40, 0.4, 5, 40, 40)
    assert halves.merge() == (60, 60)


def test_a_device_killed_before_it_kept_its_newest_best_half_gives_the_pair_before(halves: Halves) -> None:
    halves.best(20, 20, 40)
    assert halves.merge_best()[1:] == (20, 20)


def test_best_halves_of_different_steps_or_sessions_are_refused(halves: Halves) -> None:
    halves.trunk_end(60)
    halves.head_end({OURS: 60})
    assert "keeps no halves of a best evaluation" in halves.best_refusal()
    assert "leave --best out" in halves.best_refusal()
    halves.best(40)
    assert f"keeps no best head of session {OURS:016x}" in halves.best_refusal()
    halves.best(None, 40, session=THEIRS)  # the same step of another device on this head
    assert f"keeps no best head of session {OURS:016x}" in halves.best_refusal()
    halves.best(None, 30, 50)
    refusal = halves.best_refusal()
    assert "the trunk of step 40" in refusal
    assert "best heads of step 30, 50" in refusal


def test_the_best_of_a_frozen_trunk_has_the_weights_that_the_run_ends_with(halves: Halves) -> None:
    halves.best(40, 40, frozen=True)
    assert str(halves.device / TRUNK) in halves.best_refusal()
    (halves.device / TRUNK).write_bytes(label_weights(save(halves._at(TRUNK, 0)), {OURS: 60}, 60, frozen=True))
    assert halves.merge_best()[1:] == (0, 40)


def test_the_best_step_and_another_step_at_once_are_refused(halves: Halves) -> None:
    with pytest.raises(SettingError, match="--best and --step 3"):
        merge_runs(halves.device, halves.trainer, halves.output, 3, best=True)


def test_two_runs_in_each_others_place_are_to_be_swapped(halves: Halves) -> None:
    halves.trunk_end(60)
    halves.head_end({OURS: 60})
    halves.device, halves.trainer = halves.trainer, halves.device
    refusal = halves.refusal()
    assert (
        f"--run-device {halves.device} is a trainer's run, and --run-trainer {halves.trainer} is a device's" in refusal
    )
    assert "swap the two directories" in refusal


def test_one_run_in_both_places_is_named_as_what_it_is(halves: Halves) -> None:
    halves.trunk_end(60)
    halves.head_checkpoint({OURS: 60})
    device, trainer = halves.device, halves.trainer
    halves.device = trainer
    assert f"--run-device {trainer} is a trainer's run" in halves.refusal()
    halves.device = halves.trainer = device
    assert f"--run-trainer {device} is a device's run" in halves.refusal()


def test_a_killed_device_and_a_trainer_at_its_end_are_merged_at_a_common_step_or_refused(halves: Halves) -> None:
    for step in (10, 20):
        halves.trunk_checkpoint(step)
        halves.head_checkpoint({OURS: step})
    halves.head_end({OURS: 23})
    (halves.trainer / checkpoint_name(10)).unlink(missing_ok=True)
    refusal = halves.refusal()
    assert "trunk stands at step 20, the trainer's head at step 23" in refusal
    assert "type --step 20" in refusal
    assert halves.merge(step=20) == (20, 20)
    halves.trunk_end(23)  # the same command again
    assert halves.merge() == (23, 23)


def test_a_running_trainer_with_an_old_head_file_is_refused_until_it_has_kept_the_devices_end(halves: Halves) -> None:
    halves.head_end({OURS: 24})
    halves.trunk_end(60)
    halves.head_checkpoint({OURS: 50})
    assert "trunk stands at step 60, the trainer's head at step 50" in halves.refusal()
    halves.head_checkpoint({OURS: 60})
    assert halves.merge() == (60, 60)


def test_each_of_two_devices_of_one_trainer_gives_its_own_trunk(halves: Halves, tmp_path: Path) -> None:
    halves.trunk_end(60)
    halves.head_end({OURS: 60, THEIRS: 40})
    assert halves.merge() == (60, 100)
    shutil.rmtree(halves.device)
    halves.device.mkdir()
    shutil.copy(halves.bundle.path / MANIFEST, halves.device)
    halves.trunk_end(40, THEIRS)
    assert halves.merge() == (40, 100)
    halves.trunk_end(41, THEIRS)
    (tmp_path / "model.safetensors").unlink()
    assert "trunk stands at step 41, the trainer's head at step 40" in halves.refusal()


def test_a_session_that_began_anew_does_not_join_the_head_of_the_old_one(halves: Halves) -> None:
    halves.trunk_end(20, THEIRS)  # `serve --fresh`, not yet known to the head that is on disk
    halves.head_checkpoint({OURS: 20})
    assert "has never trained with this trunk" in halves.refusal()


def judged(halves: Halves, head: list[str] | None = None) -> Merged:
    """Merge and judge on the digits; weights that are all equal always answer with the first output."""
    halves.trunk_end(60)
    halves.head_end({OURS: 60})
    if head is not None:
        (halves.trainer / CLASSES).write_bytes(msgspec.json.encode({"head": head}))
    return merge_runs(halves.device, halves.trainer, halves.output, None, load_dataset("digits"))


@pytest.mark.parametrize("names", [None, list("7012345689")])
def test_the_merged_model_is_judged_on_the_test_split_with_its_classes_by_name(
    halves: Halves, names: list[str] | None
) -> None:
    labels = load_dataset("digits").test.labels
    first = 0 if names is None else int(names[0])
    assert judged(halves, names).score == ((labels == first).sum(), 360)


def test_data_with_a_class_that_the_head_lacks_writes_nothing(halves: Halves) -> None:
    with pytest.raises(DataError, match="that the head lacks: 9"):
        judged(halves, ["cat", *"012345678"])
    assert not halves.output.exists()


def test_the_devices_own_last_evaluation_stands_beside_the_accuracy(halves: Halves) -> None:
    lines = [
        {"kind": "evaluation", "step": step, "images": 200, "accuracy": accuracy, "loss": 1.0}
        for step, accuracy in ((30, 0.2), (60, 0.38), (90, 0.9))
    ]
    text = "\n".join(map(json.dumps, [{"kind": "step", "step": 1}, *lines])) + "\n{torn"
    (halves.device / METRICS).write_text(text)
    assert judged(halves).measured == (60, 200, 0.38)
    halves.trunk_checkpoint(40)
    halves.head_checkpoint({OURS: 40})
    assert merge_runs(halves.device, halves.trainer, halves.output, 40).measured == (30, 200, 0.2)


def typed(halves: Halves, *more: str) -> Result:
    runs = ["--run-device", str(halves.device), "--run-trainer", str(halves.trainer)]
    return CliRunner().invoke(main, ["merge", *runs, "-o", str(halves.output), *more])


def test_the_command_prints_the_accuracy_and_a_wrong_source_writes_nothing(halves: Halves, tmp_path: Path) -> None:
    halves.trunk_end(60)
    halves.head_end({OURS: 60})
    (halves.device / METRICS).write_text('{"kind": "evaluation", "step": 50, "images": 200, "accuracy": 0.38}\n')
    for source in (f"folder:{tmp_path / 'nowhere'}", "digit"):
        result = typed(halves, "--data", source)
        assert result.exit_code == 2, result.output
        assert not halves.output.exists()
    zeros = int((load_dataset("digits").test.labels == 0).sum())
    result = typed(halves, "--data", "digits")
    assert result.exit_code == 0, result.output
    assert f"{zeros} of 360 test images, accuracy {100 * zeros / 360:.1f} %" in result.output
    assert "the device last measured 38.0 % of 200 test images at step 50" in result.output
