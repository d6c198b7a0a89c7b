"""Devices that train on ranks, and what must hold at the end of their run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from adc_edge.storage.bundle import HEAD
from adc_edge.storage.checkpoint import latest_checkpoint
from adc_edge.storage.halves import HEAD_PREFIX
from tests.chaos.run import LEARNING
from tests.chaos.zygote import Child, Zygote


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of one kind in a run's metrics; a line that is being written is left out."""
    with contextlib.suppress(FileNotFoundError):
        whole = (run / "metrics.jsonl").read_text().rpartition("\n")[0]
        return [line for line in map(json.loads, whole.splitlines()) if line["kind"] == kind]
    return []


class Devices:
    """Light devices of one training, each a process that is started again when it is killed.

    Args:
        doors: endpoint that each device is told.
        steps: of each device.
        more: options of each device.
        namespaces: network namespace of each device; empty: all in that of this process.
    """

    def __init__(
        self,
        zygote: Zygote,
        bundle: Path,
        where: Path,
        doors: Sequence[str],
        steps: int,
        more: Sequence[Sequence[str | Path]] = (),
        namespaces: Sequence[str] = (),
    ) -> None:
        self._zygote, self._bundle, self._where, self._doors = zygote, bundle, where, doors
        self.steps, self._more = steps, more or [()] * len(doors)
        self._namespaces = namespaces or [""] * len(doors)
        self.runs = [where / f"device-{number}" for number in range(len(doors))]
        self.children: dict[int, Child] = {}

    def start(self, number: int) -> None:
        """Start a device, or start it again."""
        work = ["--steps", str(self.steps), "--micro-batches", "1", "--eval-images", "16", "--seed", str(number)]
        self.children[number] = self._zygote.start(
            "serve", "--bundle", self._bundle, "--trainer", self._doors[number], "--run", self.runs[number],
            "--wait", "inf", *work, *LEARNING, "--checkpoint-every", "7", *self._more[number],
            log=self._where / f"device-{number}.log", namespace=self._namespaces[number],
        )  # fmt: skip

    def start_all(self) -> None:
        """Start all devices."""
        for number in range(len(self.runs)):
            self.start(number)

    def start_killed(self) -> None:
        """Start again the devices that were killed; fails if one has ended in another way."""
        for number, child in self.children.items():
            if child.code not in (None, 0):
                assert child.code == -signal.SIGKILL, f"device {number} ended with {child.code}"
                self.start(number)

    def kill(self, number: int) -> bool:
        """Kill a device with SIGKILL; False if it has ended."""
        return self.children[number].signal(signal.SIGKILL)

    def done(self) -> bool:
        """Whether all devices have ended as they should."""
        return len(self.children) == len(self.runs) and all(child.code == 0 for child in self.children.values())

    def progress(self) -> int:
        """Number of steps that all devices have done."""
        return sum(len(lines(run, "step")) for run in self.runs)


def until(condition: Callable[[], bool], timeout_s: float, logs: Callable[[], str]) -> None:
    """Wait until something is so; fails with the logs."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, logs()
        time.sleep(0.02)


def logs(where: Path) -> str:
    """The ends of all logs of a training."""
    return "\n".join(f"--- {path.name}\n{path.read_text()[-6000:]}" for path in sorted(where.glob("*.log")))


def check_every_step_once(trainer_run: Path, devices: Devices) -> None:
    """Assert that every step of every device has been applied once, and stands once in each side's metrics."""
    steps, count = devices.steps, len(devices.runs)
    for run in devices.runs:
        assert [line["step"] for line in lines(run, "step")] == list(range(steps)), run.name
    learned = lines(trainer_run, "step")
    times = Counter((line["session"], line["step"]) for line in learned)
    assert not {place: n for place, n in times.items() if n != 1}
    sessions = {session for session, _ in times}
    assert len(sessions) == count
    assert times.keys() == {(session, step) for session in sessions for step in range(steps)}


def check_head(trainer_run: Path, steps: int) -> None:
    """Assert that the head at the end is that of the last checkpoint, which the ranks have compared."""
    last = latest_checkpoint(trainer_run)
    assert last is not None
    assert last.step == steps
    head = load_file(trainer_run / HEAD)
    assert head.keys() == {name[len(HEAD_PREFIX) :] for name in last.arrays if name.startswith(HEAD_PREFIX)}
    for name, value in head.items():
        assert value.tobytes() == last.arrays[HEAD_PREFIX + name].tobytes(), name


def check_nothing_is_left(trainer_run: Path, first_port: int, count: int) -> None:
    """Assert that no process holds the run directory or listens on the ranks' ports, and all lines are written."""
    assert not [*trainer_run.glob("rank-*.jsonl")]
    with (trainer_run / "lock").open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for port in range(first_port, first_port + count):
        with socket.create_server(("127.0.0.1", port)):
            pass
