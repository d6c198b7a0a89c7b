"""``--sync K``: each rank learns its own devices' steps at once, and every K steps all heads become their mean.

With theta_r the parameters of rank r, and n_r the images that it has learned since the last average,

    theta = sum_r (n_r / sum n) theta_r

and the same for the floating state of the optimizer. This is not what one trainer computes: between two averages a head
has learned from the devices of its own rank alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.ranks.learning.lockstep import Adds
from adc_edge.cloud_trainer.ranks.learning.rows import RankRow, RankRows
from adc_edge.cloud_trainer.ranks.learning.steps import RankSteps
from adc_edge.cloud_trainer.record.use import UseMeter
from adc_edge.cloud_trainer.scheduling.steps import MicroBatch
from adc_edge.errors import RunError


class LocalSteps:
    """Learns the steps of one rank, and averages with the others.

    Between two averages the head counts its own rank's steps; after one, the steps of all. Lines of the metrics are
    written then, since a step's number depends on the other ranks'.

    Args:
        training: the head's training.
        steps: those that were answered.
        exchange: adds parameters and state.
        rank: this one.
        every: steps of a rank between two averages.
        use: counts the optimizer's seconds.
    """

    def __init__(
        self,
        training: HeadTraining,
        steps: RankSteps,
        exchange: Adds,
        rank: int,
        every: int,
        use: UseMeter | None = None,
    ) -> None:
        self._training, self._steps, self._exchange = training, steps, exchange
        self._rank, self._every, self._use = rank, every, use or UseMeter()
        self._done: list[MicroBatch] = []  # learned since the last average
        self._of_others = 0  # steps of other ranks, as of the last round: those not averaged, and those to come
        training.optimizer.fill()

    @property
    def ready(self) -> bool:
        """Whether this rank has done as many steps as there may be between two averages."""
        self._apply()
        return len(self._done) >= self._every

    def row(self) -> RankRow:
        """Return this rank's row of steps, those since the last average."""
        self._apply()
        images = sum(micro.totals.images for micro in self._done)
        agreed = self._training.steps - len(self._done)
        return RankRow(len(self._done), images, int(self.ready), to_come=self._steps.to_come, head_step=agreed)

    def learn(self, table: RankRows, wanted: bool) -> int:
        """Average if a rank has done its steps, or a checkpoint is to follow; return the number of steps since then."""
        table.check_alike()
        mine, count = table.rows[self._rank], table.total("steps")
        to_come = table.total("to_come")
        if self._rank == 0:
            self._steps.tell_length(mine.head_step + count + to_come)
        self._of_others = count - mine.steps + to_come - mine.to_come
        if not count or not (wanted or table.total("full")):
            return 0
        begun, before = time.monotonic(), mine.head_step
        self._average([row.images / table.total("images") for row in table.rows])
        self._training.steps = before + count
        self._of_others = to_come - mine.to_come
        self._use.update += time.monotonic() - begun
        done, self._done = self._done, []
        self._steps.count(done, before + table.before(self._rank), before + count)
        return count

    def _apply(self) -> None:
        """Learn the steps that were answered since the last call."""
        if not self._steps.waiting:
            return
        # This rank's own steps to come are those of now: a session that opened since the last round has some.
        length = self._training.steps + len(self._steps.waiting) + self._steps.to_come + self._of_others
        waiting, self._steps.waiting = self._steps.waiting, []
        for micro in waiting:
            self._training.update(micro.totals, length if micro.session.planned_steps else 0)
            micro.totals.gradients = []
            micro.session.record.head_step = self._training.steps
        self._done += waiting

    @torch.no_grad()
    def _average(self, weights: Sequence[float]) -> None:
        """Replace head and state by their mean; ``weights``: of each rank, the same on all."""
        tensors: list[Tensor] = [*self._training.parameters, *self._training.optimizer.state()]
        device = self._training.device
        flat = torch.cat([tensor.detach().to(device).float().reshape(-1) for tensor in tensors])
        self._exchange.sum(flat.mul_(weights[self._rank]))
        if not _is_finite(flat):  # the same bits on all ranks, so all of them ask
            self._raise_not_finite(all(map(_is_finite, tensors)), len(weights))
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view(tensor.shape))
            start += tensor.numel()

    def _raise_not_finite(self, finite: bool, world: int) -> NoReturn:
        """Raise RunError with the ranks whose heads are not finite; ``finite``: whether this one's is."""
        faulty = torch.zeros(world, device=self._training.device)
        faulty[self._rank] = float(not finite)
        self._exchange.sum(faulty)
        ranks = [str(rank) for rank, mark in enumerate(faulty.tolist()) if mark]
        whose = f"of rank{'s' * (len(ranks) > 1)} {', '.join(ranks)}" if ranks else "whose mean overflows, of all ranks"
        raise RunError(
            f"weights or optimizer state {whose} that are not finite",
            "finite ones",
            "lower --lr or set --clip-norm on both sides: from the last checkpoint, the same steps give this again",
        )


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
