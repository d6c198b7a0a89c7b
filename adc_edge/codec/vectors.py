"""Basis vectors and mean of a low-rank message (`lowrank.py`): their codes, of one width a vector, and bit planes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from adc_edge.arrays import Float32, UInt8
from adc_edge.codec import lloyd_max

# Factors on a vector's entries before they are quantised, 3 dB apart; the one that keeps the direction best is used.
# Entries of most vectors are spread like a normal variable (factor 1); a few large ones would be cut off at 1.
SPREADS = 2.0 ** (-0.5 * np.arange(7))


def vector_codes(vectors: Float32, widths: UInt8) -> UInt8:
    """Return codes ``[m, D]`` of ``widths`` ``[m]`` bits whose vectors are closest to ``vectors`` in direction."""
    x = unit_vectors(vectors) * np.float32(math.sqrt(vectors.shape[1]))
    best, chosen = np.full(len(x), -math.inf, np.float32), np.zeros(x.shape, np.uint8)
    left, peaks = np.arange(len(x)), np.abs(x).max(axis=1, initial=0.0)
    outermost = lloyd_max.values((np.left_shift(1, widths) - 1).astype(np.uint8), widths)
    for spread in SPREADS:
        codes = _codes(x[left] * np.float32(spread), widths[left])
        decoded = lloyd_max.values(codes, widths[left, None])
        along, length = np.einsum("md,md->m", x[left], decoded), np.sqrt(np.einsum("md,md->m", decoded, decoded))
        cosine = np.divide(along, length, out=np.zeros_like(along), where=length > 0)  # times sqrt(D)
        better = cosine > best[left]
        best[left[better]], chosen[left[better]] = cosine[better], codes[better]
        # A smaller factor brings nothing where this one brought nothing, unless it still cuts the largest entry off.
        left = left[better | (peaks[left] * spread > outermost[left])]
    return chosen


def decoded_vectors(codes: UInt8, widths: UInt8) -> Float32:
    """Return the vectors ``[m, D]``, of length one, or zero where codes have no bits."""
    return unit_vectors(lloyd_max.values(codes, widths[:, None]))


def unit_vectors(vectors: Float32) -> Float32:
    """Return the vectors ``[m, D]`` scaled to length one; zero stays zero."""
    lengths = np.sqrt(np.einsum("md,md->m", vectors, vectors))[:, None]
    unit: Float32 = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return unit


def _codes(x: Float32, widths: UInt8) -> UInt8:
    codes = np.empty(x.shape, np.uint8)
    for same, width in runs(widths):
        codes[same] = lloyd_max.codes(x[same], width)
    return codes


def runs(widths: UInt8) -> Iterator[tuple[slice, int]]:
    """Yield the places of neighbours of the same width, and that width."""
    ends = [*(np.flatnonzero(widths[1:] != widths[:-1]) + 1).tolist(), len(widths)]
    for start, end in zip([0, *ends], ends, strict=False):
        if start < end:
            yield slice(start, end), int(widths[start])


def planes_bytes(widths: UInt8, size: int) -> int:
    """Return the size of the planes of vectors with ``size`` entries each."""
    wider = (widths[:, None] > np.arange(lloyd_max.LARGEST_WIDTH)).sum(axis=0)
    return int((-(-wider * size // 8)).sum())


def pack_vectors(codes: UInt8, widths: UInt8) -> bytes:
    """Return the planes of codes ``[m, D]``."""
    planes = [codes[widths > bit] & np.uint8(1 << bit) for bit in range(lloyd_max.LARGEST_WIDTH)]
    return b"".join(np.packbits(plane, bitorder="little").tobytes() for plane in planes)


def unpack_vectors(data: memoryview, at: int, widths: UInt8, size: int) -> UInt8:
    """Return the codes ``[m, size]`` whose planes begin at offset ``at``."""
    codes = np.zeros((len(widths), size), np.uint8)
    for bit in range(lloyd_max.LARGEST_WIDTH):
        kept = widths > bit
        shape = int(np.count_nonzero(kept)), size
        plane = np.frombuffer(data, np.uint8, -(-math.prod(shape) // 8), at)
        codes[kept] |= np.unpackbits(plane, count=math.prod(shape), bitorder="little").reshape(shape) << np.uint8(bit)
        at += len(plane)
    return codes
