"""A disk that is full or read-only: the run logs it, keeps the last good state, and writes no file in part."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adc_edge.storage.checkpoint import checkpoint_steps, latest_checkpoint
from tests.chaos.run import Run, compare
from tests.chaos.zygote import Zygote

pytestmark = pytest.mark.slow
STEPS = 90


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("only root may mount")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    with (disk / "filler").open("wb", buffering=0) as filler:
        for size in (65536, 1):
            while True:
                try:
                    filler.write(bytes(size))
                except OSError:
                    break
    yield
    (disk / "filler").unlink()


@pytest.mark.parametrize("side", ["device", "trainer"])
def test_a_full_disk_is_logged_and_does_not_change_the_outcome(
    zygote: Zygote, bundle_dir: Path, tmp_path: Path, disk: Path, free_port: Callable[[], int], side: str
) -> None:
    expected = Run(zygote, bundle_dir, tmp_path / "undisturbed", free_port(), STEPS).undisturbed()
    run = Run(zygote, bundle_dir, tmp_path / "run", free_port(), STEPS)
    if side == "device":
        run.device_dir = disk / "device"
    else:
        run.trainer_dir = disk / "trainer"
    trainer, device = run.trainer(), run.device(run.endpoint)
    run.reach(20)
    with full(disk):
        if side == "device":  # it goes on; its own metrics are on the full disk, so the trainer's are read
            told, pattern = device, "warning"
            wait_for_lines(run.trainer_dir / "metrics.jsonl", 45)
        else:
            told, pattern = trainer, "warning no checkpoint at step"
            run.reach(45)
        assert pattern in told.output().lower(), run.logs()
        assert "No space left on device" in told.output()
        assert told.signal(signal.SIGKILL)
        assert told.wait(10) == -signal.SIGKILL
        where = run.device_dir if side == "device" else run.trainer_dir
        good = latest_checkpoint(where)
        assert good is not None
        assert good.step <= 28
        assert checkpoint_steps(where)[-1] == good.step
    if side == "device":
        device = run.device(run.endpoint)
    else:
        trainer = run.trainer()
    assert device.wait(90) == 0, run.logs()
    assert trainer.wait(20) == 0, run.logs()
    compare(expected, run.outcome())


def wait_for_lines(path: Path, count: int) -> None:
    import time

    deadline = time.monotonic() + 60
    while path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_that_ends_on_a_full_disk_fails_with_a_remedy_and_resumes(
    zygote: Zygote, bundle_dir: Path, tmp_path: Path, disk: Path, free_port: Callable[[], int]
) -> None:
    run = Run(zygote, bundle_dir, tmp_path / "run", free_port(), 30)
    run.device_dir = disk / "device"
    trainer, device = run.trainer(), run.device(run.endpoint)
    run.reach(5)
    with full(disk):
        assert device.wait(60) == 1
        assert "No space left on device" in device.output()
        assert "a run resumes from its last checkpoint" in device.output()
        assert "Traceback" not in device.output()
    assert run.device(run.endpoint).wait(60) == 0, run.logs()
    assert trainer.wait(20) == 0, run.logs()


def test_a_read_only_directory_is_refused_at_the_start(
    zygote: Zygote, bundle_dir: Path, tmp_path: Path, disk: Path, free_port: Callable[[], int]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    run = Run(zygote, bundle_dir, tmp_path / "run", free_port(), 5)
    run.device_dir, run.trainer_dir = disk / "device", disk / "trainer"
    for child in (run.trainer(), run.device(run.endpoint)):
        assert child.wait(30) == 2
        assert "read-only file system" in child.output()
    assert os.listdir(disk) == []
