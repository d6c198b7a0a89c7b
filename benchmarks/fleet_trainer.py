"""The trainer's process for fleet.py, its memory and time, and what its run directory tells."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

from fleet_recording import BUNDLE
from link_forwarder import enter

START_S = 120.0
_LOG_SHOWN = 2000  # last characters, after an error
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6
TRAINER_KEYS = "keys-trainer"


class TrainerProcess:
    """`adc-edge trainer` with a run directory, pinned to a core; a context manager.

    Args:
        run: its run directory; the log lies beside it.
        recording: of the bundle.
        address: to listen on.
        keys: directory of everybody's; None: it admits everybody.
        core: that it is pinned to.
        namespace: that it runs in.
        more: further options.
    """

    def __init__(
        self,
        run: Path,
        recording: Path,
        address: str,
        keys: Path | None,
        core: int,
        namespace: str | None = None,
        more: Sequence[str] = (),
    ) -> None:
        self.run, self._core, self._namespace = run, core, namespace
        self.endpoint = f"tcp://{address}:{free_port()}"
        self._log = run.with_suffix(".log")
        options = ["--bundle", str(recording / BUNDLE), "--bind", self.endpoint, "--run", str(run), "--threads", "1"]
        options += more
        if keys is not None:
            options += ["--keys", str(keys / TRAINER_KEYS)]
        elif namespace is not None:
            options += ["--insecure"]
        self._command = [sys.executable, "-m", "adc_edge", "trainer", *options]

    def __enter__(self) -> TrainerProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(60)
        if kind is not None:
            print(self._log.read_text()[-_LOG_SHOWN:], file=sys.stderr)

    def start(self) -> None:
        """Start it, and wait until it listens."""
        ready = self.run / "endpoint"
        ready.unlink(missing_ok=True)
        place = partial(_place, self._core, self._namespace)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, preexec_fn=place)
        deadline = time.monotonic() + START_S
        while not ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the trainer does not start: {self._log.read_text()}")
            time.sleep(0.05)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def ranks(self) -> list[int]:
        """Its process, as the only rank."""
        return [self._process.pid]

    def memory_mb(self) -> float:
        """Resident memory."""
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * _PAGE_MB

    def cpu_seconds(self) -> dict[tuple[int, str], float]:
        """Processor time of each thread so far, by its number and name."""
        return {
            (int(task.name), (task / "comm").read_text().strip()): int((task / "schedstat").read_text().split()[0])
            / 1e9
            for task in Path(f"/proc/{self._process.pid}/task").iterdir()
        }

    def cpu_since(self, before: Mapping[tuple[int, str], float]) -> dict[str, float]:
        """Processor seconds of the main thread, of libzmq's, and of all others since ``before``."""
        total: Counter[str] = Counter()
        for (number, name), seconds in self.cpu_seconds().items():
            kind = "main" if number == self._process.pid else "libzmq" if name.startswith("ZMQ") else "other"
            total[kind] += seconds - before.get((number, name), 0.0)  # type: ignore[assignment]
        return dict(total)

    def wait_for_steps(self, steps: int) -> None:
        """Wait until it has counted so many."""
        deadline = time.monotonic() + START_S
        while self.counted() < steps:
            assert time.monotonic() < deadline, f"{self.counted()} of {steps} steps"
            time.sleep(0.05)

    def counted(self) -> int:
        return sum(counts(self.run).values())

    def troubles(self) -> dict[str, int]:
        """Refusals and connections that ended before their session, by kind."""
        events = self.run / "events.jsonl"
        lines = map(json.loads, events.read_text().splitlines() if events.exists() else [])
        return dict(Counter(line["kind"] for line in lines if line["kind"] in ("rejected", "away")))


def counts(run: Path) -> Counter[tuple[str, int]]:
    """Number of lines for each step of each session in a trainer's metrics."""
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    whole = (json.loads(line) for line in lines if line.endswith(b"\n"))
    return Counter((line["session"], line["step"]) for line in whole if line["kind"] == "step")


def counting(run: Path, done: Mapping[str, int]) -> tuple[int, int]:
    """The steps that a trainer has not counted, and those that it has counted more than once.

    Args:
        run: the trainer's directory.
        done: steps that each session has done.
    """
    found = counts(run)
    lost = sum((session, step) not in found for session, steps in done.items() for step in range(steps))
    return lost, sum(times > 1 for times in found.values())


def make_all_keys(directory: Path, devices: int) -> None:
    """Keys of a trainer and of so many devices, each known to the other side."""
    from adc_edge.security.keystore import allow, make_keys, pin

    trainer = make_keys(directory / TRAINER_KEYS)
    for number in range(devices):
        own = make_keys(directory / f"keys-{number}")
        allow(directory / TRAINER_KEYS, f"device-{number}", own.public)
        pin(directory / f"keys-{number}", trainer.public)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _place(core: int, namespace: str | None) -> None:
    if namespace is not None:
        enter(namespace)
    os.sched_setaffinity(0, {core})
