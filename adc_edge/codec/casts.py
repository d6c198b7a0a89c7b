"""Float32 to fewer bits and back, in NumPy alone: half, bfloat16, and integers of 8 bits and fewer.

NumPy converts halves one at a time where it was not built for the processor's own instruction; as whole arrays of
integers it is several times faster. All work on a part of a tensor at a time (``parts``), so that what lies between
two steps stays in the cache; no result depends on the size of a part.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from adc_edge.arrays import Float32, UInt8

UInt16 = npt.NDArray[np.uint16]

_PART_VALUES = 32_768  # 128 KiB of float32: a few such arrays fit in the L2 cache of small processors
_HALF_UNIT = 2.0**112  # a half's bits at a float32's place mean 2**-112 of it: their exponents count from 15 and 127
_EXPONENT_BITS = np.uint32(0x7F800000)
_MAGNITUDE_BITS = np.uint32(0x7FFFFFFF)
_SMALLEST_NORMAL_HALF = np.uint32((127 - 14) << 23)  # 2**-14 as float32's bits
_TEN_BITS_ABOVE = np.uint32(13 << 23)  # times 2**13: float32 has 13 bits more than a half


def parts(rows: int, width: int) -> Iterator[slice]:
    """Slices of ``rows`` rows of ``width`` values: 8 rows each, or more, so that their bits fill whole bytes."""
    step = max(8, _PART_VALUES // max(1, width) // 8 * 8)
    return (slice(start, min(rows, start + step)) for start in range(0, rows, step))


def to_half(x: Float32, factor: float, out: UInt16) -> None:
    """Write ``x * factor``, rounded to nearest even, to ``out`` as the bits of float16.

    Args:
        x: ``[n]``, at most 65504 in magnitude once multiplied.
        factor: a power of two.
        out: ``[n]``.
    """
    least = np.full(min(len(x), _PART_VALUES), _SMALLEST_NORMAL_HALF)  # an array: np.maximum is slow beside a number
    for part in parts(len(x), 1):
        scaled = x[part] * np.float32(factor)
        bits = scaled.view(np.uint32)
        anchor = bits & _EXPONENT_BITS
        np.maximum(anchor, least[: len(anchor)], out=anchor)
        anchor += _TEN_BITS_ABOVE  # 2**13 times the value's power of two: their sum has a half's last bit as its own
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
    """Write to ``out`` what the bits of float16 mean, times ``factor``; infinity and NaN become 65536 and more.

    Args:
        halves: ``[n]``.
        factor: a power of two, 2**-100 to 2**14.
        out: ``[n]``.
    """
    for part in parts(len(out), 1):
        bits = out[part].view(np.int32)
        np.copyto(bits, halves[part].view(np.int16))  # the sign fills the upper half
        bits <<= np.int32(13)
        bits &= np.int32(-0x70000001)  # and is left in the topmost bit alone
        out[part] *= np.float32(_HALF_UNIT * factor)


def to_bfloat(x: Float32, out: UInt16) -> None:
    """Write the upper 16 bits of ``x`` ``[n]``, rounded to nearest even, to ``out`` ``[n]``."""
    bits = x.view(np.uint32)
    for part in parts(len(x), 1):
        rounded = bits[part] >> np.uint32(16)
        rounded &= np.uint32(1)  # a tie goes to the even one
        rounded += bits[part]
        rounded += np.uint32(0x7FFF)
        rounded >>= np.uint32(16)
        np.copyto(out[part], rounded, casting="unsafe")


def from_bfloat(upper: UInt16, out: Float32) -> None:
    """Write to ``out`` ``[n]`` the float32 whose upper 16 bits are ``upper`` ``[n]``."""
    bits = out.view(np.uint32)
    for part in parts(len(out), 1):
        bits[part] = upper[part]
        bits[part] <<= np.uint32(16)


def to_integers(x: Float32, steps: Float32, bits: int, out: UInt8) -> None:
    """Write ``x * steps``, rounded to nearest even, to ``out``: int8 of 8 bits, planes of fewer (``pack``).

    Of fewer than 8 bits the values are written as ``q + 2**(bits-1)``, and the q above the highest as the highest.

    Args:
        x: ``[rows, D]``.
        steps: ``[rows, 1]``, such that a product is at most 127, or 2**(bits-1) of fewer bits, in magnitude.
        bits: 8, or 2 to 6.
        out: ``[rows * D]``, or ``[bits * ceil(rows * D / 8)]`` of fewer bits.
    """
    rows, width = x.shape
    for part in parts(rows, width):
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
    """Write to ``out`` ``[rows, D]`` what ``to_integers`` left in ``data``, times ``steps`` ``[rows, 1]``."""
    rows, width = out.shape
    for part in parts(rows, width):
        if bits == 8:
            values = data[part.start * width : part.stop * width]
        else:
            count = (part.stop - part.start) * width
            values = unpack_bits(data.reshape(bits, -1)[:, _bytes_of(part, width)], count)
            values -= np.uint8(2 ** (bits - 1))
        np.multiply(values.view(np.int8).reshape(out[part].shape), steps[part], out=out[part])


def _bytes_of(part: slice, width: int) -> slice:
    """Where the bits of a part of the rows lie in each plane."""
    return slice(part.start * width // 8, -(-part.stop * width // 8))


def pack_bits(values: UInt8, planes: UInt8) -> None:
    """Write bit j of ``values`` ``[n]`` to plane j of ``planes`` ``[bits, ceil(n / 8)]``, the first value lowest."""
    for bit, plane in enumerate(planes):
        plane[:] = np.packbits(values & np.uint8(1 << bit), bitorder="little")


def unpack_bits(planes: UInt8, count: int) -> UInt8:
    """Values ``[count]`` of what ``pack`` made of them."""
    values: UInt8 = np.unpackbits(planes[-1], count=count, bitorder="little")
    for plane in planes[-2::-1]:
        values += values
        values |= np.unpackbits(plane, count=count, bitorder="little")
    return values
