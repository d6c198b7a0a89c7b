"""torchrun with several ranks, as a process of its own: its agent, its ranks, and what they print."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
ROOT = Path(__file__).parents[3]
TORCHRUN = Path(sys.executable).with_name("torchrun")


class Torchrun:
    """torchrun on this host; its processes are killed at the end of the block, whatever became of them.

    Args:
        ranks: number of ranks.
        words: what each rank runs: ``-m -- adc_edge trainer …``, or a script with its arguments.
        directory: where the output is kept, in ``torchrun.log``.
        max_restarts: how often the agent may start all ranks anew.
        options: more options of torchrun, before ``words``; ``--standalone`` stands there by default.
        environment: more variables.
        supervised: start torchrun by ``deploy/ranks.sh``, which starts it again when it dies.
    """

    def __init__(
        self,
        ranks: int,
        words: Sequence[str | Path],
        directory: Path,
        max_restarts: int = 20,
        options: Sequence[str] = ("--standalone",),
        environment: Mapping[str, str] | None = None,
        supervised: bool = False,
    ) -> None:
        self.ranks, self.log, self._supervised = ranks, directory / "torchrun.log", supervised
        launcher = ["bash", ROOT / "deploy" / "ranks.sh"] if supervised else [TORCHRUN]
        own = [*options, "--nproc-per-node", ranks, "--max-restarts", max_restarts]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(word) for word in (*launcher, *own, *words)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=rank_environment({"ADC_EDGE_TORCHRUN": str(TORCHRUN), **(environment or {})}),
                start_new_session=True,  # Ctrl-C at the tests is none at torchrun
            )
        self._seen: set[int] = {self.process.pid}

    def __enter__(self) -> Torchrun:
        return self

    def __exit__(self, *_: object) -> None:
        self._note()
        for pid in self._seen:  # the first is the supervisor, which must not start anything anew
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._note()
        self.process.wait(60)

    @property
    def output(self) -> str:
        """Everything that the agent and the ranks have printed."""
        return self.log.read_text(errors="replace")

    @property
    def agent(self) -> int | None:
        """Process number of torchrun's agent; None while there is none."""
        if not self._supervised:
            return self.process.pid if self.process.poll() is None else None
        return next((pid for pid in children(self.process.pid) if b"torchrun" in words_of(pid)), None)

    def pids(self) -> dict[int, int]:
        """Process numbers of the ranks that exist now, by rank."""
        agent = self.agent
        found = {} if agent is None else {rank_of(pid): pid for pid in children(agent)}
        self._seen |= {*found.values(), *([agent] if agent else [])}
        return {rank: found[rank] for rank in sorted(rank for rank in found if rank is not None)}

    def kill_rank(self, rank: int, number: int = signal.SIGKILL) -> int:
        """Send a signal to a rank once it exists, and return its process number."""
        pid = self.wait_for(lambda: self.pids().get(rank), f"rank {rank}")
        os.kill(pid, number)
        return pid

    def kill_agent(self, number: int = signal.SIGKILL) -> int:
        """Send a signal to the agent once it exists, and return its process number."""
        self._note()
        pid = self.wait_for(lambda: self.agent, "the agent")
        os.kill(pid, number)
        return pid

    def endpoint(self, run: Path, timeout_s: float = 120) -> str:
        """Return where rank 0 listens, once it has said so in the run directory."""
        file = run / "endpoint"
        return self.wait_for(lambda: file.read_text() if file.exists() else None, str(file), timeout_s)

    def wait_for(self, look: Callable[[], T | None], what: str, timeout_s: float = 120) -> T:
        """Return what ``look`` finds, once it finds something."""
        until_s = time.monotonic() + timeout_s
        while (found := look()) is None:
            assert self.process.poll() is None, f"torchrun has ended, and {what} was expected:\n{self.output}"
            assert time.monotonic() < until_s, f"{what} did not come:\n{self.output}"
            time.sleep(0.02)
        return found

    def finish(self, timeout_s: float = 240) -> tuple[int, str]:
        """Wait for the end, and return the exit code with everything that was printed."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"torchrun did not end within {timeout_s} s:\n{self.output}") from None
        return code, self.output

    def _note(self) -> None:
        self.pids()


def rank_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which ranks import this checkout, and in which nothing of another torchrun is left."""
    foreign = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "MASTER_", "TORCHELASTIC_", "GLOO_", "NCCL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **(more or {})}


def children(pid: int) -> list[int]:
    """Return the process numbers of a process' children; none if it is gone."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def rank_of(pid: int) -> int | None:
    """Return the rank of a process that torchrun started; None if it is none, or gone."""
    with suppress(OSError):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        numbers = [word.partition(b"=")[2] for word in variables if word.startswith(b"RANK=")]
        return int(numbers[0]) if numbers else None
    return None


def words_of(pid: int) -> bytes:
    """Return the command line of a process; empty if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
