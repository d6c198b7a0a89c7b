"""Arithmetic work of a trunk's parts for one image, by which measured seconds are carried over to other shapes.

Only matrix products are counted, in multiplications and additions. The elementwise rest grows with them.

Letters: N tokens, D channels, m width of the MLP, B images, T clusters, k kept tokens.
"""

from __future__ import annotations

from adc_edge.method.ratio import Shape
from adc_edge.method.spec import TrunkSpec

_ASSIGNMENTS = 10  # Lloyd iterations of ADC's k-means


def embedding_operations(spec: TrunkSpec) -> float:
    """Return the operations of the patch embedding."""
    return 2.0 * spec.patches * spec.embed_dim * spec.channels * spec.patch_size[0] * spec.patch_size[1]


def block_operations(tokens: int, dim: int, mlp_dim: int) -> float:
    """Return the operations of a block that computes all its ``tokens``."""
    return 2.0 * tokens * dim * (4 * dim + 2 * tokens + 2 * mlp_dim)


def last_operations(shape: Shape, dim: int, mlp_dim: int) -> float:
    """Return the operations of the last block with ADC, which computes what is sent.

    Keys and values are those of all tokens. Queries, attention output and fc1 follow for k tokens, fc2 for T images in
    place of B. The mean over the clusters is a product with a [T, B] matrix, so T operations for each value of an
    image.
    """
    n, k, t = shape.tokens, shape.kept, shape.clusters
    keys_values, queries, attention, out = 2 * n * dim * 2 * dim, 2 * k * dim * dim, 4 * k * n * dim, 2 * k * dim * dim
    fc1, fc2 = 2 * k * dim * mlp_dim, 2 * k * dim * mlp_dim * t / shape.images
    merging, kmeans = 2 * t * k * (mlp_dim + dim), 4 * _ASSIGNMENTS * t * n
    return float(keys_values + queries + attention + out + fc1 + fc2 + merging + kmeans)


def last_work(shape: Shape, dim: int, mlp_dim: int) -> float:
    """Return the operations of the last block with ADC as a share of those of a whole block."""
    return last_operations(shape, dim, mlp_dim) / block_operations(shape.tokens, dim, mlp_dim)
