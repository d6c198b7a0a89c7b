"""The decisions of a run (decisions.json): settings that changed while it ran, each recorded before its first step.

A decision depends on a clock and a link, so it cannot be made again. A process that comes back repeats the recorded
ones; new ones are made only beyond the steps that either side has begun.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from adc_edge.defaults import Precision
from adc_edge.errors import CheckpointError
from adc_edge.files import json_bytes
from adc_edge.storage.run_dir import DECISIONS, RunDir


class Decision(msgspec.Struct, frozen=True):
    """Settings from ``step`` on; clusters and kept tokens are those of a micro-batch."""

    step: int
    micro_batches: int
    window: int
    clusters: int
    kept: int
    precision: Precision
    gradient_precision: Precision
    why: str = ""


class Decisions:
    """The decisions of a run, the oldest first.

    Args:
        run_dir: keeps them.

    Raises:
        CheckpointError: the record is damaged. Without it the run cannot be repeated.
    """

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir, self._first = run_dir, 1
        try:
            self._all = self._read()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{run_dir.path}/{DECISIONS}: {error}",
                "the decisions of this run",
                "start the run over with --fresh on both sides",
            ) from None

    @property
    def all(self) -> Sequence[Decision]:
        """Return the decisions so far."""
        return self._all

    def at(self, step: int) -> Decision | None:
        """Return the decision that holds for a step; None: the settings that the run began with."""
        place = bisect_right(self._all, step, key=lambda decision: decision.step)
        return self._all[place - 1] if place else None

    def begin(self, micro_batches: int) -> None:
        """Tell M of the steps before the first decision."""
        self._first = micro_batches

    def micro_batches(self, step: int) -> int:
        """Return M of a step."""
        decision = self.at(step)
        return self._first if decision is None else decision.micro_batches

    def fewest_micro_batches(self, now: int) -> int:
        """Return the least M of the recorded decisions and ``now``: its messages have the most images."""
        return min([now, *(decision.micro_batches for decision in self._all)])

    def changes(self, after: int) -> list[tuple[int, int]]:
        """Return the steps beyond ``after`` at which M changes, each with its new M."""
        cuts = [(-1, self._first), *((decision.step, decision.micro_batches) for decision in self._all)]
        return [new for old, new in pairwise(cuts) if new[1] != old[1] and new[0] > after]

    def may_begin(self, step: int, trainer_step: int) -> bool:
        """Whether a new decision may hold from ``step`` on: no side has begun that step.

        Args:
            step: the device's next step.
            trainer_step: the first step of which the trainer has learned nothing.
        """
        return step >= trainer_step and (not self._all or step > self._all[-1].step)

    def add(self, decision: Decision) -> None:
        """Record a decision; it is on the disk when this returns.

        Raises:
            OSError: it could not be written. It holds all the same if the file has it, which only a power cut may undo.
        """
        assert not self._all or decision.step > self._all[-1].step
        try:
            self._run_dir.keep(DECISIONS, json_bytes([*self._all, decision]))
        except OSError:
            self._all = self._read()
            raise
        self._all.append(decision)

    def _read(self) -> list[Decision]:
        return msgspec.json.decode(self._run_dir.kept(DECISIONS) or b"[]", type=list[Decision])
