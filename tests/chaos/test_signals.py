"""SIGTERM and Ctrl-C: both sides end the step, make a checkpoint and exit within 5 s; the run resumes.

The exit code is 0 after SIGTERM, and 130 if Ctrl-C has left work undone, so that `serve && merge` stops.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.run import Run, compare
from tests.chaos.zygote import Child, Zygote

pytestmark = [pytest.mark.slow, pytest.mark.timed]
STEPS = 60


@pytest.fixture
def new_run(zygote: Zygote, bundle_dir: Path, tmp_path: Path, free_port: Callable[[], int]) -> Callable[[str], Run]:
    return lambda name: Run(zygote, bundle_dir, tmp_path / name, free_port(), STEPS)


def ends_well(child: Child, number: int) -> None:
    start = time.monotonic()
    assert child.signal(number)
    assert child.wait(20) == (130 if number == signal.SIGINT else 0), child.output()
    assert "type the same command to go on" in child.output()
    assert time.monotonic() - start < 5
    assert "Traceback" not in child.output()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_either_side_ends_within_five_seconds_and_the_run_ends_as_if_undisturbed(
    new_run: Callable[[str], Run], number: int
) -> None:
    reference, run = new_run("reference"), new_run("run")
    trainer, device = run.trainer(), run.device(run.endpoint)
    run.reach(10)
    ends_well(device, number)  # in the middle of its work
    ends_well(trainer, number)  # without a device
    device = run.device(run.endpoint)
    time.sleep(0.3)
    ends_well(device, number)  # while it waits for its trainer
    trainer, device = run.trainer(), run.device(run.endpoint)
    run.reach(25)
    ends_well(trainer, number)  # in the middle of its work
    ends_well(device, number)  # while it waits for a trainer that went away
    trainer, device = run.trainer(), run.device(run.endpoint)
    assert device.wait(60) == 0, run.logs()
    assert trainer.wait(20) == 0, run.logs()
    compare(reference.undisturbed(), run.outcome())


def test_a_second_ctrl_c_ends_it_at_once_and_the_run_resumes_all_the_same(new_run: Callable[[str], Run]) -> None:
    run = new_run("run")
    trainer, device = run.trainer(), run.device(run.endpoint)
    run.reach(10)
    for child in (device, trainer):
        for _ in range(2):
            child.signal(signal.SIGINT)
        assert child.wait(5) in (130, -signal.SIGINT)
    trainer, device = run.trainer(), run.device(run.endpoint)
    assert device.wait(60) == 0, run.logs()
    assert trainer.wait(20) == 0, run.logs()


def test_a_run_that_is_done_can_be_started_again_on_both_sides(new_run: Callable[[str], Run]) -> None:
    run = new_run("run")
    run.undisturbed()
    device = run.zygote.start(
        "serve", "--bundle", run.bundle, "--run", run.device_dir, "--trainer", run.endpoint, "--wait", "0.5",
        "--steps", str(STEPS), "--eval-every", "50", "--eval-images", "48", "--threads", "1", "--lr", "1e-3",
        "--clip-norm", "1", log=run.where / "again.log",
    )  # fmt: skip
    assert device.wait(20) == 0, device.output()  # nothing is lost by it
    trainer = run.trainer()
    assert trainer.wait(20) == 0
    assert "devices are done already" in trainer.output()
    assert "stopped after 60 steps" in trainer.output()
