"""Ranks as processes of a test, without torchrun: they start quickly, and meet in a store that the test serves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch
from torch._C._distributed_c10d import TCPStore

from adc_edge.cloud_trainer.ranks.exchange import Exchange
from adc_edge.cloud_trainer.ranks.launch import Launch
from adc_edge.cloud_trainer.ranks.world import World

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.cloud_trainer.ranks.exchanging"])

Task = Callable[..., Any]  # of an Exchange, and of more arguments


class Outcome(NamedTuple):
    """The end of one rank's task: its result, or the name and text of the error that it raised."""

    result: Any
    error: str
    text: str
    seconds: float


class Ranks:
    """Processes that each enter a world and run a task.

    Args:
        store: where they meet.
        size: number of ranks.
        task: runs in each, with an Exchange and ``arguments``.
        arguments: they can be pickled.
        timeout_s: longest silence of a rank.
        kinds: kind of the head's device, by rank; none: all on the CPU.
    """

    def __init__(
        self,
        store: TCPStore,
        size: int,
        task: Task,
        *arguments: Any,
        timeout_s: float = 60,
        kinds: Sequence[str] = (),
    ) -> None:
        self.processes: list[BaseProcess] = []
        self._ends: list[Connection] = []
        for rank in range(size):
            here, there = _context.Pipe(duplex=False)
            launch = Launch(rank, size, rank, size, 1, 0, "127.0.0.1", store.port, True)
            kind = kinds[rank] if kinds else "cpu"
            process = _context.Process(target=_run, args=(there, launch, timeout_s, task, arguments, kind))
            process.start()
            there.close()
            self.processes.append(process)
            self._ends.append(here)

    def outcome(self, rank: int, within_s: float = 120) -> Outcome | None:
        """Return how a rank's task ended; None: the process was killed."""
        if not self._ends[rank].poll(within_s):
            raise AssertionError(f"rank {rank} did not end within {within_s} s")
        try:
            return Outcome(*self._ends[rank].recv())
        except EOFError:
            return None

    def results(self) -> list[Any]:
        """Return what every rank's task returned, by rank; raises AssertionError if one failed."""
        outcomes = [self.outcome(rank) for rank in range(len(self.processes))]
        assert all(each is not None and not each.error for each in outcomes), outcomes
        return [each.result for each in outcomes if each is not None]

    def exit_codes(self, within_s: float = 60) -> list[int | None]:
        """Return the exit codes, once all have ended."""
        until_s = time.monotonic() + within_s
        for process in self.processes:
            process.join(max(0.0, until_s - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def end(self) -> None:
        """Kill what is left."""
        for process in self.processes:
            process.kill()
            process.join()
        for end in self._ends:
            end.close()


@contextmanager
def meeting_place() -> Iterator[TCPStore]:
    """A store as torchrun's agent has one, on a free port of loopback."""
    yield TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))


@contextmanager
def ranks(
    size: int,
    task: Task,
    *arguments: Any,
    timeout_s: float = 60,
    store: TCPStore | None = None,
    kinds: Sequence[str] = (),
) -> Iterator[Ranks]:
    """Ranks at work, which are gone at the end of the block."""
    with meeting_place() as own:
        started = Ranks(store or own, size, task, *arguments, timeout_s=timeout_s, kinds=kinds)
        try:
            yield started
        finally:
            started.end()


def _run(end: Connection, launch: Launch, timeout_s: float, task: Task, arguments: Sequence[Any], kind: str) -> None:
    torch.set_num_threads(1)
    os.environ.pop("GLOO_SOCKET_IFNAME", None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the tests ends them by `end`
    start_s = time.monotonic()
    try:
        with World(launch, timeout_s, kind) as world:
            start_s = time.monotonic()
            result = task(Exchange(world), *arguments)
    except BaseException as error:
        end.send((None, type(error).__name__, str(error), time.monotonic() - start_s))
        raise SystemExit(3) from None
    end.send((result, "", "", time.monotonic() - start_s))
