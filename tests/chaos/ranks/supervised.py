"""A host of ranks: deploy/ranks.sh as a process, and torchrun's agent and the ranks that run below it."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "deploy" / "ranks.sh"
_MARK = "ADC_EDGE_TEST_OF_RANKS"  # in the environment of all processes below one supervisor


class _Process(NamedTuple):
    pid: int
    parent: int
    environment: dict[str, str]
    command: str


class Host:
    """One supervisor with the processes below it; a context manager that leaves none of them behind.

    Args:
        arguments: those of torchrun and of ``adc-edge trainer``.
        log: file to which all of them write.
        namespace: network namespace to run in; empty: that of this process.
    """

    def __init__(self, arguments: Sequence[str | Path], log: Path, namespace: str = "") -> None:
        self.log, self._mark = log, secrets.token_hex(8)
        enter = ["ip", "netns", "exec", namespace] if namespace else []
        tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where torchrun is
        with log.open("ab") as file:
            self._supervisor = subprocess.Popen(
                [*enter, "bash", str(SCRIPT), *map(str, arguments)],
                env=os.environ | {"PATH": tools, "OMP_NUM_THREADS": "1", _MARK: self._mark},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self._supervisor.kill()
        self._supervisor.wait()
        while left := self.processes():
            for process in left:
                _kill(process)
            time.sleep(0.05)

    @property
    def code(self) -> int | None:
        """Exit code of the supervisor, once it has ended."""
        return self._supervisor.poll()

    def processes(self) -> list[_Process]:
        """The processes at work that the supervisor has started, and those that they have started."""
        found = map(_process, (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()))
        return [p for p in found if p is not None and p.environment.get(_MARK) == self._mark]

    def agent(self) -> _Process | None:
        """Torchrun's agent, if it is at work."""
        return next((p for p in self.processes() if "torchrun" in p.command and "RANK" not in p.environment), None)

    def ranks(self) -> dict[int, _Process]:
        """The ranks at work, by their number."""
        agent = self.agent()
        below = [p for p in self.processes() if agent is not None and p.parent == agent.pid]
        return {int(p.environment["RANK"]): p for p in below if "RANK" in p.environment}

    def kill_agent(self) -> bool:
        """Kill torchrun's agent with SIGKILL; False if none was at work."""
        agent = self.agent()
        return agent is not None and _kill(agent)

    def kill_rank(self, number: int) -> bool:
        """Kill a rank with SIGKILL; False if it was not at work."""
        rank = self.ranks().get(number)
        return rank is not None and _kill(rank)

    def stop(self) -> None:
        """Ask the supervisor to end, with its ranks."""
        self._supervisor.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> int:
        """Exit code of the supervisor, once it ends by itself."""
        return self._supervisor.wait(timeout_s)


def _process(pid: int) -> _Process | None:
    """A process of this machine; None if it has ended, or is another user's."""
    where = Path("/proc", str(pid))
    try:
        pairs = (p.partition("=") for p in (where / "environ").read_text(errors="replace").split("\0"))
        environment = {name: value for name, _, value in pairs}
        command = (where / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
        state, parent = (where / "stat").read_text().rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return None if state == "Z" else _Process(pid, int(parent), environment, command)


def _kill(process: _Process) -> bool:
    now = _process(process.pid)
    if now is None or now.environment.get(_MARK) != process.environment.get(_MARK):
        return False  # it has ended, and its number may be another's
    try:
        os.kill(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
