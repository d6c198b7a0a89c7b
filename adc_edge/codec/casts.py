"""Casts of float32 to half, bfloat16 and integers of at most 8 bits, and back, by NumPy's integer operations.

NumPy has no bfloat16. Its wheels (1.26 to 2.4, x86 and ARM64) convert halves one value at a time in software; the
integer operations below take 0.6 of that time to halves and 0.35 from them (`benchmarks/codec.py`). Every cast
works on some rows at a time (``row_slices``), so that intermediate arrays stay in the cache. The number of rows
does not change the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from adc_edge.arrays import Float32, UInt8
from adc_edge.errors import ProtocolError

UInt16 = npt.NDArray[np.uint16]

_SLICE_VALUES = 32_768  # 128 KiB of float32: a few such arrays fit in the L2 cache of small processors
_HALF_UNIT = 2.0 ** (127 - 15)  # the exponent biases: a half's bits, read as a float32's, are too small by this
_EXPONENT_BITS = np.uint32(0x7F800000)
_MAGNITUDE_BITS = np.uint32(0x7FFFFFFF)
_SMALLEST_NORMAL_HALF = np.uint32((127 - 14) << 23)  # 2**-14 as float32's bits
_TEN_BITS_ABOVE = np.uint32(13 << 23)  # times 2**13: float32's mantissa has 13 bits more


def row_slices(rows: int, width: int, values: int = 0) -> Iterator[slice]:
    """Yield slices of ``rows`` rows of ``width`` values, ``values`` in all: multiples of 8 rows, which fill bytes."""
    step = max(8, (values or _SLICE_VALUES) // max(1, width) // 8 * 8)
    return (slice(start, min(rows, start + step)) for start in range(0, rows, step))


def to_half(x: Float32, factor: float, out: UInt16) -> None:
    """Write ``x * factor`` to ``out`` as the bits of float16, rounded to nearest even.

    Args:
        x: ``[n]``; the products are at most 65504 in magnitude.
        factor: a power of two.
        out: ``[n]``.
    """
    least = np.full(min(len(x), _SLICE_VALUES), _SMALLEST_NORMAL_HALF)  # an array: np.maximum with a scalar is slower
    for part in row_slices(len(x), 1):
        scaled = x[part] * np.float32(factor)
        bits = scaled.view(np.uint32)
        anchor = bits & _EXPONENT_BITS
        np.maximum(anchor, least[: len(anchor)], out=anchor)
        anchor += _TEN_BITS_ABOVE  # 2**13 times the value's power of two: the sum's last bit is a half's last bit
        sign = bits >> np.uint32(16)
        bits &= _MAGNITUDE_BITS
        scaled += anchor.view(np.float32)  # rounds
        anchor >>= np.uint32(13)  # the exponent at a half's place; the sum's low bits are the mantissa, 1 included
        anchor += bits
        anchor += np.uint32(2048)  # -(127 - 1) << 10, within 16 bits
        sign &= np.uint32(0x8000)
        anchor += sign
        np.copyto(out[part], anchor, casting="unsafe")  # the low 16 bits


def from_half(halves: UInt16, factor: float, out: Float32) -> None:
    """Write the values of float16 bits, times ``factor``, to ``out``; infinity and NaN become 65536 or more.

    Args:
        halves: ``[n]``.
        factor: a power of two, 2**-100 to 2**14.
        out: ``[n]``.
    """
    for part in row_slices(len(out), 1):
        bits = out[part].view(np.int32)
        np.copyto(bits, halves[part].view(np.int16))  # the sign fills the upper half
        bits <<= np.int32(13)
        bits &= np.int32(-0x70000001)  # the sign stays in the topmost bit alone
        out[part] *= np.float32(_HALF_UNIT * factor)


def to_bfloat(x: Float32, out: UInt16) -> None:
    """Write the upper 16 bits of ``x`` ``[n]``, rounded to nearest even, to ``out`` ``[n]``."""
    bits = x.view(np.uint32)
    for part in row_slices(len(x), 1):
        rounded = bits[part] >> np.uint32(16)
        rounded &= np.uint32(1)  # a tie goes to the even number
        rounded += bits[part]
        rounded += np.uint32(0x7FFF)
        rounded >>= np.uint32(16)
        np.copyto(out[part], rounded, casting="unsafe")


def from_bfloat(upper: UInt16, out: Float32) -> None:
    """Write the float32 values with the upper 16 bits ``upper`` ``[n]`` to ``out`` ``[n]``."""
    bits = out.view(np.uint32)
    for part in row_slices(len(out), 1):
        bits[part] = upper[part]
        bits[part] <<= np.uint32(16)


def to_integers(x: Float32, steps: Float32, bits: int, out: UInt8) -> None:
    """Write ``q = x * steps``, rounded to nearest even, to ``out``: as int8, or with fewer bits as planes.

    With fewer than 8 bits ``q + 2**(bits-1)`` is written, and a q above the highest level becomes the highest.

    Args:
        x: ``[rows, D]``.
        steps: ``[rows, 1]``; the products are at most 127, or with fewer bits 2**(bits-1), in magnitude.
        bits: 8, or 2 to 6.
        out: ``[rows * D]``, or with fewer bits ``[bits * ceil(rows * D / 8)]`` (``pack_bits``).
    """
    rows, width = x.shape
    for part in row_slices(rows, width):
        scaled = x[part] * steps[part]
        np.rint(scaled, out=scaled)
        values = scaled.astype(np.int8).view(np.uint8).reshape(-1)
        if bits == 8:
            out[part.start * width : part.stop * width] = values
        else:
            values += np.uint8(2 ** (bits - 1))
            values -= values >> np.uint8(bits)  # several times faster than np.minimum
            pack_bits(values, out.reshape(bits, -1)[:, _bytes_of(part, width)])


def from_integers(data: UInt8, steps: Float32, bits: int, out: Float32) -> None:
    """Write the integers in ``data`` (``to_integers``), times ``steps`` ``[rows, 1]``, to ``out`` ``[rows, D]``."""
    rows, width = out.shape
    for part in row_slices(rows, width):
        if bits == 8:
            values = data[part.start * width : part.stop * width]
        else:
            count = (part.stop - part.start) * width
            values = unpack_bits(data.reshape(bits, -1)[:, _bytes_of(part, width)], count)
            values -= np.uint8(2 ** (bits - 1))
        np.multiply(values.view(np.int8).reshape(out[part].shape), steps[part], out=out[part])


def _bytes_of(part: slice, width: int) -> slice:
    """Range of bytes, in each plane, that holds the bits of these rows."""
    return slice(part.start * width // 8, -(-part.stop * width // 8))


def pack_bits(values: UInt8, planes: UInt8) -> None:
    """Write bit j of ``values`` ``[n]`` to plane j of ``planes`` ``[bits, ceil(n / 8)]``, the first value lowest."""
    for bit, plane in enumerate(planes):
        plane[:] = np.packbits(values & np.uint8(1 << bit), bitorder="little")


def unpack_bits(planes: UInt8, count: int) -> UInt8:
    """Return the values ``[count]`` that ``pack_bits`` packed into ``planes``."""
    values: UInt8 = np.unpackbits(planes[-1], count=count, bitorder="little")
    for plane in planes[-2::-1]:
        values += values
        values |= np.unpackbits(plane, count=count, bitorder="little")
    return values


def finite_peak(x: Float32) -> float:
    """Return the largest magnitude, without a copy of ``x``.

    Raises:
        ProtocolError: a value is NaN or infinite.
    """
    with np.errstate(invalid="ignore"):
        peak = max(float(x.max(initial=0.0)), -float(x.min(initial=0.0)))  # with a NaN both are NaN
    if not math.isfinite(peak):
        raise not_finite()
    return peak


def not_finite() -> ProtocolError:
    """Return the error of a tensor with values that are not finite."""
    return ProtocolError(
        "a tensor with NaN or infinite values", "finite values", "lower the learning rate or clip gradients", "nan"
    )
