"""Checkpoints of all ranks: in a round each one syncs its logs and tells its sessions, and rank 0 writes the file.

The ranks compare a digest of head and optimizer before. Heads that have come apart are never written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import xxhash

from adc_edge.arrays import Arrays
from adc_edge.cloud_trainer.accumulator import StepAccumulator
from adc_edge.cloud_trainer.checkpoints import TrainerCheckpoints
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.ranks.learning.rows import apart
from adc_edge.cloud_trainer.ranks.members import RankMembers
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.served_session import SessionRecord
from adc_edge.errors import CheckpointError
from adc_edge.storage.checkpoint import KEPT, Checkpoint
from adc_edge.storage.journal import LIMIT_BYTES
from adc_edge.storage.run_dir import RunDir

TakesIn = Callable[[Collection[int], Callable[[Mapping[str, Any]], None]], None]

RANKS = "ranks"  # key of the table of ranks in a checkpoint

logger = logging.getLogger(__name__)


class Tells(Protocol):
    """The part of the exchange between ranks that checkpoints need."""

    def blobs(self, mine: bytes, sizes: Sequence[int] | None = None) -> list[bytes]:
        """Return the bytes of all ranks, by rank; ``sizes`` are their lengths, where all ranks know them."""
        ...

    def least(self, value: int) -> int:
        """Return the least of all ranks' numbers."""
        ...


class RanksOfSessions(Protocol):
    """The table of which rank serves which session."""

    def owner(self, session: int) -> int | None:
        """Return the rank of a session; None: no rank has it."""
        ...

    def restore(self, kept: object, records: Mapping[int, SessionRecord]) -> None:
        """Take the sessions of a checkpoint, and what ``kept`` returned when it was made."""
        ...

    def kept(self) -> dict[str, Any]:
        """Return what a checkpoint is to keep, as plain values."""
        ...


class _Told(msgspec.Struct, array_like=True):
    """The part of one rank in a checkpoint."""

    step: int
    digest: int
    records: dict[int, SessionRecord]
    lines: bytes = b""
    fault: str = ""  # why its logs cannot be synced


