"""Files of a run are damaged or lost: both sides go back to the newest state that they still share."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adc_edge.storage.checkpoint import checkpoint_steps
from tests.chaos.run import Run, compare
from tests.chaos.zygote import Zygote

pytestmark = pytest.mark.slow
STEPS = 60


@pytest.fixture
def killed(
    zygote: Zygote, bundle_dir: Path, tmp_path: Path, free_port: Callable[[], int]
) -> tuple[Run, dict[str, Any]]:
    """A run whose two processes were killed after their checkpoints of steps 21 and 28, and the undisturbed outcome."""
    expected = Run(zygote, bundle_dir, tmp_path / "undisturbed", free_port(), STEPS).undisturbed()
    run = Run(zygote, bundle_dir, tmp_path / "run", free_port(), STEPS)
    trainer, device = run.trainer(), run.device(run.endpoint)
    run.reach(30)
    for child in (trainer, device):
        child.signal(signal.SIGKILL)
        child.wait(10)
    for side in (run.device_dir, run.trainer_dir):  # they may have come a little further
        for step in checkpoint_steps(side)[:-2]:
            checkpoint(side, step).unlink()
    return run, expected


def checkpoint(side: Path, step: int) -> Path:
    return side / f"checkpoint-{step:08d}.safetensors"


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def ends_like(run: Run, expected: dict[str, Any]) -> None:
    trainer, device = run.trainer(), run.device(run.endpoint)
    assert device.wait(60) == 0, run.logs()
    assert trainer.wait(20) == 0, run.logs()
    compare(expected, run.outcome())


@pytest.mark.parametrize("torn", [("device_dir",), ("trainer_dir",), ("device_dir", "trainer_dir")])
def test_a_torn_newest_checkpoint_falls_back_to_the_one_before(
    killed: tuple[Run, dict[str, Any]], torn: tuple[str, ...]
) -> None:
    run, expected = killed
    for side in torn:
        tear(checkpoint(getattr(run, side), checkpoint_steps(getattr(run, side))[-1]))
    ends_like(run, expected)


def test_a_device_whose_journal_cannot_feed_the_trainer_goes_back_to_it(killed: tuple[Run, dict[str, Any]]) -> None:
    run, expected = killed
    older, newer = checkpoint_steps(run.trainer_dir)
    tear(checkpoint(run.trainer_dir, newer))
    tear(run.device_dir / "journal" / f"{older + 2:08d}-0")
    ends_like(run, expected)
    assert f"going back from step {checkpoint_steps_before(run)}" in (run.where / "device.log").read_text()


def checkpoint_steps_before(run: Run) -> str:
    """The step at which the device came back, from its log."""
    return (run.where / "device.log").read_text().rpartition("resuming")[2].split(" at step ")[1].split()[0]


def test_a_trainer_whose_log_cannot_answer_goes_back_to_the_device(killed: tuple[Run, dict[str, Any]]) -> None:
    run, expected = killed
    older, newer = checkpoint_steps(run.device_dir)
    tear(checkpoint(run.device_dir, newer))
    (log,) = (run.trainer_dir / "journal").iterdir()
    tear(log / f"{older + 2:08d}-0")
    ends_like(run, expected)
    assert "the log of answers is damaged: going back" in (run.where / "trainer.log").read_text()


def test_without_a_common_state_both_stop_with_a_remedy(killed: tuple[Run, dict[str, Any]]) -> None:
    run, _ = killed
    run.trainer_dir = run.where / "another"
    trainer, device = run.trainer(), run.device(run.endpoint)
    assert device.wait(20) == 1
    assert "the trainer stands at step 0" in device.output()
    assert "start the trainer with the --run directory it had" in device.output()
    trainer.signal(signal.SIGTERM)
    assert trainer.wait(10) == 0


def test_a_trainer_with_another_run_directory_costs_the_device_nothing(
    zygote: Zygote, bundle_dir: Path, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    run = Run(zygote, bundle_dir, tmp_path / "run", free_port(), STEPS)
    run.every = 1000
    trainer, device = run.trainer("--checkpoint-every", "5"), run.device(run.endpoint)
    run.reach(30)
    trainer.signal(signal.SIGKILL)
    trainer.wait(10)
    right, run.trainer_dir = run.trainer_dir, run.where / "wrong"
    trainer = run.trainer()
    assert device.wait(20) == 1
    assert "start the trainer with the --run directory it had" in device.output()
    stood = checkpoint_steps(run.device_dir)[-1]
    assert stood >= 30
    trainer.signal(signal.SIGTERM)
    assert trainer.wait(10) == 0
    run.trainer_dir = right
    trainer, device = run.trainer(), run.device(run.endpoint)
    assert device.wait(60) == 0, run.logs()
    assert trainer.wait(20) == 0, run.logs()
    assert f"at step {stood}" in device.output()


def test_with_all_checkpoints_damaged_it_stops_and_fresh_starts_over(killed: tuple[Run, dict[str, Any]]) -> None:
    run, expected = killed
    for side in (run.device_dir, run.trainer_dir):
        for step in checkpoint_steps(side):
            tear(checkpoint(side, step))
    for child in (run.trainer(), run.device(run.endpoint)):
        assert child.wait(20) == 1
        assert "start over in another --run" in child.output()
    trainer, device = run.trainer("--fresh"), run.device(run.endpoint, "--fresh")
    assert device.wait(60) == 0, run.logs()
    assert trainer.wait(20) == 0, run.logs()
    compare(expected, run.outcome())


def test_a_trainer_killed_before_its_first_checkpoint_is_fed_from_the_beginning(
    zygote: Zygote, bundle_dir: Path, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    expected = Run(zygote, bundle_dir, tmp_path / "undisturbed", free_port(), STEPS).undisturbed()
    run = Run(zygote, bundle_dir, tmp_path / "run", free_port(), STEPS)
    run.every = 1000
    trainer, device = run.trainer(), run.device(run.endpoint)
    run.reach(20)
    trainer.signal(signal.SIGKILL)
    trainer.wait(10)
    trainer = run.trainer()
    assert device.wait(60) == 0, run.logs()
    assert trainer.wait(20) == 0, run.logs()
    compare(expected, run.outcome())
    assert "the trainer came back at step 0" in device.output()
