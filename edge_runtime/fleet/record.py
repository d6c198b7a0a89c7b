"""The averages that a run has taken, on disk: a step that is done again begins with the same trunk as before."""

from __future__ import annotations

from pathlib import Path

import msgspec

from adc_edge.arrays import Body
from adc_edge.defaults import FleetPrecision
from adc_edge.storage.journal import Journal, JournalKey
from adc_edge.wire.fleet_messages import TrunkAverage


class TakenAverage(msgspec.Struct, frozen=True):
    """The trainer's answer to a change of this run, and what the exchange cost."""

    answer: TrunkAverage
    precision: FleetPrecision  # in which the change was sent
    bytes_up: int
    bytes_down: int
    seconds: float
    fleet: int = 0  # random number of the fleet; 0: not told
    last: bool = False  # no step of the run was to follow


class AverageRecord:
    """Keeps the averages from the older checkpoint on, a file each.

    A process that was killed comes back at a checkpoint, does its steps again, and fetches their gradients. The fleet
    has gone on meanwhile, so another answer of the trainer would not fit those gradients. Beside each average lies an
    empty entry, which tells that it was taken even if it is damaged.

    Args:
        directory: of the averages, made by the first one; None: the run is not kept, and never comes back.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._journal = Journal(directory) if directory is not None and directory.is_dir() else None

    def has(self, step: int, number: int = 0) -> bool:
        """Whether an average before ``step`` is kept; ``number`` counts them: an extended run takes one more."""
        return self._journal is not None and self._journal.has(JournalKey(step, number))

    def taken(self, step: int, number: int = 0) -> bool:
        """Return whether an average as of ``has`` was taken, also if it is lost."""
        noted = self._journal is not None and self._journal.has(JournalKey(step, part=number))
        return noted or self.has(step, number)

    def read(self, step: int, base: int, number: int = 0) -> tuple[TakenAverage, memoryview] | None:
        """Return an average as of ``has`` and its body; None if it is not kept, damaged, or of another base."""
        found = None if self._journal is None else self._journal.read(JournalKey(step, number))
        if found is None:
            return None
        taken = msgspec.msgpack.decode(found[0], type=TakenAverage)
        return (taken, found[1]) if taken.answer.base == base else None

    def keep(self, taken: TakenAverage, body: Body, oldest: int | None, number: int = 0) -> None:
        """Keep an average, and drop those before the step ``oldest``; it is on the disk when this returns.

        Args:
            taken: the average.
            body: of the answer.
            oldest: the oldest step that the run may come back to; None: it never comes back.
            number: as of ``has``.

        Raises:
            OSError: it could not be written.
        """
        if self._directory is None:
            return
        self._journal = self._journal or Journal(self._directory)
        self._journal.prune(oldest or 0)
        self._journal.append(JournalKey(taken.answer.step, number), msgspec.msgpack.encode(taken), body)
        self._journal.append(JournalKey(taken.answer.step, part=number), b"", b"")
        self._journal.sync()
