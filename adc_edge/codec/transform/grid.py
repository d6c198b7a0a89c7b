"""Cosine transform of the patch tokens, which lie on a square grid."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from adc_edge.arrays import Float32, Int64


class Grid(NamedTuple):
    """Where the tokens of an image lie: ``prefix`` of them in front (CLS, registers), then ``side`` times ``side``."""

    prefix: int
    side: int

    def bands(self) -> Int64:
        """Return the band of each token, ``[N]``: one for each token in front, then one for each sum of frequencies."""
        sums = np.add.outer(np.arange(self.side), np.arange(self.side)).reshape(-1)
        return np.concatenate((np.arange(self.prefix), self.prefix + sums))

    def band_count(self) -> int:
        """Return how many bands there are."""
        return self.prefix + max(0, 2 * self.side - 1)

    def transform(self, x: Float32) -> Float32:
        """Return the coefficients of ``x``, both ``[B, N, r]``; the tokens in front stay as they are."""
        return self._apply(x, _cosines(self.side))

    def inverse(self, x: Float32) -> Float32:
        """Return ``x`` of its coefficients, both ``[B, N, r]``."""
        return self._apply(x, _cosines(self.side).T)

    def _apply(self, x: Float32, matrix: Float32) -> Float32:
        images, _, width = x.shape
        if self.side < 2:
            return x
        patches = x[:, self.prefix :].reshape(images, self.side, self.side * width)
        patches = np.matmul(matrix, patches).reshape(images * self.side, self.side, width)
        out = np.empty_like(x)
        out[:, : self.prefix] = x[:, : self.prefix]
        out[:, self.prefix :] = np.matmul(matrix, patches).reshape(images, self.side * self.side, width)
        return out


def whole_grid(tokens: int) -> Grid:
    """Return the largest square that ``tokens`` can hold, the others in front of it: 197 are 1 and 14 times 14."""
    side = math.isqrt(tokens)
    return Grid(tokens - side * side, side)


def no_grid(tokens: int) -> Grid:
    """Return ``tokens`` patches in one band, for tokens without fixed places."""
    return Grid(tokens, 0)


@functools.lru_cache(maxsize=8)
def _cosines(side: int) -> Float32:
    """The orthonormal DCT-II, ``[frequency, place]``."""
    places = np.arange(max(side, 1))
    matrix = np.cos(np.pi / len(places) * np.outer(places, places + 0.5)) * math.sqrt(2 / len(places))
    matrix[0] /= math.sqrt(2)
    return matrix.astype(np.float32)
