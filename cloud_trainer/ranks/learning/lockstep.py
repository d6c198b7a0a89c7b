"""``--sync every``: the head learns the steps of a round together, one optimizer step on the gradients of all ranks.

With g_i the gradient of step i's loss at the weights that all ranks have since the last round, n_i its images, over m
steps of all ranks, the optimizer takes

    sum_i (n_i / n) g_i,   where n is the mean of the n_i

which is what ``--merge-passes sum`` takes in one process. The head's number of steps grows by m.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import takewhile
from typing import Protocol

import torch
from torch import Tensor

from adc_edge.cloud_trainer.accumulator import StepAccumulator
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.ranks.learning.rows import RankRow, RankRows
from adc_edge.cloud_trainer.ranks.learning.steps import RankSteps
from adc_edge.cloud_trainer.record.use import UseMeter


class Adds(Protocol):
    """The part of the exchange between ranks that adds tensors."""

    def sum(self, flat: Tensor) -> None:
        """Replace a float32 vector by the sum of those of all ranks, the same bits everywhere."""
        ...


class Lockstep:
    """Learns the steps of a rank together with those of the others.

    Args:
        training: the head's training, alike on all ranks.
        steps: those that wait for the round.
        exchange: adds the gradients.
        rank: this one.
        use: counts the optimizer's seconds.
    """

    def __init__(
        self, training: HeadTraining, steps: RankSteps, exchange: Adds, rank: int, use: UseMeter | None = None
    ) -> None:
        self._training, self._steps, self._exchange, self._rank = training, steps, exchange, rank
        self._use = use or UseMeter()
        self._flat: Tensor | None = None  # gradients of all parameters, then 1 for each parameter that has one

    @property
    def ready(self) -> bool:
        """Whether a step waits for the round: no other one may be computed before."""
        return bool(self._steps.waiting)

    def row(self) -> RankRow:
        """Return this rank's row of steps."""
        return self._steps.row()._replace(head_step=self._training.steps, full=int(self.ready))

    def learn(self, table: RankRows, wanted: bool) -> int:
        """Learn the steps of the round, and return their number.

        Args:
            table: the rows of all ranks.
            wanted: whether a checkpoint is to follow; here that makes no difference.
        """
        table.check_alike()
        count = table.total("steps")
        if not count:
            return 0
        micros, self._steps.waiting = self._steps.waiting, []
        gradients = self._sum([micro.totals for micro in micros], table)
        begun, before = time.monotonic(), self._training.steps
        length = before + count + table.total("to_come")
        if self._rank == 0:
            self._steps.tell_length(length)
        together = StepAccumulator(1)
        together.gradients = gradients
        self._training.update(together, length if table.planned() else 0)
        self._training.steps = before + count
        self._use.update += time.monotonic() - begun
        self._steps.count(micros, before + table.before(self._rank), before + count)
        return count

    def _sum(self, totals: Sequence[StepAccumulator], table: RankRows) -> list[Tensor | None]:
        """The weighted sum over all ranks of the gradients of each parameter; None: it has none on any rank.

        Args:
            totals: the steps of this rank. One with gradients has also those of the steps after it that have none:
                they went through a merged pass. Where that failed, each step has its own.
            table: the rows of all ranks.
        """
        parameters = self._training.parameters
        if self._flat is None:
            size = sum(parameter.numel() for parameter in parameters) + len(parameters)
            self._flat = torch.zeros(size, device=self._training.device)
        parts, marks = self._views(self._flat)
        self._flat.zero_()
        for number, total in enumerate(totals):
            if not total.gradients:
                continue
            merged = [total, *takewhile(lambda other: not other.gradients, totals[number + 1 :])]
            weight = table.weight(sum(step.images for step in merged), len(merged))
            for index, gradient in enumerate(total.gradients):
                if gradient is not None:
                    parts[index].add_(gradient, alpha=weight)
                    marks[index] = 1.0
        self._exchange.sum(self._flat)
        has = marks.tolist()
        return [part if mark else None for part, mark in zip(parts, has, strict=True)]

    def _views(self, flat: Tensor) -> tuple[list[Tensor], Tensor]:
        parameters, parts, start = self._training.parameters, list[Tensor](), 0
        for parameter in parameters:
            parts.append(flat[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()
        return parts, flat[start:]
