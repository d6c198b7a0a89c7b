"""Low-rank messages (pca4 ... pca0.0625): rows as coordinates in their own principal components, at few bits a value.

The tokens of a batch lie close to a small subspace: 16 of DeiT-T's 192 directions hold 85 % of the variance of its
activations. A message carries its own basis, so the two sides need no common state. Each row has a few coordinates in
that basis, with bits where they save the most squared error (`bit_allocation.py`). `docs/codec.md` explains it.

Layout (little endian), ``payload_bytes`` in all, unused bytes zero:
    int32 e; uint16 rank; int16 threshold; int16 vector offset; uint16 class bits, 4, or 0 if the rows have no classes;
    int16 levels of the mean and of the ``rank`` components.
    The classes: one plane for each class bit, lowest first, with a bit for each row.
    The codes of mean and vectors, D each, as planes; then the codes of the coordinates, ``rank`` for each row, as
    planes. Plane j has bit j of every code that is wider than j bits. In all planes eight bits fill a byte, the first
    one lowest.

A code stands for a level of a normal variable (`lloyd_max.py`). A coordinate's deviation is
``2**((level - 32 * class) / 64)``; vectors are scaled to length one, and the mean to ``2**(level / 64)`` times the root
mean square of the rows' ``2**(-class / 2)``. All of that describes ``x * 2**-e``, which is below 1 in magnitude.
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import numpy as np

from adc_edge.arrays import Float32, UInt8
from adc_edge.codec import lloyd_max
from adc_edge.codec.bit_allocation import (
    CLASS_BITS,
    LEVEL_DTYPE,
    AllocationCandidate,
    BitAllocation,
    allocation_candidates,
    empty_allocation,
)
from adc_edge.codec.casts import pack_bits, row_slices, unpack_bits
from adc_edge.errors import ProtocolError

_HEAD = struct.Struct("<iHhhH")
_EXPONENTS = range(-149, 129)  # float32's, as frexp returns them
_BELOW_ONE = np.float32(1 - 2.0**-24)
_RIDGE = 1e-4  # keeps the equations solvable where two quantised vectors coincide; ten times as much costs 1 %
# Factors on a vector's entries before they are quantised, 3 dB apart; the one that keeps the direction best is used.
# Entries of most vectors are spread like a normal variable (factor 1); a few large ones would be cut off at 1.
_SPREADS = 2.0 ** (-0.5 * np.arange(7))


def payload_bytes(rows: int, width: int, bits: float) -> int:
    """Return the size of an encoded ``[rows, width]`` tensor: ``bits`` a value, and never less than the mean takes."""
    mean_alone = _HEAD.size + LEVEL_DTYPE.itemsize + lloyd_max.LARGEST_WIDTH * -(-width // 8)
    return max(math.ceil(bits * rows * width / 8), mean_alone)


def encode_rows(x: Float32, out: UInt8) -> None:
    """Encode ``x`` to ``out``, as closely as the length of ``out`` allows; the mean of the rows always fits.

    Args:
        x: ``[rows, D]``, finite.
        out: ``[payload_bytes(rows, D, bits)]``.
    """
    peak = max(float(x.max(initial=0.0)), -float(x.min(initial=0.0)))
    exponent = math.frexp(peak)[1]
    best, message = math.inf, _pack_head(exponent, empty_allocation(len(x)))
    if peak > 0:
        rows = np.ldexp(x, -exponent)
        mean = rows.mean(axis=0)
        rows -= mean
        for candidate in allocation_candidates(rows, mean, len(out) - _HEAD.size):
            if candidate.error >= best:  # expected errors are close to real ones: most often one candidate is tried
                break
            error, codes = _code(candidate, rows, mean)
            if error < best:
                best, message = error, _pack_head(exponent, candidate.allocation) + codes
    out[: len(message)] = np.frombuffer(message, np.uint8)
    out[len(message) :] = 0


def decode_rows(data: memoryview, rows: int, width: int) -> Float32:
    """Decode a ``[rows, width]`` tensor that ``encode_rows`` encoded.

    Returns:
        A new tensor. It holds NaN if the message has levels that no encoder writes.

    Raises:
        ProtocolError: the message has a head that no encoder writes, or more codes than bytes.
    """
    exponent, allocation, at = _unpack_head(data, rows, width)
    entry_widths, widths = allocation.entry_widths(), allocation.widths()
    entries, at = _unpack_codes(data, at, np.repeat(entry_widths[:, None], width, axis=1))
    chosen, _ = _unpack_codes(data, at, widths)
    x = np.empty((rows, width), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # by levels that no encoder writes
        vectors = _vectors(entries, entry_widths) * allocation.lengths()[:, None]
        scales = allocation.scales()
        for part in row_slices(rows, width):
            np.matmul(lloyd_max.values(chosen[part], widths[part]) * scales[part], vectors[1:], out=x[part])
            x[part] += vectors[0]
            np.clip(x[part], -_BELOW_ONE, _BELOW_ONE, out=x[part])  # x * 2**-e was below 1, so x stays in float32
            np.ldexp(x[part], exponent, out=x[part])
    return x


def coordinates_in(data: memoryview, rows: int, width: int) -> slice:
    """Return the range of bytes that holds the planes of the coordinates; raises as ``decode_rows`` does."""
    _, allocation, at = _unpack_head(data, rows, width)
    start = at + _codes_bytes(np.repeat(allocation.entry_widths(), width))
    return slice(start, start + _codes_bytes(allocation.widths()))


class _Quantised(NamedTuple):
    """Quantised vectors and coordinates, and what the next two steps need to know of the rows."""

    vector_codes: UInt8  # [rank, D]
    coordinate_codes: UInt8  # [rows, rank]
    basis: Float32  # [rank, D], decoded vectors of length one
    gram: Float32  # [rank, rank], products of the decoded coordinates with one another
    products: Float32  # [rank, D], products of the decoded coordinates with the rows


def _code(candidate: AllocationCandidate, rows: Float32, mean: Float32) -> tuple[float, bytes]:
    """The squared error that a candidate leaves, and all its codes."""
    _, allocation, vectors = candidate
    entry_widths = allocation.entry_widths()
    mean_codes = _vector_codes(mean[None], entry_widths[:1])
    rows = rows + (mean - allocation.lengths()[0] * _vectors(mean_codes, entry_widths[:1])[0])
    quantised = _quantise(allocation, vectors, rows)
    # A second pass saves some percent of the error: it takes the vectors that fit the rounded coordinates best.
    quantised = _quantise(allocation, _solve(quantised.gram, quantised.products), rows)
    codes = np.concatenate((mean_codes, quantised.vector_codes))
    packed = _pack_codes(codes, np.repeat(entry_widths, rows.shape[1]))
    packed += _pack_codes(quantised.coordinate_codes, allocation.widths())
    return _squared_error(allocation, quantised, rows), packed


def _quantise(allocation: BitAllocation, vectors: Float32, rows: Float32) -> _Quantised:
    """Quantise the vectors, then each row's least-squares coordinates in the quantised vectors."""
    entry_widths, widths = allocation.entry_widths()[1:], allocation.widths()
    deviations, scales = allocation.lengths()[1:, None], allocation.scales()
    codes = _vector_codes(vectors, entry_widths)
    basis = _vectors(codes, entry_widths)
    dual: Float32 = _solve(basis @ basis.T, basis) / deviations  # quantised vectors are not orthogonal
    chosen = np.empty(widths.shape, np.uint8)
    gram, products = np.zeros((len(basis), len(basis)), np.float32), np.zeros_like(basis)
    for part in row_slices(*rows.shape):
        exact: Float32 = rows[part] @ dual.T / scales[part]
        chosen[part] = lloyd_max.codes(exact, widths[part])
        coordinates = lloyd_max.values(chosen[part], widths[part]) * scales[part]
        gram += coordinates.T @ coordinates
        products += coordinates.T @ rows[part]
    return _Quantised(codes, chosen, basis, gram, products)


