"""Augmentation of stored activations, as images can no longer be augmented: tokens are left out, or exchanged.

Position is in the tokens themselves, so a head takes any set of them.

Letters: T rows (images or clusters), k tokens (P prefix tokens first), D channels, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from adc_edge.arrays import Float32


class AugmentedRows(NamedTuple):
    """Activations ``[T, k, D]`` and their soft labels ``[T, C]``."""

    activations: Tensor
    soft: Float32


class TokenAugmentation(msgspec.Struct, frozen=True):
    """Settings of the augmentation of stored rows.

    Args:
        drop: share of the patch tokens that is left out of a row, others in each step.
        mix: parameter of the Beta distribution of the share of patch tokens that a row takes from another one; 0: none.
    """

    drop: float = 0.0
    mix: float = 0.0

    @property
    def is_active(self) -> bool:
        """Whether any row is changed."""
        return bool(self.drop or self.mix)

    @property
    def in_words(self) -> str:
        """The changes, for people."""
        drop = f"{self.drop:.0%} of the patch tokens left out" if self.drop else ""
        mix = f"tokens exchanged by Beta({self.mix:g}, {self.mix:g})" if self.mix else ""
        return ", ".join(filter(None, (drop, mix)))

    def augmented(self, activations: Tensor, soft: Float32, prefix: int, rng: np.random.Generator) -> AugmentedRows:
        """Return the rows of a micro-batch augmented: first tokens are left out, then exchanged.

        Args:
            activations: ``[T, k, D]``.
            soft: soft labels ``[T, C]``.
            prefix: P.
            rng: makes every choice.
        """
        if self.drop:
            activations = without_tokens(activations, prefix, self.drop, rng)  # [T, k', D]
        if self.mix:
            return exchanged(activations, soft, prefix, self.mix, rng)
        return AugmentedRows(activations, soft)


NO_AUGMENTATION = TokenAugmentation()


def without_tokens(activations: Tensor, prefix: int, share: float, rng: np.random.Generator) -> Tensor:
    """Return ``[T, k', D]``: each row without a random ``share`` of its patch tokens, but for one at least.

    The prefix tokens stay. Position is in the tokens, so none has to be known (as in PatchDropout, 2208.07220).
    """
    rows, kept, dim = activations.shape
    patches = kept - prefix
    left = max(1, patches - int(share * patches))
    chosen = np.sort(np.argsort(rng.random((rows, patches)), axis=1)[:, :left], axis=1) + prefix
    first = np.broadcast_to(np.arange(prefix), (rows, prefix))
    tokens = torch.from_numpy(np.concatenate([first, chosen], axis=1)).to(activations.device)
    return activations.gather(1, tokens.unsqueeze(-1).expand(-1, -1, dim))


def exchanged(activations: Tensor, soft: Float32, prefix: int, alpha: float, rng: np.random.Generator) -> AugmentedRows:
    """Return rows with a share of the patch tokens, and as large a share of the label, of another row.

    CutMix (1905.04899) on tokens: random columns, the same in all rows, are those of the partner. They are the same
    places of the images only where all tokens are there. The share is drawn from Beta(``alpha``, ``alpha``) and rounded
    to whole tokens. Prefix tokens stay the row's own. A single row stays as it is.

    Args:
        activations: ``[T, k, D]``.
        soft: soft labels ``[T, C]``.
        prefix: P.
        alpha: above 0.
        rng: makes every choice.
    """
    rows, kept, _ = activations.shape
    patches = kept - prefix
    taken = round(rng.beta(alpha, alpha) * patches)
    partners = rng.permutation(rows)
    if not taken:
        return AugmentedRows(activations, soft)
    places = torch.from_numpy(rng.permutation(patches)[:taken] + prefix).to(activations.device)
    others = torch.from_numpy(partners).to(activations.device)
    taken_over = activations.index_copy(1, places, activations.index_select(1, places)[others])
    share = np.float32(taken / patches)
    return AugmentedRows(taken_over, (1 - share) * soft + share * soft[partners])
