"""A compressed batch in NumPy, which engines return and messages carry (paper, section "ADC")."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from adc_edge.arrays import Float32, Int64


class CompressedBatch(NamedTuple):
    """A batch after ADC, without empty clusters; T counts the clusters that are left."""

    activations: Float32  # [T, k, D]
    assignment: Int64  # [B], in [0, T)
    tokens: Int64  # [T, k]
    hidden: Float32 | None = None  # [B, N, D] after the frozen blocks, on request


class Compressor(Protocol):
    """Anything that runs trunk + ADC."""

    def compress(self, images: Float32, init_rows: Int64, slots: int) -> CompressedBatch:
        """Compress ``[B, C, H, W]``, given rows ``[T]`` that start k-means and S patch tokens to keep."""


def drop_empty(activations: Any, assignment: Any, tokens: Any, counts: Any) -> tuple[Any, Any, Any]:
    """Drop clusters without members and renumber the others; NumPy arrays or torch tensors.

    Args:
        activations: ``[T, k, D]``.
        assignment: cluster of each image, ``[B]``.
        tokens: ``[T, k]``.
        counts: members of each cluster, ``[T]``.

    Returns:
        The first three arguments, for the clusters that have members.
    """
    used = counts > 0
    if used.all():
        return activations, assignment, tokens
    number = used.cumsum(0) - 1
    return activations[used], number[assignment], tokens[used]
