"""A place in a training: both sides tell each other their positions, and the journals are in their order."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

MicroBatches = Callable[[int], int]  # how many of them a step has


def micro_batches_by_step(changes: Sequence[tuple[int, int]]) -> MicroBatches:
    """Return the function that gives M of a step; ``changes`` are first steps, in order, each with its M."""
    steps = [first for first, _ in changes]
    return lambda step: changes[max(0, bisect_right(steps, step) - 1)][1]


class Position(NamedTuple):
    """A micro-batch of a step. Positions compare in the order in which they are learned."""

    step: int
    micro_batch: int = 0

    def next(self, micro_batches: int) -> Position:
        """The position that follows, where this step has ``micro_batches`` of them."""
        if self.micro_batch + 1 < micro_batches:
            return Position(self.step, self.micro_batch + 1)
        return Position(self.step + 1)
