"""Decode transform-coded tensors; `encoding.py` has the layout."""

from __future__ import annotations

import math

import numpy as np

from adc_edge.arrays import Float32, Int64
from adc_edge.codec.transform.head import TransformHead, layout, mean_steps, read_head, vector_scales
from adc_edge.codec.transform.symbols import read_symbols

_BELOW_ONE = np.float32(1 - 2.0**-24)


def decode_tensor(data: memoryview, shape: tuple[int, ...]) -> Float32:
    """Decode a tensor that ``encode_tensor`` encoded.

    Args:
        data: the whole message.
        shape: ``[..., D]``.

    Returns:
        A new tensor, finite.

    Raises:
        ProtocolError: no encoder writes such a message.
    """
    if not math.prod(shape):
        return np.empty(shape, np.float32)
    head, end = read_head(data, shape)
    width, rank = shape[-1], len(head.levels)
    images, grid = layout(shape, head.has_grid)
    symbols = read_symbols(data[end:], head.all_classes(grid, images, width), head.lanes)
    coded_means, coded = head.mean_classes(grid) >= 0, head.image_classes(grid) >= 0
    ends = np.cumsum([width, rank * width, np.count_nonzero(coded_means)])
    mean, vectors, mean_image, each = np.split(symbols, ends)
    coefficients = np.zeros((images, *coded.shape), np.float32)  # [B, N, rank]
    with np.errstate(over="ignore", invalid="ignore"):  # by levels that no encoder writes
        coefficients[:, coded] = (_values(each, head) * np.float32(head.step)).reshape(-1, images).T
        coefficients[:, coded_means] += (mean_image * (head.step / math.sqrt(images))).astype(np.float32)
        rows = grid.inverse(coefficients).reshape(images * len(coded), rank) @ decoded_vectors(
            vectors, head.quarters, width
        )
        rows += (mean * (head.step / mean_steps(len(rows)))).astype(np.float32)
    np.nan_to_num(rows, copy=False)
    np.clip(rows, -_BELOW_ONE, _BELOW_ONE, out=rows)  # all of x * 2**-e was below 1
    tensor: Float32 = np.ldexp(rows, head.exponent).reshape(shape)
    return tensor


def decoded_vectors(symbols: Int64, quarters: Int64, width: int) -> Float32:
    """Return the vectors ``[rank, D]`` of their symbols."""
    return (symbols.reshape(len(quarters), width) / vector_scales(quarters, width)[:, None]).astype(np.float32)


def _values(symbols: Int64, head: TransformHead) -> Float32:
    """The values of the images' symbols, in steps."""
    magnitudes = np.abs(symbols).astype(np.float32)
    ones, others = np.float32(head.ones / 128), np.float32(head.others / 128 - 1)
    where = np.where(magnitudes > 1, magnitudes + others, magnitudes * ones)
    values: Float32 = np.copysign(where, symbols.astype(np.float32), out=where)
    return values
