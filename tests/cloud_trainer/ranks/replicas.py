"""Ranks as threads of one process: each has a head of its own, and they exchange through memory."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from adc_edge.cloud_trainer.head import HeadTraining

T = TypeVar("T")
_LONGEST_S = 60


class Meeting:
    """Where the ranks of a world meet."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.brought: list[Any] = [None] * world
        self.barrier = threading.Barrier(world)


class MemoryExchange:
    """The exchange of one rank with the others of its meeting, as the real one."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank = meeting, rank

    def rows(self, row: Sequence[int]) -> list[list[int]]:
        return self._all(list(row))

    def blobs(self, mine: bytes, sizes: Sequence[int] | None = None) -> list[bytes]:
        told = self._all(mine)
        assert sizes is None or list(sizes) == [len(each) for each in told]
        return told

    def least(self, value: int) -> int:
        return min(self._all(value))

    def sum(self, flat: torch.Tensor) -> None:
        flat.copy_(torch.stack(self._all(flat.clone())).sum(dim=0))

    def _all(self, mine: T) -> list[T]:
        self.meeting.brought[self.rank] = mine
        self.meeting.barrier.wait(_LONGEST_S)
        found = list(self.meeting.brought)
        self.meeting.barrier.wait(_LONGEST_S)
        return found


def on_all_ranks(world: int, work: Callable[[MemoryExchange], T]) -> list[T]:
    """Have each rank do its work in a thread of its own; returns what each returns, or raises what one has raised."""
    meeting, results, faults = Meeting(world), dict[int, T](), dict[int, BaseException]()

    def run(rank: int) -> None:
        try:
            results[rank] = work(MemoryExchange(meeting, rank))
        except BaseException as fault:
            faults[rank] = fault
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_LONGEST_S)
    real = [fault for fault in faults.values() if not isinstance(fault, threading.BrokenBarrierError)]
    if real:
        raise real[0]
    return [results[rank] for rank in range(world)]


def replicas(training: HeadTraining, world: int) -> list[HeadTraining]:
    """A head for each rank, with the same weights and an optimizer of its own."""
    found = []
    for _ in range(world):
        head = copy.deepcopy(training.head)
        found.append(HeadTraining(head, training.optimizer.settings))
    return found
