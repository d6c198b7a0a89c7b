"""Well under two bits a value: a tensor's rows in their own principal components, each with the bits it earns.

The tokens of a batch lie close to a small subspace: 16 of DeiT-T's 192 directions hold 85 % of what its activations
vary by. So a message carries its own basis (nothing that both sides would have to keep in step), and each row's few
coordinates in it, with bits where they save the most squared error (`bit_allocation.py`).

Layout (little endian), ``payload_bytes`` in all, unused bytes zero:
    int32 e; uint16 rank; int16 threshold; int16 basis; uint16 class bits, 0 where rows are too alike for classes, else
    4; int16 levels of the mean and of the ``rank`` components.
    Of 4 class bits a plane for each, lowest first, with a bit for each row.
    Planes of the codes of mean and vectors, D each, then planes of the coordinates, ``rank`` for each row. Plane j has
    bit j of every code that is wider than j bits. In all planes eight bits fill a byte, the first one lowest.

A code stands for a level of a normal variable (`lloyd_max.py`). A coordinate's deviation is
``2**((level - 32 * class) / 64)``; vectors are scaled to length one, and the mean to ``2**(level / 64)`` times the root
mean square of the rows' ``2**(-class / 2)``. All of that is of ``x * 2**-e``, below 1 in magnitude.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from adc_edge.arrays import Float32, UInt8
from adc_edge.codec import lloyd_max as normal
from adc_edge.codec.bit_allocation import (
    CLASS_BITS,
    LEVEL,
    AllocationCandidate,
    BitAllocation,
    allocation_candidates,
    empty_allocation,
)
from adc_edge.codec.casts import pack_bits, parts, unpack_bits
from adc_edge.errors import ProtocolError

_HEAD = struct.Struct("<iHhhH")
_EXPONENTS = range(-149, 129)  # of float32, as frexp gives them
_BELOW_ONE = np.float32(1 - 2.0**-24)
_RIDGE = 1e-4  # keeps equations solvable where two quantised vectors coincide
_SPREADS = 2.0 ** (-0.5 * np.arange(7))  # of a vector's entries: from a normal variable's to a single large one


def payload_bytes(rows: int, width: int, bits: float) -> int:
    """Size of an encoded ``[rows, width]`` tensor: ``bits`` a value in all, or what its mean alone takes."""
    mean_alone = _HEAD.size + LEVEL.itemsize + normal.LARGEST_WIDTH * -(-width // 8)
    return max(math.ceil(bits * rows * width / 8), mean_alone)


def encode_rows(x: Float32, out: UInt8) -> None:
    """Write ``x`` to ``out``, as closely as its length allows, and never worse than the mean of its rows alone.

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
            if candidate.error >= best:  # as a rule the first one turns out as expected, and is the last one tried
                break
            error, codes = _code(candidate, rows, mean)
            if error < best:
                best, message = error, _pack_head(exponent, candidate.plan) + codes
    out[: len(message)] = np.frombuffer(message, np.uint8)
    out[len(message) :] = 0


