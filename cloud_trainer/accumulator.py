"""A step of the head in parts: what its micro-batches have given so far."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class StepAccumulator:
    """Sums over the micro-batches of one step; the optimizer takes them once the last one is in.

    Each session has its own, so that devices whose micro-batches arrive in turns do not meet in one sum.

    Args:
        of: M, micro-batches of the step.
    """

    def __init__(self, of: int) -> None:
        self.of, self.done = of, 0
        self.gradients: list[Tensor | None] = []
        self.loss = self.accuracy = self.seconds = 0.0  # means over the whole step, so far
        self.images = self.clusters = self.bytes_up = self.bytes_down = 0

    @property
    def share(self) -> float:
        """Of one micro-batch in the step: the loss is their mean."""
        return 1.0 / self.of

    @property
    def complete(self) -> bool:
        """Whether the last micro-batch is in."""
        return self.done >= self.of

    def add(self, gradients: Sequence[Tensor | None], loss: float, accuracy: float) -> None:
        """Count one micro-batch, whose gradients are of ``share`` times its loss."""
        if self.done == 0:
            self.gradients = list(gradients)
        else:
            for total, gradient in zip(self.gradients, gradients, strict=True):
                if total is not None and gradient is not None:
                    total.add_(gradient)
        self.loss += self.share * loss
        self.accuracy += self.share * accuracy
        self.done += 1
