"""The model card beside a merged checkpoint: what it says is of these weights, and it never outlives them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from adc_edge.export.card import writing
from adc_edge.export.card.writing import CARD
from adc_edge.storage.bundle import HEAD, Bundle
from adc_edge.storage.run_dir import CLASSES, METRICS
from tests.export.fleet_run import HALL, KITCHEN, FleetRun


def results_of(fleet: FleetRun) -> Any:
    """The accuracies that the card tells programs."""
    data: Any = ModelCard(fleet.card).data
    return data.eval_results


def test_the_card_is_one_that_the_hub_reads_and_tells_the_whole_training(complete: FleetRun) -> None:
    (complete.run / CLASSES).write_text(json.dumps({"head": ["cat", *(f"c{n}" for n in range(9))]}))
    result = complete.typed("--license", "apache-2.0")
    assert f"wrote {complete.output.with_name(CARD)}, its model card" in result.output
    text = complete.output.with_name(CARD).read_text()
    data: Any = ModelCard(text).data
    assert (data.license, data.library_name, data.metrics) == ("apache-2.0", "timm", ["accuracy"])
    assert "split-learning" in data.tags
    assert data.eval_results[0].metric_value == pytest.approx(0.8125)
    number = json.loads((complete.run / "settings.json").read_text())["run"]
    for piece in (
        "Mode: averaged. The trunk (blocks 1 to 2) is the fleet's, of round 2.",
        f"| kitchen | `{KITCHEN:016x}` | 20 | 20 | 160 | 1 of 10 |",
        f"| hall \\| \\<b\\>7\\</b\\>\\\\x1b\\[2J | `{HALL:016x}` | 20 | 20 | 160 | not told |",
        f"trainer `{number}` (adc-edge 0.11.0)",
        "| kitchen | 20,000 | 6,000 |",
        "| all | 40,000 | 12,000 |",
        "| trunk changes, 2 rounds | 400 | 360 |",
        "| trainer's test images | 81.25% | 500 | 40, round 2 | 20",
        "| device kitchen | 75.00% | 60 | 20 | 20",
        "Classes, in the order of the outputs: cat, c0",
        "optimizer.lr 0.001",
        "mode averaged, every 10 steps",
        "strict=True",
    ):
        assert piece in text, piece
    assert str(complete.run) not in text
    assert str(complete.bundle.path) not in text


def test_a_card_never_takes_the_place_of_another_text(complete: FleetRun) -> None:
    card = complete.output.with_name(CARD)
    card.parent.mkdir()
    card.write_text("# My project\n")
    result = complete.typed()
    assert result.exit_code == 0
    assert f"no card: {card} stays as it is" in result.output
    assert card.read_text() == "# My project\n"
    card.unlink()
    assert "its model card" in complete.typed().output
    assert "in place of an older one" in complete.typed("--license", "mit").output
    assert 'license: "mit"' in card.read_text()
    card.write_text(card.read_text().replace("# vit", "# My vit"))
    assert "stays as it is" in complete.typed().output
    card.unlink()
    complete.typed("--no-card")
    assert not card.exists()


def test_a_licence_that_is_no_name_or_has_no_card_is_refused_before_the_merge(complete: FleetRun) -> None:
    for options in (("--license", "Apache 2.0\ntags: x"), ("--license", "mit", "--no-card")):
        result = complete.typed(*options)
        assert result.exit_code == 2, result.output
        assert "--license" in result.output
        assert not complete.output.exists()


def test_a_devices_trunk_in_parallel_mode_has_a_card_with_what_the_head_learned_of_others(
    bundle: Bundle, tmp_path: Path
) -> None:
    fleet = FleetRun(bundle, tmp_path, "parallel")
    fleet.head({KITCHEN: 20, HALL: 17})
    result = fleet.typed("--run-device", str(fleet.device(tmp_path / "device")))
    assert result.exit_code == 0, result.output
    assert "the head has also learned 17 steps of other sessions" in result.output
    text = fleet.card
    assert "is that of one device, at its step 20." in text
    assert f"| `{HALL:016x}` | its own | 17 |" in text
    assert "data folder:photos" in text
    assert "someone" not in text
    assert METRICS not in text


def test_a_devices_bytes_are_those_up_to_the_step_that_was_merged(bundle: Bundle, tmp_path: Path) -> None:
    fleet = FleetRun(bundle, tmp_path, "parallel")
    fleet.head({KITCHEN: 20, HALL: 17})
    fleet.typed("--run-device", str(fleet.device(tmp_path / "device")))
    counted = f"{20 * 500 + 21 * 40 + 90:,} bytes up and {20 * 70 + 21 * 4 + 9:,} bytes down"
    assert f"The named device counted {counted} at its socket up to step 20" in fleet.card


def test_in_a_common_trunk_the_others_steps_are_there_through_the_fleet(complete: FleetRun, tmp_path: Path) -> None:
    complete.typed("--run-device", str(complete.device(tmp_path / "device")))
    assert f"`{KITCHEN:016x}` | 20 | 20 |" in complete.card
    assert f"`{HALL:016x}` | through the fleet | 20 |" in complete.card
    assert results_of(complete) is None  # the trainer has judged the fleet's trunk


def test_a_frozen_devices_trunk_is_the_bundles(bundle: Bundle, tmp_path: Path) -> None:
    fleet = FleetRun(bundle, tmp_path, "frozen")
    fleet.head({KITCHEN: 20, HALL: 20})
    fleet.typed("--run-device", str(fleet.device(tmp_path / "device", frozen=True)))
    assert "The trunk (blocks 1 to 2) is the bundle's, which no device trained." in fleet.card
    for session in (KITCHEN, HALL):
        assert f"`{session:016x}` | 0 | 20 |" in fleet.card


@pytest.mark.parametrize(("number", "steps"), [(1, 40), (2, 39), (2, 41)])
def test_an_accuracy_of_other_weights_is_none_for_programs(complete: FleetRun, number: int, steps: int) -> None:
    metrics = complete.run / METRICS
    line = '"source": "central"'
    kept = [one for one in metrics.read_text().splitlines() if line not in one]
    told = {"kind": "evaluation", "source": "central", "images": 500, "accuracy": 0.5, "loss": 1.0}
    metrics.write_text("\n".join([*kept, json.dumps(told | {"step": steps, "head_step": steps, "round": number}), ""]))
    complete.typed()
    assert results_of(complete) is None
    assert ("| trainer's test images | 50.00% |" in complete.card) == (steps <= 40)


def test_the_head_of_forgotten_sessions_counts_all_its_steps(complete: FleetRun) -> None:
    complete.head({HALL: 20}, 40)
    complete.typed()
    results = results_of(complete)
    assert results[0].metric_value == pytest.approx(0.8125)


def test_the_data_have_the_name_of_their_directory(complete: FleetRun, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for split in ("train", "test"):
        for label in range(10):
            place = photos / split / str(label)
            place.mkdir(parents=True)
            Image.new("RGB", (8, 8), (20 * label, 0, 0)).save(place / "one.png")
    result = complete.typed("--data", f"folder:{photos}")
    assert result.exit_code == 0, result.output
    results = results_of(complete)
    assert (results[0].dataset_name, results[0].dataset_type) == ("photos", "folder")
    assert "| this file, test split of folder:photos |" in complete.card
    assert str(tmp_path) not in complete.card


def test_no_card_of_older_weights_lies_beside_new_ones(complete: FleetRun, monkeypatch: pytest.MonkeyPatch) -> None:
    card = complete.output.with_name(CARD)
    complete.typed()
    assert f"deleted {card}" in complete.typed("--no-card").output
    assert not card.exists()
    complete.typed()
    (complete.run / HEAD).unlink()
    refused = complete.typed()
    assert refused.exit_code != 0
    assert card.exists()  # and so are its weights
    complete.complete()
    monkeypatch.setattr(writing, "write_card", lambda *_: sys.exit(9))  # as if killed in between
    assert complete.typed().exit_code == 9
    assert complete.output.exists()
    assert not card.exists()