def decode_rows(data: memoryview, rows: int, width: int) -> Float32:
    """Read what ``encode_rows`` made of a ``[rows, width]`` tensor.

    Returns:
        A new tensor. It holds NaN if the message's levels are such as no encoder writes.

    Raises:
        ProtocolError: a head that no encoder writes, or more codes than there is room for.
    """
    exponent, plan, at = _unpack_head(data, rows, width)
    entry_widths, widths = plan.entry_widths(), plan.widths()
    entries, at = _unpack_codes(data, at, np.repeat(entry_widths[:, None], width, axis=1))
    chosen, _ = _unpack_codes(data, at, widths)
    x = np.empty((rows, width), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # levels of another make
        vectors = _vectors(entries, entry_widths) * plan.lengths()[:, None]
        scales = plan.scales()
        for part in parts(rows, width):
            np.matmul(normal.values(chosen[part], widths[part]) * scales[part], vectors[1:], out=x[part])
            x[part] += vectors[0]
            np.clip(x[part], -_BELOW_ONE, _BELOW_ONE, out=x[part])  # as all values were: none may leave float32
            np.ldexp(x[part], exponent, out=x[part])
    return x


def coordinates_in(data: memoryview, rows: int, width: int) -> slice:
    """Which bytes of what ``encode_rows`` wrote are the planes of the coordinates; raises as ``decode_rows``."""
    _, plan, at = _unpack_head(data, rows, width)
    start = at + _codes_bytes(np.repeat(plan.entry_widths(), width))
    return slice(start, start + _codes_bytes(plan.widths()))


def _code(candidate: AllocationCandidate, rows: Float32, mean: Float32) -> tuple[float, bytes]:
    """The squared error that a candidate comes to, and all its codes.

    Vectors are fitted to the coordinates as they were rounded, and these rounded anew: that saves some percent.
    """
    _, plan, vectors = candidate
    entry_widths, widths = plan.entry_widths(), plan.widths()
    lengths, scales = plan.lengths(), plan.scales()
    mean_codes = _vector_codes(mean[None], entry_widths[:1])
    rows = rows + (mean - lengths[0] * _vectors(mean_codes, entry_widths[:1])[0])
    chosen = np.empty(widths.shape, np.uint8)
    for again in (True, False):
        codes = _vector_codes(vectors, entry_widths[1:])
        basis = _vectors(codes, entry_widths[1:])
        dual: Float32 = _solve(basis @ basis.T, basis) / lengths[1:, None]  # quantised vectors are not orthogonal
        square, products = np.zeros((len(basis), len(basis)), np.float32), np.zeros_like(basis)
        for part in parts(*rows.shape):
            exact: Float32 = rows[part] @ dual.T / scales[part]
            chosen[part] = normal.codes(exact, widths[part])
            coordinates = normal.values(chosen[part], widths[part]) * scales[part]
            square += coordinates.T @ coordinates
            products += coordinates.T @ rows[part]
        if again:
            vectors = _solve(square, products)
    basis *= lengths[1:, None]
    error = float(np.vdot(rows, rows) - 2 * np.vdot(products, basis) + np.vdot(square, basis @ basis.T))
    codes, entry_widths = np.concatenate((mean_codes, codes)), np.repeat(entry_widths, rows.shape[1])
    return error, _pack_codes(codes, entry_widths) + _pack_codes(chosen, widths)


def _solve(matrix: Float32, right: Float32) -> Float32:
    solution: Float32 = np.linalg.solve(matrix + np.diag(np.float32(_RIDGE) * matrix.diagonal()), right)
    return solution


def _vector_codes(vectors: Float32, widths: UInt8) -> UInt8:
    """Codes ``[m, D]`` of vectors that point most nearly where ``vectors`` ``[m, D]`` do."""
    x = _unit(vectors) * np.float32(math.sqrt(vectors.shape[1]))
    best, chosen = np.full(len(x), -math.inf, np.float32), np.zeros(x.shape, np.uint8)
    for spread in _SPREADS:
        codes = normal.codes(x * np.float32(spread), widths[:, None])
        alike = np.einsum("md,md->m", x, _vectors(codes, widths))
        better = alike > best
        best[better], chosen[better] = alike[better], codes[better]
    return chosen


def _vectors(codes: UInt8, widths: UInt8) -> Float32:
    """Vectors of length one ``[m, D]``, or zero where there are no bits."""
    return _unit(normal.values(codes, widths[:, None]))


def _unit(vectors: Float32) -> Float32:
    lengths = np.sqrt(np.einsum("md,md->m", vectors, vectors))[:, None]
    unit: Float32 = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return unit


def _pack_head(exponent: int, plan: BitAllocation) -> bytes:
    planes = np.zeros((CLASS_BITS * plan.has_classes, -(-len(plan.classes) // 8)), np.uint8)
    pack_bits(plan.classes, planes)
    fixed = _HEAD.pack(exponent, len(plan.levels) - 1, plan.threshold, plan.basis, len(planes))
    return fixed + plan.levels.astype(LEVEL).tobytes() + planes.tobytes()


def _unpack_head(data: memoryview, rows: int, width: int) -> tuple[int, BitAllocation, int]:
    """Exponent and plan of a message, and where they end."""
    exponent, rank, threshold, basis, class_bits = _HEAD.unpack_from(data)
    at = _HEAD.size + LEVEL.itemsize * (1 + rank)
    end = at + class_bits * -(-rows // 8)
    if exponent not in _EXPONENTS or rank > width or class_bits not in (0, CLASS_BITS) or end > len(data):
        raise _broken(f"{rank} components of {width} channels with {class_bits} class bits in {len(data)} bytes")
    levels = np.frombuffer(data, LEVEL, 1 + rank, _HEAD.size).astype(np.int64)
    planes = np.frombuffer(data, np.uint8, end - at, at).reshape(class_bits, -(-rows // 8))
    classes = unpack_bits(planes, rows) if class_bits else np.zeros(rows, np.uint8)
    return exponent, BitAllocation(threshold, basis, levels, classes, bool(class_bits)), end


def _codes_bytes(widths: UInt8) -> int:
    """Bytes of the planes of codes of these widths."""
    counts = np.bincount(widths.reshape(-1), minlength=normal.LARGEST_WIDTH + 1)
    wider = counts[:0:-1].cumsum()  # than 7 bits, than 6, ...
    return int((-(-wider // 8)).sum())


def _pack_codes(codes: UInt8, widths: UInt8) -> bytes:
    codes, widths = codes.reshape(-1), widths.reshape(-1)
    planes = []
    for bit in range(normal.LARGEST_WIDTH):
        kept = widths > bit
        codes, widths = codes[kept], widths[kept]
        planes.append(np.packbits(codes & np.uint8(1 << bit), bitorder="little").tobytes())
    return b"".join(planes)


def _unpack_codes(data: memoryview, at: int, widths: UInt8) -> tuple[UInt8, int]:
    """What ``_pack_codes`` left at ``at``, and where it ends."""
    if len(data) - at < _codes_bytes(widths):
        raise _broken(f"more codes than fit into {len(data)} bytes")
    codes = np.zeros(widths.shape, np.uint8)
    for bit in range(normal.LARGEST_WIDTH):
        kept = widths > bit
        count = int(np.count_nonzero(kept))
        plane = np.frombuffer(data, np.uint8, -(-count // 8), at)
        codes[kept] |= np.unpackbits(plane, count=count, bitorder="little") << np.uint8(bit)
        at += len(plane)
    return codes, at


def _broken(what: str) -> ProtocolError:
    return ProtocolError(what, "a tensor as it was encoded", "use one version", "size")
