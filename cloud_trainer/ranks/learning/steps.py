"""Steps on a rank: computed and answered at once, and learned by the head in the next round of all ranks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from adc_edge.cloud_trainer.ranks.learning.rows import RankRow
from adc_edge.cloud_trainer.scheduling.steps import MicroBatch, StepAnswers


class RankSteps(StepAnswers):
    """Learns micro-batches as a trainer without ranks does, except that complete steps wait for a round.

    Args:
        arguments: those of ``StepAnswers``.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.waiting: list[MicroBatch] = []  # with which a step is complete; those of one pass

    @property
    def to_come(self) -> int:
        """The steps that the devices of this rank have yet to do, after those that wait."""
        return self._length.to_come(self._training.steps + len(self.waiting))

    def row(self) -> RankRow:
        """Return what the steps that wait contribute to the row of a round."""
        planned = bool(self.waiting) and self.waiting[0].session.planned_steps > 0
        images = sum(micro.totals.images for micro in self.waiting)
        return RankRow(steps=len(self.waiting), images=images, planned=int(planned), to_come=self.to_come)

    def count(self, micros: Sequence[MicroBatch], before: int, after: int) -> None:
        """Record steps that the head has learned.

        Args:
            micros: with which the steps are complete, in order.
            before: steps of the head before these.
            after: steps of the head after the round, in which other ranks' steps may follow.
        """
        for number, micro in enumerate(micros, 1):
            micro.session.record.head_step = after
            self._count(micro, before + number)
        if micros:
            self._checkpoints.count_steps([micro.totals for micro in micros])

    def tell_length(self, length: int) -> None:
        """Log the length of the head's training over all ranks, for its cosine, if it has changed."""
        self._length.tell(length)

    def _finish(self, micros: Sequence[MicroBatch]) -> None:
        """After the answers: the log; what is complete waits for the round."""
        begun = time.monotonic()
        for micro in micros:
            self._record.evaluated(micro.session)
            self._settle(micro, time.monotonic())
        self.waiting += [micro for micro in micros if micro.totals.complete]
        self._record.use.update += time.monotonic() - begun
