"""A place in a training: both sides tell each other their positions, and the journals are in their order."""

from __future__ import annotations

from typing import NamedTuple


class Position(NamedTuple):
    """A micro-batch of a step. Positions compare in the order in which they are learned."""

    step: int
    micro_batch: int = 0

    def next(self, micro_batches: int) -> Position:
        """The position that follows, where each step has ``micro_batches`` of them."""
        if self.micro_batch + 1 < micro_batches:
            return Position(self.step, self.micro_batch + 1)
        return Position(self.step + 1)
