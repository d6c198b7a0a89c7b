"""A round of all ranks: a table of numbers, what the members tell, the steps of the head, perhaps a checkpoint.

All ranks call ``turn`` in the same order, and what it does depends on what all have heard alone. So every rank does the
same collective operations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from adc_edge.cloud_trainer.ranks.learning.lockstep import Adds
from adc_edge.cloud_trainer.ranks.learning.rows import RankRow, RankRows
from adc_edge.cloud_trainer.ranks.members import RankMembers
from adc_edge.cloud_trainer.ranks.state.checkpoints import RankCheckpoints, Tells
from adc_edge.errors import RunError


class Exchanges(Tells, Adds, Protocol):
    """The exchange between ranks; each call is one of all ranks, in the same order."""

    def rows(self, row: Sequence[int]) -> list[list[int]]:
        """Return the rows of all ranks, by rank."""
        ...


class Learns(Protocol):
    """The learning of the head in rounds: ``lockstep.py`` or ``local_steps.py``."""

    @property
    def ready(self) -> bool:
        """Whether a round is due before the next step."""
        ...

    def row(self) -> RankRow:
        """Return this rank's row of steps."""
        ...

    def learn(self, table: RankRows, wanted: bool) -> int:
        """Bring the steps of all ranks together, and return their number.

        Args:
            table: the rows of all ranks.
            wanted: whether a checkpoint is to follow, for which all heads must be alike.
        """
        ...


class Outcome(NamedTuple):
    """The outcome of a round, the same on all ranks."""

    busy: bool  # some rank has answered a message or learned a step
    committed: bool | None  # whether a checkpoint was made; None: none was due
    over: bool  # the run is to end


class RankRounds:
    """The rounds of one rank.

    Args:
        exchange: with the other ranks.
        learner: how the head learns.
        checkpoints: of all ranks.
        members: what else is told.
        lines: those of the members that must be heard before a checkpoint: lines of metrics.
        devices: sessions after whose end the run ends; 0: it goes on.
        worked: told the computing time of each rank and the time since the last round, in milliseconds.
    """

    def __init__(
        self,
        exchange: Exchanges,
        learner: Learns,
        checkpoints: RankCheckpoints,
        members: RankMembers,
        lines: RankMembers,
        devices: int = 0,
        worked: Callable[[Sequence[int], int], None] = lambda computed_ms, elapsed_ms: None,
    ) -> None:
        self._exchange, self._learner, self._checkpoints = exchange, learner, checkpoints
        self._members, self._lines, self._devices, self._worked = members, lines, devices, worked
        self._since_s = time.monotonic()

    @property
    def ready(self) -> bool:
        """Whether a round is due before the next step, or wanted for a checkpoint."""
        return self._learner.ready or self._checkpoints.wanted

    def turn(self, *, stop: bool = False, answered: int = 0, computed_s: float = 0.0) -> Outcome:
        """Do one round with all ranks.

        Args:
            stop: whether this rank is asked to end.
            answered: messages that this rank has answered since the last round.
            computed_s: seconds that this took.

        Raises:
            RanksLost: another rank is gone or silent.
            RunError: the heads have come apart; or no checkpoint could be made at the end.
        """
        told = self._members.tell()
        now_s = time.monotonic()
        elapsed_s, self._since_s = now_s - self._since_s, now_s
        mine = self._learner.row()._replace(
            tells=len(told),
            saves=int(self._checkpoints.wanted),
            stops=int(stop),
            answered=answered,
            computed_ms=round(1e3 * computed_s),
            elapsed_ms=round(1e3 * elapsed_s),
        )
        table = RankRows.of(self._exchange.rows(mine))
        self._worked([row.computed_ms for row in table.rows], table.rows[0].elapsed_ms)
        if table.total("tells"):
            self._members.hear(self._exchange.blobs(told, [row.tells for row in table.rows]))
        over = table.total("stops") > 0 or self._all_done()
        wanted = over or table.total("saves") > 0
        learned = self._learner.learn(table, wanted)
        committed = None
        if wanted or self._checkpoints.due(learned):
            committed = self._checkpoints.commit(self._lines)
        if over and not committed:
            raise RunError("no checkpoint at the end of the run", "room on the disk of --run", "start it again")
        busy = bool(learned or table.total("answered"))
        return Outcome(busy, committed, over or self._all_done())

    def _all_done(self) -> bool:
        """Whether the newest checkpoint has as many sessions finished as the run waits for."""
        return 0 < self._devices <= len(self._checkpoints.finished_sessions())

    def end(self) -> None:
        """Return once the last lines of all ranks are written; no round follows."""
        self._lines.hear(self._exchange.blobs(self._lines.tell()))
        self._exchange.least(1)
