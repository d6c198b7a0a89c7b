"""The micro-batches of a step that a trainer does alone: a pure function of the store, the seed and the step.

The steps that are stored are the device's own, as they came. Later ones go over them in passes. A pass has the stored
steps in a random order, drawn from (seed, pass). MIXED_STEPS neighbours of that order are a group, whose rows are
shuffled, so that batches do not have the same images in every pass. A group is decoded once, so a step costs the
decoding of one step, as it does while the device sends. Groups are smaller where they would have more bytes than
GROUP_BYTES, as the first stored step tells. While a group is made, it needs thrice its bytes.

Letters: T rows (images or clusters), k tokens (P prefix tokens first), D channels, C classes.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adc_edge.arrays import Float32, Int64
from adc_edge.cloud_trainer.codec.on_device import decode_to
from adc_edge.cloud_trainer.store.session_store import SessionStore
from adc_edge.codec.precision import encoded_bytes
from adc_edge.method.labels import soft_labels
from adc_edge.method.token_augmentation import NO_AUGMENTATION, TokenAugmentation
from adc_edge.storage.bundle import Manifest
from adc_edge.wire.messages import Step

MIXED_STEPS = 8
GROUP_BYTES = 1 << 30  # most of a decoded group of several steps, and of all sessions' groups between two steps
_ORDER, _ROWS, _AUGMENT = range(101, 104)  # independent streams of random numbers


class StoredBatch(NamedTuple):
    """A micro-batch to learn: activations ``[T, k, D]`` on the head's device, soft labels ``[T, C]``, its images.

    ``message`` is the header of a message that it is made of.
    """

    activations: Tensor
    soft: Float32
    images: int
    message: Step


_NO_GROUP: tuple[tuple[int, int], list[list[StoredBatch]]] = ((-1, -1), [])


class StoredBatches:
    """Gives the micro-batches of any step of one session.

    Args:
        store: its messages; those of the steps ``kept`` are there.
        kept: the last steps that the device has sent.
        manifest: the bundle's.
        device: the head's.
        seed: the trainer's random seed.
        augmentation: of the steps after those that are kept.
        group_bytes: most bytes of a decoded group of several steps.
    """

    def __init__(
        self,
        store: SessionStore,
        kept: range,
        manifest: Manifest,
        device: torch.device,
        seed: int,
        augmentation: TokenAugmentation = NO_AUGMENTATION,
        group_bytes: int = GROUP_BYTES,
    ) -> None:
        self._store, self._kept, self._manifest, self._device = store, kept, manifest, device
        self._seed, self._augmentation, self._group_bytes = seed, augmentation, group_bytes
        self._group: tuple[tuple[int, int], list[list[StoredBatch]]] = _NO_GROUP  # the last one, decoded

    @property
    def held_bytes(self) -> int:
        """Size in bytes of the activations that are kept for the next steps."""
        return sum(batch.activations.nbytes for batches in self._group[1] for batch in batches)

    def release(self) -> None:
        """Drop what is kept for the next steps; they decode it again."""
        self._group = _NO_GROUP

    @cached_property
    def mixed_steps(self) -> int:
        """Number of steps in a group."""
        decoded = 0
        for micro_batch in range(self._store.micro_batches(self._kept.start)):
            message, _ = self._store.step(self._kept.start, micro_batch)
            decoded += message.clusters * message.kept * self._manifest.dim * np.dtype(np.float32).itemsize
        return max(1, min(MIXED_STEPS, self._group_bytes // max(1, decoded)))

    def step(self, step: int) -> list[StoredBatch]:
        """Return the micro-batches of a step, a kept one or later; raises CheckpointError if a message is damaged."""
        if step in self._kept:
            return self._stored(step)
        one_pass, within = divmod(step - self._kept.start, len(self._kept))
        group, place = divmod(within, self.mixed_steps)
        if self._group[0] != (one_pass, group):
            self.release()
            self._group = ((one_pass, group), self._mixed(one_pass, group))
        batches = self._group[1][place]
        if not self._augmentation.is_active:
            return batches
        rng = np.random.default_rng([self._seed, _AUGMENT, step])
        augmented = partial(self._augmentation.augmented, prefix=self._manifest.prefix, rng=rng)
        return [b._replace(**augmented(b.activations, b.soft)._asdict()) for b in batches]

    def _stored(self, step: int) -> list[StoredBatch]:
        """The micro-batches of a step as the device sent them."""
        found = []
        for micro_batch in range(self._store.micro_batches(step)):
            message, body = self._store.step(step, micro_batch)
            shape = (message.clusters, message.kept, self._manifest.dim)
            split = encoded_bytes(shape, message.precision)
            soft = soft_labels(body[split:], message.clusters, self._manifest.classes, message.images)
            activations = decode_to(self._device, body[:split], shape, message.precision)
            found.append(StoredBatch(activations, soft, message.images, message))
        return found

    def _mixed(self, one_pass: int, group: int) -> list[list[StoredBatch]]:
        """The steps of a group, their rows shuffled."""
        order = order_of_pass(self._seed, one_pass, len(self._kept)) + self._kept.start
        chosen = order[group * self.mixed_steps : (group + 1) * self.mixed_steps]
        stored = [self._stored(int(step)) for step in chosen]
        whole = [batch for batches in stored for batch in batches]
        if len({batch.activations.shape[1] for batch in whole}) > 1:  # of other numbers of tokens
            return stored
        rng = np.random.default_rng([self._seed, _ROWS, one_pass, group])
        parts = iter(shuffled(whole, rng))
        return [[next(parts) for _ in batches] for batches in stored]


def order_of_pass(seed: int, one_pass: int, steps: int) -> Int64:
    """Return the order of the stored steps in a pass over them: a permutation of ``steps`` numbers."""
    return np.random.default_rng([seed, _ORDER, one_pass]).permutation(steps).astype(np.int64)


def shuffled(batches: list[StoredBatch], rng: np.random.Generator) -> list[StoredBatch]:
    """Return as many micro-batches with the same rows in a random order; each keeps its number of rows and images."""
    rows = [len(batch.soft) for batch in batches]
    order = rng.permutation(sum(rows))
    activations, soft = torch.cat([batch.activations for batch in batches]), np.concatenate([b.soft for b in batches])
    parts = np.split(order, np.cumsum(rows)[:-1])
    return [
        batch._replace(activations=activations[torch.from_numpy(part).to(activations.device)], soft=soft[part])
        for batch, part in zip(batches, parts, strict=True)
    ]
