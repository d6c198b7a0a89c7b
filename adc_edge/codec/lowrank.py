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
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np

from adc_edge.arrays import Float32, UInt8
from adc_edge.codec import lloyd_max
from adc_edge.codec.bit_allocation import (
    LEVEL_DTYPE,
    AllocationCandidate,
    BitAllocation,
    allocation_candidates,
    empty_allocation,
)
from adc_edge.codec.casts import finite_peak, pack_bits, unpack_bits
from adc_edge.codec.planes import Block, CodePlanes, blocks_of
from adc_edge.codec.spectrum import CLASS_BITS, ROW_CLASSES, ArraySpectrum
from adc_edge.codec.vectors import decoded_vectors, pack_vectors, planes_bytes, runs, unpack_vectors, vector_codes
from adc_edge.errors import ProtocolError

_HEAD = struct.Struct("<iHhhH")
HEAD_BYTES = _HEAD.size
_EXPONENTS = range(-149, 129)  # float32's, as frexp returns them
BELOW_ONE = 1 - 2.0**-24
_CLEARLY = 0.95  # a second candidate doubles the time; the errors that are compared are known within some percent
MANY_ROWS = 4  # for each channel
RIDGE = 1e-4  # keeps the equations solvable where two quantised vectors coincide; ten times as much costs 1 %
_SURE = 2.0**64  # sums of products of codes with entries below it are finite
PLAIN = range(-126, 127)  # powers of two that are normal float32 values, and so are their inverses


_Coded = TypeVar("_Coded")


class MessageHead(NamedTuple):
    """All of a message before its codes, and where the codes lie."""

    exponent: int
    allocation: BitAllocation
    classes: UInt8  # [rows]
    entries: int  # offset of the planes of mean and vectors
    coordinates: slice  # the bytes of the planes of the coordinates