def _squared_error(allocation: BitAllocation, quantised: _Quantised, rows: Float32) -> float:
    """Squared error of the rows as they will be decoded, from the products alone."""
    basis = quantised.basis * allocation.lengths()[1:, None]
    fitted = np.vdot(quantised.gram, basis @ basis.T)
    return float(np.vdot(rows, rows) - 2 * np.vdot(quantised.products, basis) + fitted)


def _solve(matrix: Float32, right: Float32) -> Float32:
    solution: Float32 = np.linalg.solve(matrix + np.diag(np.float32(_RIDGE) * matrix.diagonal()), right)
    return solution


def _vector_codes(vectors: Float32, widths: UInt8) -> UInt8:
    """Codes ``[m, D]`` whose decoded vectors are closest to ``vectors`` ``[m, D]`` in direction."""
    x = _unit(vectors) * np.float32(math.sqrt(vectors.shape[1]))
    best, chosen = np.full(len(x), -math.inf, np.float32), np.zeros(x.shape, np.uint8)
    for spread in _SPREADS:
        codes = lloyd_max.codes(x * np.float32(spread), widths[:, None])
        cosine = np.einsum("md,md->m", x, _vectors(codes, widths))  # times sqrt(D)
        better = cosine > best
        best[better], chosen[better] = cosine[better], codes[better]
    return chosen


