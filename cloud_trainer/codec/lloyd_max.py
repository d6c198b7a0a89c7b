"""Codes and levels of a normal variable, by the tables of `adc_edge/codec/lloyd_max.py`, and the same ones."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adc_edge.codec.lloyd_max import CODES, COMPARED, GRID, LARGEST_WIDTH, REACH, tables

_CELLS = 2 * REACH


def codes(x: Tensor, widths: Tensor) -> Tensor:
    """Return the codes of the nearest levels, int64.

    Args:
        x: float32 values in standard deviations, any shape.
        widths: int64, bits of each code, 0 to 8; broadcast to the shape of ``x``.
    """
    cells = (x * GRID).add_(REACH).clamp_(0, _CELLS - 1).nan_to_num_(0.0).long()
    cells += widths * _CELLS
    found = _tables(x.device)
    return found.lower[cells] + (x >= found.bounds[cells])


def values(chosen: Tensor, widths: Tensor) -> Tensor:
    """Return the levels, float32 in standard deviations, that codes of ``widths`` bits stand for; both are int64."""
    return _tables(chosen.device).levels[widths * CODES + chosen]


class _CellTables(NamedTuple):
    """A flat table each, by width and cell, or by width and code."""

    lower: Tensor  # int64, the code at the lower end of a cell, or the only one
    bounds: Tensor  # float32, from where on the next code is nearer; infinity where that is beyond the cell
    levels: Tensor


@functools.cache
def _tables(device: torch.device) -> _CellTables:
    known = tables()
    lower = known.by_cell.astype(np.int64)
    bounds = np.full(lower.shape, np.inf, np.float32)
    edges = (np.arange(_CELLS + 1) - REACH) / GRID
    for width in range(1, COMPARED + 1):  # NumPy's codec compares with each bound there
        lower[width] = np.searchsorted(known.bounds[width], edges[:-1])
        following = np.append(known.bounds[width], np.float32(np.inf))[lower[width]]
        bounds[width] = np.where(following < edges[1:], following, np.inf)
    assert lower.shape == (1 + LARGEST_WIDTH, _CELLS)
    arrays = (lower.reshape(-1), bounds.reshape(-1), known.levels)
    return _CellTables(*(torch.from_numpy(array).to(device) for array in arrays))