def payload_bytes(rows: int, width: int, bits: float) -> int:
    """Return the size of an encoded ``[rows, width]`` tensor: ``bits`` a value, and never less than the mean takes."""
    mean_alone = _HEAD.size + LEVEL_DTYPE.itemsize + lloyd_max.LARGEST_WIDTH * -(-width // 8)
    return max(math.ceil(bits * rows * width / 8), mean_alone)


def encode_rows(x: Float32, out: UInt8) -> None:
    """Encode ``x`` to ``out``, as closely as the length of ``out`` allows; the mean of the rows always fits.

    Args:
        x: ``[rows, D]``.
        out: ``[payload_bytes(rows, D, bits)]``.

    Raises:
        ProtocolError: a value is NaN or infinite.
    """
    peak = finite_peak(x)
    exponent = math.frexp(peak)[1]
    message = None
    if peak > 0:
        rows = _times_power(x, -exponent, np.empty_like(x))
        mean = rows.mean(axis=0)
        rows -= mean
        spectrum = ArraySpectrum(rows)
        mean_energy = len(rows) * float(np.square(mean, dtype=np.float64).sum())
        candidates = allocation_candidates(spectrum, mean_energy, len(out) - HEAD_BYTES)
        message = best_message(candidates, lambda one: _code(one, exponent, spectrum, rows, mean))
    if message is None:
        message = pack_head(exponent, empty_allocation(len(x)))
    out[: len(message)] = np.frombuffer(message, np.uint8)
    out[len(message) :] = 0


def best_message(
    candidates: Iterable[AllocationCandidate], code: Callable[[AllocationCandidate], tuple[float, _Coded]]
) -> _Coded | None:
    """Return the message of the least error; most often one candidate is tried.

    Args:
        candidates: the least expected error first. Expected errors are close to real ones; the mean's is exact.
        code: returns the error that a candidate leaves, and its message.

    Returns:
        None if no error is finite.
    """
    best, message = math.inf, None
    for candidate in candidates:
        if candidate.error >= best * (_CLEARLY if len(candidate.components) else 1):
            break
        error, coded = code(candidate)
        if error < best:
            best, message = error, coded
    return message


def decode_rows(data: memoryview, rows: int, width: int) -> Float32:
    """Decode a ``[rows, width]`` tensor that ``encode_rows`` encoded.

    Returns:
        A new tensor, finite.

    Raises:
        ProtocolError: the message has a head or levels that no encoder writes, or more codes than bytes.
    """
    head = read_head(data, rows, width)
    entry_widths, blocks = head.allocation.entry_widths(), blocks_of(head.allocation, head.classes)
    planes = CodePlanes(blocks, rows)
    planes.unpack(data, head.coordinates.start)
    x = np.empty((rows, width), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # by levels that no encoder writes
        vectors = decoded_vectors(unpack_vectors(data, head.entries, entry_widths, width), entry_widths)
        vectors *= head.allocation.lengths()[:, None]
        sure = finite_peak(vectors) < _SURE
        for block in blocks:
            for piece in block.pieces(width):
                x[piece.rows] = _decoded(piece, planes.read(piece), vectors)
    if not sure:
        finite_peak(x)
    return _times_power(x, head.exponent, x)


def _decoded(block: Block, codes: UInt8, vectors: Float32) -> Float32:
    """The rows of a block, times ``2**-e``; ``vectors`` are mean and components, ``[1 + rank, D]``."""
    coordinates = lloyd_max.values(codes, block.widths)
    coordinates *= block.scale
    x = coordinates @ vectors[1:][block.components]
    x += vectors[0]
    return np.clip(
        x, -np.float32(BELOW_ONE), np.float32(BELOW_ONE), out=x
    )  # x * 2**-e was below 1, so x stays in float32


def _times_power(x: Float32, exponent: int, out: Float32) -> Float32:
    """Write ``x * 2**exponent``; ``np.ldexp`` takes twenty times as long as a product."""
    if exponent in PLAIN:
        return np.multiply(x, np.float32(2.0**exponent), out=out)
    return np.ldexp(x, exponent, out=out)


def coordinates_in(data: memoryview, rows: int, width: int) -> slice:
    """Return the range of bytes that holds the planes of the coordinates; raises as ``decode_rows`` does."""
    return read_head(data, rows, width).coordinates


def _code(
    candidate: AllocationCandidate, exponent: int, spectrum: ArraySpectrum, rows: Float32, mean: Float32
) -> tuple[float, bytes]:
    """The squared error that a candidate leaves, and its message."""
    allocation, vectors = candidate.allocation, spectrum.vectors.T[candidate.components]
    blocks = blocks_of(allocation, spectrum.classes)
    entry_widths, lengths = allocation.entry_widths(), allocation.lengths()
    mean_codes = vector_codes(mean[None], entry_widths[:1])
    shift = mean - lengths[0] * decoded_vectors(mean_codes, entry_widths[:1])[0]
    if len(rows) < MANY_ROWS * rows.shape[1]:  # a rough vector shows in few rows, and finding its codes is cheap
        rough = decoded_vectors(vector_codes(vectors, entry_widths[1:]), entry_widths[1:])
        vectors = _dual(rough)
    fit = _fit(blocks, vectors, lengths[1:], rows, shift)
    codes = vector_codes(fit.vectors, entry_widths[1:])
    basis = decoded_vectors(codes, entry_widths[1:])
    planes = CodePlanes(blocks, len(rows))
    for piece, _, exact in _coordinates(blocks, _dual(basis), lengths[1:], rows, shift):
        planes.write(piece, _codes(piece, exact).T.copy())
    head = pack_head(exponent, allocation) + (_pack_classes(spectrum.classes) if allocation.has_classes else b"")
    packed = pack_vectors(np.concatenate((mean_codes, codes)), entry_widths) + planes.pack()
    energy = float(np.vdot(rows, rows)) + len(rows) * float(np.vdot(shift, shift))
    return energy - fit.saved(basis * lengths[1:, None]), head + packed


class _Fit(NamedTuple):
    """Vectors that fit the rounded coordinates best."""

    vectors: Float32  # [rank, D]
    gram: Float32  # [rank, rank], products of the rounded coordinates with one another
    products: Float32  # [rank, D], products of the rounded coordinates with the rows

    def saved(self, basis: Float32) -> float:
        """Squared error that the rounded coordinates save in these vectors."""
        return float(2 * np.vdot(self.products, basis) - np.vdot(self.gram, basis @ basis.T))


def _fit(blocks: list[Block], vectors: Float32, lengths: Float32, rows: Float32, shift: Float32) -> _Fit:
    """Round the coordinates in exact vectors and fit the vectors to them: that saves some percent of the error."""
    gram, products = np.zeros((len(vectors), len(vectors)), np.float32), np.zeros_like(vectors)
    sums = np.zeros(len(vectors), np.float32)
    for piece, part, exact in _coordinates(blocks, vectors, lengths, rows, shift):
        rounded = lloyd_max.values(_codes(piece, exact), piece.widths[:, None])
        rounded *= piece.scale
        used = slice(0, len(rounded))
        gram[used, used] += rounded @ rounded.T
        products[used] += rounded @ part
        sums[used] += rounded.sum(axis=1)
    products += np.outer(sums, shift)
    return _Fit(_solve(gram, products), gram, products)


def _coordinates(
    blocks: list[Block], dual: Float32, lengths: Float32, rows: Float32, shift: Float32
) -> Iterator[tuple[Block, Float32, Float32]]:
    """Yield pieces, their rows, and the coordinates of these rows plus ``shift``, in deviations, ``[n, rows]``."""
    dual = dual / lengths[:, None]
    for block in blocks:
        scaled: Float32 = dual[block.components] / block.scale
        offset = (scaled @ shift)[:, None]
        for piece in block.pieces(rows.shape[1]) if len(scaled) else ():
            part = rows[piece.rows]
            exact: Float32 = scaled @ part.T
            exact += offset
            yield piece, part, exact


def _codes(block: Block, exact: Float32) -> UInt8:
    """Codes of coordinates ``[n, rows]``, in deviations."""
    codes = np.empty(exact.shape, np.uint8)
    for run, width in runs(block.widths):
        codes[run] = lloyd_max.codes(exact[run], width)
    return codes


def _dual(basis: Float32) -> Float32:
    """Vectors whose products with the rows are their least-squares coordinates: quantised ones are not orthogonal."""
    return _solve(basis @ basis.T, basis)


def _solve(matrix: Float32, right: Float32) -> Float32:
    solution: Float32 = np.linalg.solve(matrix + np.diag(np.float32(RIDGE) * matrix.diagonal()), right)
    return solution


def pack_head(exponent: int, allocation: BitAllocation) -> bytes:
    """Return the head and the levels; the planes of the classes follow, if there are classes."""
    rank, class_bits = len(allocation.levels) - 1, CLASS_BITS * allocation.has_classes
    fixed = _HEAD.pack(exponent, rank, allocation.threshold, allocation.vector_offset, class_bits)
    return fixed + allocation.levels.astype(LEVEL_DTYPE).tobytes()


def _pack_classes(classes: UInt8) -> bytes:
    planes = np.zeros((CLASS_BITS, -(-len(classes) // 8)), np.uint8)
    pack_bits(classes, planes)
    return planes.tobytes()


def read_head(data: memoryview, rows: int, width: int) -> MessageHead:
    """Return the head of a message of ``rows`` rows of ``width`` channels; raises as ``decode_rows`` does."""
    exponent, rank, threshold, offset, class_bits = _HEAD.unpack_from(data)
    at = _HEAD.size + LEVEL_DTYPE.itemsize * (1 + rank)
    end = at + class_bits * -(-rows // 8)
    if exponent not in _EXPONENTS or rank > width or class_bits not in (0, CLASS_BITS) or end > len(data):
        raise _broken(f"{rank} components of {width} channels with {class_bits} class bits in {len(data)} bytes")
    levels = np.frombuffer(data, LEVEL_DTYPE, 1 + rank, _HEAD.size).astype(np.int64)
    planes = np.frombuffer(data, np.uint8, end - at, at).reshape(class_bits, -(-rows // 8))
    classes = unpack_bits(planes, rows) if class_bits else np.zeros(rows, np.uint8)
    counts = np.bincount(classes, minlength=len(ROW_CLASSES))
    allocation = BitAllocation(threshold, offset, levels, counts, bool(class_bits))
    start = end + planes_bytes(allocation.entry_widths(), width)
    coordinates = slice(start, start + allocation.coordinates_bytes())
    if coordinates.stop > len(data):
        raise _broken(f"more codes than fit into {len(data)} bytes")
    return MessageHead(exponent, allocation, classes, end, coordinates)


def _broken(what: str) -> ProtocolError:
    return ProtocolError(
        what, "a tensor as it was encoded", "install the same version of adc-edge on both sides", "size"
    )
