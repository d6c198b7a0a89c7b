"""Quantisers of a normal variable, 1 to 8 bits: the levels of least squared error (Max 1960), as tables.

A code of ``w`` bits is one of 2**w levels, the lowest first; zero bits mean zero. Levels lie closest where values are
most frequent, which at 4 bits saves a fifth of the error of evenly spaced ones.
"""

from __future__ import annotations

import functools
import math
from itertools import pairwise
from statistics import NormalDist

import numpy as np

from adc_edge.arrays import Float32, UInt8

LARGEST_WIDTH = 8
# Squared errors of 0 to 8 bits, in variances.
ERRORS = np.array([1.0, 0.36338, 0.11748, 0.03455, 0.009501, 0.002505, 0.000644, 0.0001635, 0.0000412])

_CODES = 2**LARGEST_WIDTH
_GRID = 256  # a value is looked up by its 256ths of a deviation; levels of 8 bits lie five of them apart, or more
_REACH = 5 * _GRID  # and as far as five deviations, beyond which only the outermost levels are nearest
_ROUNDS = 16  # of Lloyd's, which leave a third of a percent


def codes(x: Float32, widths: UInt8) -> UInt8:
    """Codes of the nearest levels.

    Args:
        x: in deviations, any shape, magnitudes up to 2**100.
        widths: bits of each, 0 to 8; broadcast to the shape of ``x``.
    """
    cells = x * np.float32(_GRID)
    cells += np.float32(_REACH)
    np.clip(cells, 0, 2 * _REACH - 1, out=cells)
    places = cells.astype(np.intp)
    places += np.multiply(widths, 2 * _REACH, dtype=np.intp)
    nearest: UInt8 = _tables()[0].take(places, mode="clip")
    return nearest


def values(chosen: UInt8, widths: UInt8) -> Float32:
    """Levels, in deviations, that codes of so many bits stand for."""
    places = np.multiply(widths, _CODES, dtype=np.intp) + chosen
    levels: Float32 = _tables()[1].take(places, mode="clip")
    return levels


@functools.cache
def _tables() -> tuple[UInt8, Float32]:
    """Codes by width and cell, and levels by width and code: each one flat array."""
    by_cell = np.zeros((LARGEST_WIDTH + 1, 2 * _REACH), np.uint8)
    levels = np.zeros((LARGEST_WIDTH + 1, _CODES), np.float32)
    middles = (np.arange(-_REACH, _REACH) + 0.5) / _GRID
    for width in range(1, LARGEST_WIDTH + 1):
        upper = np.array(_upper_levels(width))
        both = np.concatenate((-upper[::-1], upper))
        levels[width, : len(both)] = both
        by_cell[width] = np.searchsorted((both[1:] + both[:-1]) / 2, middles)
    return by_cell.reshape(-1), levels.reshape(-1)


def _upper_levels(width: int) -> list[float]:
    """The positive half of 2**width levels: Lloyd's rounds, from where ever more levels would lie (Panter, Dite)."""
    normal, count = NormalDist(), 2**width
    levels = [math.sqrt(3) * normal.inv_cdf((index + 0.5) / count) for index in range(count // 2, count)]
    for _ in range(_ROUNDS):
        bounds = [0.0, *((low + high) / 2 for low, high in pairwise(levels))]
        below = [*map(normal.cdf, bounds), 1.0]
        density = [*map(normal.pdf, bounds), 0.0]
        # Each becomes the mean of what lies between its bounds.
        levels = [(density[i] - density[i + 1]) / (below[i + 1] - below[i]) for i in range(len(levels))]
    return levels