class RankCheckpoints(TrainerCheckpoints):
    """Makes the checkpoints of all ranks.

    Args:
        training: the head, alike on all ranks.
        sessions: those that this rank serves.
        run_dir: the run directory of all ranks; rank 0 alone writes checkpoints to it.
        every: steps of the head between two checkpoints; 0: the number of steps asks for none.
        exchange: with the other ranks.
        owners: which rank serves which session.
        rank: this one.
    """

    def __init__(
        self,
        training: HeadTraining,
        sessions: SessionRegistry,
        run_dir: RunDir,
        every: int,
        exchange: Tells,
        owners: RanksOfSessions,
        rank: int,
    ) -> None:
        super().__init__(training, sessions, run_dir, every)
        self._directory, self._exchange, self._owners, self._rank = run_dir, exchange, owners, rank
        self.wanted = False  # in the next round

    @property
    def records(self) -> dict[int, SessionRecord]:
        """The sessions of all ranks, as the newest checkpoint has them."""
        return self._kept[-1][1] if self._kept else {}

    def finished_sessions(self) -> list[int]:
        """The sessions of all ranks that the newest checkpoint has as finished."""
        return [number for number, record in self.records.items() if record.finished]

    def learned(self) -> dict[int, int]:
        """The steps of each session that the head has learned; of other ranks' sessions, as of the last checkpoint."""
        return {number: record.applied for number, record in self.records.items()} | super().learned()

    def save(self) -> None:
        """Have the next round make a checkpoint."""
        self.wanted = True

    def count_steps(self, totals: Sequence[StepAccumulator]) -> None:
        """Count steps that the head has just learned; where devices keep many bytes for them, want a checkpoint."""
        self._unkept_bytes += sum(step.bytes_up for step in totals)
        if self._unkept_bytes > LIMIT_BYTES // KEPT:
            self.wanted = True

    def due(self, learned: int) -> bool:
        """Return whether the number of steps asks for a checkpoint, after a round of ``learned`` steps."""
        return bool(self._every and learned) and self._training.steps % self._every < learned

    def resume(self, take_in: TakesIn | None = None) -> None:
        """Have all ranks restore the newest whole checkpoint; without one, start at step 0.

        Args:
            take_in: on rank 0, takes in the lines that other ranks have left; see ``WrittenLines.take_in``.

        Raises:
            CheckpointError: there are checkpoints, and none can be used; or this rank sees others than rank 0.
        """
        if self._rank == 0:
            super().resume()
            if take_in is not None:
                take_in(self.records, self.record.evaluated_late)
        mine = self._kept[-1][0] if self._kept else None
        step = msgspec.msgpack.decode(self._exchange.blobs(msgspec.msgpack.encode(mine))[0], type=int | None)
        if self._rank == 0:
            return
        checkpoint = None if step is None else self._directory.latest(step)
        if step is not None and (checkpoint is None or checkpoint.step != step):
            raise CheckpointError(
                f"no whole checkpoint of step {step} in {self.path}, from which rank 0 goes on",
                "the same files on all ranks",
                "use a --run directory on storage that all hosts share",
            )
        if checkpoint is not None:
            self._restore(self._directory, checkpoint)

    def go_back(self, session: int, step: int) -> bool:
        """Return False: all ranks would have to go back, and other devices would lose steps."""
        return False

    def commit(self, lines: RankMembers) -> bool:
        """Make a checkpoint of now with all ranks, unless there is one; return whether it is there.

        Args:
            lines: whose parts must be heard before.

        Raises:
            RunError: the heads of the ranks are not alike; nothing was written.
        """
        self.wanted, fault = False, ""
        try:
            self._sessions.sync()
        except OSError as error:
            fault = f"{error.filename or 'a log of answers'}: {error.strerror}"
        arrays, step = self._training.arrays(), self._training.steps
        mine = _Told(step, digest_of(arrays), self._sessions.records(), lines.tell(), fault)
        told = [msgspec.msgpack.decode(blob, type=_Told) for blob in self._exchange.blobs(msgspec.msgpack.encode(mine))]
        lines.hear([part.lines for part in told])
        if len({(part.step, part.digest) for part in told}) > 1:
            raise apart(f"different heads at step {', '.join(str(part.step) for part in told)}")
        records = {number: record for part in told for number, record in part.records.items()}
        if self._kept and self._kept[-1] == (step, records):
            return True
        fault = next((f"rank {rank}: {part.fault}" for rank, part in enumerate(told) if part.fault), "")
        fault = fault or self._write(step, arrays, records)
        if self._exchange.least(int(not fault)):
            self._note(step, records)
            return True
        if self._rank == 0:  # its fault, or that of another rank, which it was told
            logger.warning("no checkpoint at step %d: %s; going on", step, fault)
        return False

    def _write(self, step: int, arrays: Arrays, records: dict[int, SessionRecord]) -> str:
        """Write the file if this is rank 0, and return why that failed, or nothing."""
        plain = msgspec.to_builtins(records, str_keys=True)
        try:
            self._directory.checkpoint(step, arrays, {"sessions": plain, RANKS: self._owners.kept()})
        except OSError as error:
            return str(error)
        return ""

    def _note(self, step: int, records: dict[int, SessionRecord]) -> None:
        if self._kept and self._kept[-1][0] == step:
            self._kept.pop()  # overwritten: a checkpoint is named after its step
        self._kept.append((step, records))
        self._unkept_bytes = 0

    def _served(self, checkpoint: Checkpoint, records: dict[int, SessionRecord]) -> dict[int, SessionRecord]:
        """The sessions of a checkpoint that this rank serves."""
        self._owners.restore(checkpoint.meta.get(RANKS), records)
        return {number: record for number, record in records.items() if self._owners.owner(number) == self._rank}


def digest_of(arrays: Arrays) -> int:
    """Return a number that differs, in all likelihood, where a name, a shape or a bit of the arrays differs."""
    digest = xxhash.xxh3_64()
    for name in sorted(arrays):
        value = np.asarray(arrays[name], order="C")
        digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        digest.update(value.tobytes() if value.ndim == 0 else value.view(np.uint8).data)
    return digest.intdigest()
