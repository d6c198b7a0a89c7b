"""The trainer ranks of ranks.py under a real torchrun, each pinned to a core, and the time that they take."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from fleet_recording import BUNDLE
from fleet_trainer import START_S
from ranks_timed import DIRECTORY

_TIMED = Path(__file__).with_name("ranks_timed.py")
_LOG_SHOWN = 4000  # last characters, after an error


class TimedRank(NamedTuple):
    """The clocks of one rank: begin and end of each round, and whether it had work; seconds of calls, by name."""

    rounds: list[tuple[float, float, bool]]
    calls: dict[str, list[float]]


class RanksProcess:
    """`torchrun … adc-edge trainer` with a rank on each of some cores; a context manager.

    Args:
        run: the run directory of all ranks; the log lies beside it.
        recording: of the bundle.
        cores: one for each rank.
        more: further options of the trainer.
        timed: whether the ranks time their rounds.
    """

    def __init__(
        self, run: Path, recording: Path, cores: Sequence[int], more: Sequence[str] = (), timed: bool = False
    ) -> None:
        self.run, self._cores, self._timed = run, cores, timed
        self._log = run.with_suffix(".log")
        self._clocks = run.with_suffix(".clocks")
        bind = "tcp://127.0.0.1:*"  # each rank takes a free port, and so does torchrun with --standalone
        trainer = ["trainer", "--bundle", str(recording / BUNDLE), "--bind", bind, "--run", str(run), "--threads", "1"]
        program = ["--", str(_TIMED)] if timed else ["-m", "--", "adc_edge"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(len(cores))]
        self._command = [*torchrun, *program, *trainer, *more]
        self.ranks: list[int] = []  # process numbers

    def __enter__(self) -> RanksProcess:
        self._clocks.mkdir()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", DIRECTORY: str(self._clocks)}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environment)
        try:
            self._wait_until(lambda: (self.run / "endpoint").exists() and len(self._found()) == len(self._cores))
        except BaseException:
            self._end()
            raise
        self.ranks = self._found()
        for pid, core in zip(self.ranks, self._cores, strict=True):
            for task in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), {core})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.check()
        finally:
            self._end()
        if kind is not None:
            print(self.log(), file=sys.stderr)

    @property
    def endpoint(self) -> str:
        """The address of rank 0, a door to all ranks."""
        return (self.run / "endpoint").read_text().strip()

    def log(self) -> str:
        return self._log.read_text()[-_LOG_SHOWN:]

    def cpu_seconds(self) -> list[float]:
        """Processor time so far of each rank."""
        return [cpu_seconds(pid) for pid in self.ranks]

    def troubles(self) -> dict[str, int]:
        """Refusals, and connections that ended before their session, by kind."""
        events = self.run / "events.jsonl"
        lines = map(json.loads, events.read_text().splitlines() if events.exists() else [])
        return dict(Counter(line["kind"] for line in lines if line["kind"] in ("rejected", "away")))

    def clocks(self) -> list[TimedRank]:
        """The times of the ranks; they must have ended."""
        files = [self._clocks / f"rank-{rank}.json" for rank in range(len(self._cores))]
        return [TimedRank(**json.loads(file.read_text())) for file in files]

    def _found(self) -> list[int]:
        """The processes of the ranks that run, by rank."""
        ranks: dict[int, int] = {}
        for task in Path(f"/proc/{self._process.pid}/task").iterdir():
            for pid in map(int, (task / "children").read_text().split()):
                lines = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                given = [line.removeprefix(b"RANK=") for line in lines if line.startswith(b"RANK=")]
                ranks |= {int(number): pid for number in given}
        return [ranks[number] for number in sorted(ranks)]

    def _wait_until(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_S
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the ranks do not start: {self.log()}")
            time.sleep(0.05)

    def check(self) -> None:
        """Raise unless all ranks are those that were started."""
        if self._process.poll() is not None or self._found() != self.ranks:
            raise RuntimeError(f"the ranks have not stayed: {self.log()}")

    def _end(self) -> None:
        """Ask a rank to end, which ends all in a round; what has not ended then is killed."""
        try:
            os.kill(self.ranks[0], signal.SIGTERM)
        except (IndexError, ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait(60)


def losses(runs: Sequence[Path], shown: int) -> list[tuple[float, float]]:
    """Mean loss of each device's first steps and of its last ones, for each run; all devices' as long as the shortest.

    Args:
        runs: their directories.
        shown: the number of first steps, and of last ones.
    """
    series = [[[loss for _, loss in sorted(steps)] for steps in _steps(run).values()] for run in runs]
    end = min(len(device) for devices in series for device in devices)
    return [
        (
            statistics.mean(loss for device in devices for loss in device[:shown]),
            statistics.mean(loss for device in devices for loss in device[end - shown : end]),
        )
        for devices in series
    ]


def _steps(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Number and loss of the steps of each session."""
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in (run / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        if values["kind"] == "step":
            found[values["session"]].append((values["step"], values["loss"]))
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time of all threads of a process so far."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def machine_cpu_seconds() -> float:
    """Processor time so far of everything that runs on this machine, with what its host has taken away."""
    names = "user nice system idle iowait irq softirq steal".split()
    ticks = dict(zip(names, map(int, Path("/proc/stat").read_text().split()[1:9]), strict=True))
    return sum(ticks[name] for name in names if name not in ("idle", "iowait")) / os.sysconf("SC_CLK_TCK")
