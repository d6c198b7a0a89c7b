"""Tensors that the tests of the transform codec share."""

from __future__ import annotations

import math

import numpy as np

from adc_edge.arrays import Float32


def smooth_grids(images: int, side: int, width: int, prefix: int = 1, seed: int = 0) -> Float32:
    """Tokens like their neighbours, in directions of unlike variance, around a mean image: as activations are."""
    rng = np.random.default_rng(seed)
    grid = rng.standard_normal((images, side, side, width))
    for axis in (1, 2):
        for _ in range(2):
            grid = (grid + np.roll(grid, 1, axis)) / math.sqrt(2)
    shared = rng.standard_normal((1, side * side + prefix, width))
    each = np.concatenate(
        (rng.standard_normal((images, prefix, width)), grid.reshape(images, side * side, width)), axis=1
    )
    directions = np.linalg.qr(rng.standard_normal((width, width)))[0] * 2.0 ** (-np.arange(width) / 8)[:, None]
    tokens: Float32 = ((each + 0.7 * shared) @ directions + 0.2 * rng.standard_normal(width)).astype(np.float32)
    return tokens


def rows_alone(*shape: int, seed: int = 0) -> Float32:
    """Tokens without any likeness beyond directions of unlike variance."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((shape[-1], shape[-1])))[0]
    directions *= 2.0 ** (-np.arange(shape[-1]) / 8)[:, None]
    rows: Float32 = (rng.standard_normal(shape) @ directions).astype(np.float32)
    return rows


def relative_error(back: Float32, x: Float32) -> float:
    """Squared error as a share of the squares of ``x`` around the rows' mean."""
    exact = x.astype(np.float64)
    around = exact - exact.reshape(-1, x.shape[-1]).mean(axis=0)
    return float(np.square(back - exact).sum() / np.square(around).sum())