def _vectors(codes: UInt8, widths: UInt8) -> Float32:
    """Decoded vectors ``[m, D]``, of length one, or zero where codes have no bits."""
    return _unit(lloyd_max.values(codes, widths[:, None]))


def _unit(vectors: Float32) -> Float32:
    lengths = np.sqrt(np.einsum("md,md->m", vectors, vectors))[:, None]
    unit: Float32 = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return unit


def _pack_head(exponent: int, allocation: BitAllocation) -> bytes:
    planes = np.zeros((CLASS_BITS * allocation.has_classes, -(-len(allocation.classes) // 8)), np.uint8)
    pack_bits(allocation.classes, planes)
    rank, offset = len(allocation.levels) - 1, allocation.vector_offset
    fixed = _HEAD.pack(exponent, rank, allocation.threshold, offset, len(planes))
    return fixed + allocation.levels.astype(LEVEL_DTYPE).tobytes() + planes.tobytes()


def _unpack_head(data: memoryview, rows: int, width: int) -> tuple[int, BitAllocation, int]:
    """Exponent and allocation of a message, and the offset at which its codes begin."""
    exponent, rank, threshold, offset, class_bits = _HEAD.unpack_from(data)
    at = _HEAD.size + LEVEL_DTYPE.itemsize * (1 + rank)
    end = at + class_bits * -(-rows // 8)
    if exponent not in _EXPONENTS or rank > width or class_bits not in (0, CLASS_BITS) or end > len(data):
        raise _broken(f"{rank} components of {width} channels with {class_bits} class bits in {len(data)} bytes")
    levels = np.frombuffer(data, LEVEL_DTYPE, 1 + rank, _HEAD.size).astype(np.int64)
    planes = np.frombuffer(data, np.uint8, end - at, at).reshape(class_bits, -(-rows // 8))
    classes = unpack_bits(planes, rows) if class_bits else np.zeros(rows, np.uint8)
    return exponent, BitAllocation(threshold, offset, levels, classes, bool(class_bits)), end


def _codes_bytes(widths: UInt8) -> int:
    """Size of the planes of codes of these widths."""
    counts = np.bincount(widths.reshape(-1), minlength=lloyd_max.LARGEST_WIDTH + 1)
    wider = counts[:0:-1].cumsum()  # codes wider than 7 bits, than 6, ...
    return int((-(-wider // 8)).sum())


def _pack_codes(codes: UInt8, widths: UInt8) -> bytes:
    codes, widths = codes.reshape(-1), widths.reshape(-1)
    planes = []
    for bit in range(lloyd_max.LARGEST_WIDTH):
        kept = widths > bit
        codes, widths = codes[kept], widths[kept]
        planes.append(np.packbits(codes & np.uint8(1 << bit), bitorder="little").tobytes())
    return b"".join(planes)


def _unpack_codes(data: memoryview, at: int, widths: UInt8) -> tuple[UInt8, int]:
    """The codes that ``_pack_codes`` packed at offset ``at``, and the offset of their end."""
    if len(data) - at < _codes_bytes(widths):
        raise _broken(f"more codes than fit into {len(data)} bytes")
    codes = np.zeros(widths.shape, np.uint8)
    for bit in range(lloyd_max.LARGEST_WIDTH):
        kept = widths > bit
        count = int(np.count_nonzero(kept))
        plane = np.frombuffer(data, np.uint8, -(-count // 8), at)
        codes[kept] |= np.unpackbits(plane, count=count, bitorder="little") << np.uint8(bit)
        at += len(plane)
    return codes, at


def _broken(what: str) -> ProtocolError:
    return ProtocolError(
        what, "a tensor as it was encoded", "install the same version of adc-edge on both sides", "size"
    )
