"""Merged passes: waiting steps of several sessions go through the head as one batch.

With g_i the gradient of session i's loss, a mean over its clusters, with respect to the head's weights w, all taken at
the same w, and n_i its images out of m sessions:

    sum     one optimizer step with  sum_i (n_i / n) g_i,  where n is the mean of the n_i
    each    an optimizer step with g_1, then one with g_2, …, in the order of their turns

The answer of each device is the gradient of its own loss at w with respect to its activations, as if it had come
alone. Unmerged, g_2 would be taken after the step with g_1.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from adc_edge.arrays import Float32
from adc_edge.cloud_trainer.accumulator import StepAccumulator
from adc_edge.cloud_trainer.head import HeadTraining, Learned, not_finite
from adc_edge.cloud_trainer.scheduling.messages import QueuedMessage
from adc_edge.defaults import MergePasses
from adc_edge.wire.messages import Step

MOST_MERGED = 16  # steps in one pass; `each` holds as many gradients of the head

MergedInput = tuple[Tensor, Float32, int]  # activations [T, k, D] on the head's device, soft labels [T, C], images


@dataclass(frozen=True)
class Merging:
    """The rule by which steps of several sessions are learned together.

    Args:
        how: ``off``, ``sum`` or ``each``.
        most_rows: largest number of tokens, T k of all steps together: as many as one message may have.
    """

    how: MergePasses = "off"
    most_rows: int = 0

    def most(self, first: QueuedMessage) -> int:
        """Return how many steps may be learned together with that of a message, itself among them."""
        message = first.message
        if self.how == "off" or not isinstance(message, Step) or not is_whole_step(first):
            return 1
        return max(1, min(MOST_MERGED, self.most_rows // (message.clusters * message.kept)))

    def fits(self, first: QueuedMessage, other: QueuedMessage) -> bool:
        """Return whether another session's step can be learned with the first one: a whole step of the same shape."""
        return is_whole_step(other) and _shape(first) == _shape(other)

    def learn(
        self, training: HeadTraining, inputs: Sequence[MergedInput], totals: Sequence[StepAccumulator]
    ) -> list[Learned]:
        """Forward and backward of several steps at the same weights; ``update`` follows for each, in order.

        Args:
            training: the head's training.
            inputs: the steps, of equal shape.
            totals: sums of each step, empty so far. With ``sum`` the first one gets the gradients of all.

        Raises:
            ProtocolError: code ``nan``: a loss or a gradient is not finite; head and ``totals`` stay as they were.
        """
        start = time.monotonic()
        training.head.train()
        training.start_generators(0)
        z = torch.stack([activations for activations, _, _ in inputs])  # [m, T, k, D]
        target = torch.stack([training.here(soft) for _, soft, _ in inputs])  # [m, T, C]
        if self.how == "each":
            losses, logits, own, of_z = _each(training, z, target)
        else:
            images = torch.tensor([float(images) for _, _, images in inputs], device=z.device)
            losses, logits, own, of_z = _sum(training, z, target, images / images.mean())
        values, sums = losses.tolist(), of_z.sum(dim=(1, 2, 3), dtype=torch.float64).tolist()
        if faults := [loss for loss, total in zip(values, sums, strict=True) if not math.isfinite(loss + total)]:
            raise not_finite(faults[0])
        hits = target.gather(2, logits.argmax(dim=2, keepdim=True)).mean(dim=(1, 2)).tolist()
        for step, gradients, loss, accuracy in zip(totals, own, values, hits, strict=True):
            step.add(gradients, loss, accuracy)
        seconds = time.monotonic() - start
        return [Learned(*figures, of_z[i], seconds) for i, figures in enumerate(zip(values, hits, strict=True))]


_Pass = tuple[Tensor, Tensor, list[list[Tensor | None]], Tensor]  # losses [m], logits, gradients: the head's, z's


def _sum(training: HeadTraining, z: Tensor, target: Tensor, weights: Tensor) -> _Pass:
    z.requires_grad_()
    with training.autocast():
        logits = training.head(z.flatten(0, 1)).float().unflatten(0, z.shape[:2])  # [m, T, C]
        losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(0, 1), reduction="none").view(len(z), -1).mean(1)
    wanted = [*training.parameters, z]
    gradients = torch.autograd.grad((losses * weights).sum(), wanted, allow_unused=True)
    of_z = gradients[-1] / weights.view(-1, 1, 1, 1)
    nothing: list[list[Tensor | None]] = [[] for _ in range(len(z) - 1)]
    return losses.detach(), logits.detach(), [list(gradients[:-1]), *nothing], of_z


def _each(training: HeadTraining, z: Tensor, target: Tensor) -> _Pass:
    """One batched forward and backward that keeps the sessions' gradients of the head apart."""
    names = [name for name, parameter in training.head.named_parameters() if parameter.requires_grad]
    weights = {name: p.detach() for name, p in training.head.named_parameters()}

    def loss(learned: dict[str, Tensor], z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = functional_call(training.head, weights | learned, (z,)).float()
        return F.cross_entropy(logits, target), logits.detach()

    learned = {name: weights[name] for name in names}
    function = vmap(grad_and_value(loss, argnums=(0, 1), has_aux=True), in_dims=(None, 0, 0), randomness="different")
    with training.autocast(), sdpa_kernel(SDPBackend.MATH):  # the others have no rule for vmap
        (of_head, of_z), (losses, logits) = function(learned, z, target)
    return losses, logits, [[of_head[name][i] for name in names] for i in range(len(z))], of_z


def is_whole_step(queued: QueuedMessage) -> bool:
    """Return whether a message is the whole of its session's next step."""
    session, message = queued.peer.session, queued.message
    return isinstance(message, Step) and session is not None and session.is_next_step(message)


def _shape(queued: QueuedMessage) -> tuple[int, int] | None:
    message = queued.message
    return (message.clusters, message.kept) if isinstance(message, Step) else None
