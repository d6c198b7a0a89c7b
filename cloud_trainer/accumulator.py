"""Sums of one step of the head over its micro-batches: gradients, loss and what the metrics tell."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from adc_edge.wire.messages import Step


class StepAccumulator:
    """Sums over the micro-batches of one step; the optimizer takes the gradients once the last one is in.

    Each session has its own, so that micro-batches of several devices that arrive in turns do not meet in one sum.

    Args:
        micro_batches: M, number of micro-batches in the step.
    """

    def __init__(self, micro_batches: int) -> None:
        self.micro_batches, self.learned = micro_batches, 0
        self.gradients: list[Tensor | None] = []
        self.loss = self.accuracy = self.seconds = 0.0  # loss and accuracy: means over the whole step, so far
        self.images = self.clusters = self.bytes_up = self.bytes_down = 0

    @property
    def share(self) -> float:
        """Weight of one micro-batch in the step, whose loss is the mean over them."""
        return 1.0 / self.micro_batches

    @property
    def complete(self) -> bool:
        """Whether the last micro-batch is in."""
        return self.learned >= self.micro_batches

    def add(self, gradients: Sequence[Tensor | None], loss: float, accuracy: float) -> None:
        """Count one micro-batch, whose gradients are those of ``share`` times its loss."""
        if self.learned == 0:
            self.gradients = list(gradients)
        else:
            for total, gradient in zip(self.gradients, gradients, strict=True):
                if total is not None and gradient is not None:
                    total.add_(gradient)
        self.loss += self.share * loss
        self.accuracy += self.share * accuracy
        self.learned += 1

    def add_cost(self, message: Step, answer_bytes: int, seconds: float) -> None:
        """Count the images, bytes and seconds of a micro-batch."""
        self.images += message.images
        self.clusters += message.clusters
        self.bytes_up += message.body_bytes
        self.bytes_down += answer_bytes
        self.seconds += seconds
