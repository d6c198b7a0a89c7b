"""The rest of a run once its trunk is frozen: the head goes on from activations that were sent before.

A frozen trunk's activations do not change. So the device sends those of the training images once more, an epoch of full
batches, and needs no gradient; the trainer keeps what comes, and after that no byte travels. One pass sends images that
are not augmented, several passes send as many augmented views. The same messages are sent by `serve --freeze-after
--send-epochs`, whose trainer keeps them as they came and goes through them in an order of its own.

Letters: R rows of k tokens each, as they came; D channels; C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from adc_edge.data.loader import Batch, Loader
from adc_edge.method.token_augmentation import NO_AUGMENTATION, TokenAugmentation

_ORDER, _AUGMENT = 9, 11  # random streams, apart from the loader's and the steps'


class StoredActivations:
    """Rows that the trainer has kept, in fp16, and the order in which its head learns from them.

    Args:
        batch_size: B, rows of a step.
        seed: of the order.
    """

    def __init__(self, batch_size: int, seed: int) -> None:
        self._batch_size, self._seed = batch_size, seed
        self._rows: list[Tensor] = []
        self._soft: list[Tensor] = []

    def __len__(self) -> int:
        """The number of rows."""
        return sum(map(len, self._rows))

    def add(self, rows: Tensor, soft: Tensor) -> None:
        """Keep rows ``[R, k, D]`` with their soft labels ``[R, C]``."""
        self._rows.append(rows.detach().half())
        self._soft.append(soft)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return rows ``[B, k, D]`` in float32, and soft labels ``[B, C]``: a function of seed and step.

        Each row comes once in an epoch of the store. A store of less than B rows gives them all.

        Args:
            step: steps since the store was filled.
        """
        if len(self._rows) > 1:
            self._rows, self._soft = [torch.cat(self._rows)], [torch.cat(self._soft)]
        rows, size = self._rows[0], min(self._batch_size, len(self))
        epoch, within = divmod(step, len(rows) // size)
        order = np.random.default_rng([self._seed, _ORDER, epoch]).permutation(len(rows))
        chosen = torch.from_numpy(order[within * size : (within + 1) * size])
        return rows[chosen].float(), self._soft[0][chosen]


class FrozenPhase:
    """The steps after the trunk is frozen: first images are sent, then the head goes on alone.

    Args:
        first_step: of the phase.
        alone_from: the first step after the passes in which images are sent.
        loader: the images; augmented only if there are several passes.
        augmentation: of the steps from ``alone_from`` on.
    """

    def __init__(
        self,
        first_step: int,
        alone_from: int,
        loader: Loader,
        augmentation: TokenAugmentation = NO_AUGMENTATION,
    ) -> None:
        self.first_step, self.alone_from, self._loader = first_step, alone_from, loader
        self._augmentation = augmentation
        self._store = StoredActivations(loader.batch_size, loader.seed)

    def images(self, step: int) -> Batch:
        """Return the images of a step of the run: a pass begins with ``first_step``, so that it has each image once."""
        return self._loader.batch(step - self.first_step)

    def keep(self, rows: Tensor, soft: Tensor) -> None:
        """Keep what came in a step: rows ``[R, k, D]`` with soft labels ``[R, C]``."""
        self._store.add(rows, soft)

    def fill(self, until: int, send: Callable[[int], tuple[Tensor, Tensor]]) -> None:
        """Fill the store of a run that goes on from step ``until``: ``send`` returns what came in a step before."""
        for step in range(self.first_step, min(until, self.alone_from)):
            self.keep(*send(step))

    def batch(self, step: int, prefix: int) -> tuple[Tensor, Tensor]:
        """Return rows ``[B, k, D]`` and soft labels ``[B, C]`` of a step of the run, from ``alone_from`` on.

        Args:
            step: of the run.
            prefix: P, the prefix tokens of a row; no augmentation changes them.
        """
        rows, soft = self._store.batch(step - self.alone_from)
        if not self._augmentation.is_active:
            return rows, soft
        rng = np.random.default_rng([self._loader.seed, _AUGMENT, step])
        augmented = self._augmentation.augmented(rows, soft.cpu().numpy(), prefix, rng)
        return augmented.activations, torch.from_numpy(augmented.soft).to(soft.device)
