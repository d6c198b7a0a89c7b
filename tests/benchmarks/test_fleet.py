"""The benchmark of many devices: it counts every step once, and its figures are what their names say."""

from __future__ import annotations

import json
from pathlib import Path

import fleet
import fleet_devices
import fleet_trainer
import pytest
from fleet_recording import Model
from harness import Result

TINY = Model(
    "vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "embed_dim": 32, "num_heads": 2, "depth": 2}, 1, 4
)


def lines_of(run: Path, *steps: tuple[str, int]) -> None:
    run.mkdir()
    lines = [{"kind": "step", "session": session, "step": step} for session, step in steps]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"kind": "evaluation", "session": "a", "step": 1}])
    (run / "metrics.jsonl").write_text(text + '{"kind": "step", "session": "b", "st')  # being written


def test_a_step_that_was_lost_or_counted_twice_is_found(tmp_path: Path) -> None:
    lines_of(tmp_path / "run", ("a", 0), ("a", 1), ("a", 1), ("b", 1))
    assert fleet_trainer.counting(tmp_path / "run", {"a": 2, "b": 2}) == (1, 1)
    assert fleet_trainer.counting(tmp_path / "run", {"a": 2, "b": 0}) == (0, 1)


def test_rates_are_from_the_first_end_of_a_step_to_the_last() -> None:
    assert fleet_devices.rate_of([[[1.0, 3.0], [2.0, 4.0]]]) == 1.0
    assert fleet_devices.rate_of([[[1.0], []]]) == 0.0
    assert fleet_devices.paces_of([[[[1.0, 3.0], [2.0]]], [[[7.0, 8.0, 9.0], [8.0, 12.0]]]]) == [[3 / 4, 1 / 4]]


def results_of(*more: str) -> dict[str, Result]:
    args = fleet.options().parse_args(["--devices", "2", "--precisions", "fp32", "--seconds", "0.3", *more])
    return {result.name: result for result in fleet.measure(TINY, args)[1]}


@pytest.mark.slow
def test_two_replaying_devices_at_a_real_trainer_do_their_steps_once() -> None:
    results = results_of("--turns", "1")
    assert [name.partition(": ")[2].split()[0] for name in results] == ["steps", "fastest", "processor", "the"]
    assert all(result.value > 0 < result.reference for result in results.values())


@pytest.mark.slow
def test_every_step_counts_once_after_the_trainer_was_killed() -> None:
    (counted,) = results_of("--kills", "1", "--killed-steps", "6").values()
    assert counted.value == counted.reference == 12.0
