"""Casts compared with NumPy's and torch's, and bit planes compared with a loop over bits."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import adc_edge.codec.casts
from adc_edge.arrays import Float32
from adc_edge.codec.casts import (
    from_bfloat,
    from_half,
    from_integers,
    pack_bits,
    row_slices,
    to_bfloat,
    to_half,
    to_integers,
    unpack_bits,
)
from adc_edge.codec.precision import VALUE_PRECISIONS, Precision, decode, encode

PATTERNS = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
HALVES: Float32 = PATTERNS.view(np.float16).astype(np.float32)
FINITE_HALVES: Float32 = HALVES[np.isfinite(HALVES)]

BITS: dict[Precision, int] = {"int4": 4, "int3": 3, "int2": 2}
LARGEST_HALF = 2.0**128 - 2.0**117  # with a half's 11 bits
LARGEST_BFLOAT = 2.0**128 - 2.0**120
VALUES = st.floats(allow_nan=False, allow_infinity=False, width=32) | st.floats(-1.0, 1.0, width=32)
TENSORS = arrays(np.float32, array_shapes(min_dims=2, max_dims=3, max_side=6), elements=VALUES)


def gaussian(*shape: int) -> Float32:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def half(x: Float32, factor: float = 1.0) -> npt.NDArray[np.uint16]:
    out = np.empty(len(x), np.uint16)
    to_half(x, factor, out)
    return out


@pytest.mark.parametrize("power", [-100, -30, 0, 14, 100])
def test_every_half_its_ties_and_their_neighbours_are_rounded_as_by_numpy(power: int) -> None:
    positive = np.sort(FINITE_HALVES[FINITE_HALVES >= 0])
    ties = (positive[1:] + positive[:-1]) / 2
    x = np.concatenate([positive, ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(np.inf))])
    x = np.concatenate([x, -x])
    theirs = x.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(half(np.ldexp(x, power), 2.0**-power), theirs)


def test_values_far_below_the_smallest_half_become_zero() -> None:
    tiny = np.array([2.0**-149, 2.0**-126, 2.0**-30, 2.0**-25], np.float32)
    assert half(tiny).tolist() == [0] * 4
    assert half(-tiny).tolist() == [0x8000] * 4


def test_every_half_is_read_as_by_numpy_and_infinity_and_nan_become_too_large() -> None:
    out = np.empty(2**16, np.float32)
    from_half(PATTERNS, 1.0, out)
    finite = np.isfinite(HALVES)
    assert out[finite].tobytes() == HALVES[finite].tobytes()  # zeros keep their signs
    assert (np.abs(out[~finite]) >= 65536).all()
    assert np.isfinite(out).all()
    from_half(PATTERNS, 2.0**-20, out)
    np.testing.assert_array_equal(out[finite], HALVES[finite] * np.float32(2.0**-20))


def test_every_bfloat_its_ties_and_their_neighbours_are_rounded_as_by_torch() -> None:
    upper = PATTERNS.astype(np.uint32) << np.uint32(16)
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    x = (upper[:, None] | low).view(np.float32).reshape(-1)
    x = x[np.abs(x) <= 2.0**128 - 2.0**120]
    out = np.empty(len(x), np.uint16)
    to_bfloat(x, out)
    theirs = torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(out, theirs)


def test_every_bfloat_is_the_upper_half_of_a_float32() -> None:
    out = np.empty(2**16, np.float32)
    from_bfloat(PATTERNS, out)
    np.testing.assert_array_equal(out.view(np.uint32), PATTERNS.astype(np.uint32) * 65536)


@given(st.integers(1, 8), st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_planes_hold_each_bit_of_each_value(bits: int, numbers: list[int]) -> None:
    values = np.array(numbers, np.uint8) & np.uint8(2**bits - 1)
    planes = np.full((bits, -(-len(values) // 8)), 0xAA, np.uint8)
    pack_bits(values, planes)
    for index, value in enumerate(values.tolist()):
        for bit in range(bits):
            assert planes[bit, index // 8] >> (index % 8) & 1 == value >> bit & 1
    np.testing.assert_array_equal(unpack_bits(planes, len(values)), values)
    assert not np.unpackbits(planes, axis=1, bitorder="little")[:, len(values) :].any()  # a message is a function of x


@pytest.mark.parametrize("bits", [8, 6, 4, 3, 2])
def test_integers_are_rounded_to_even_and_read_back_in_steps(bits: int) -> None:
    lowest = 2 ** (bits - 1)
    top = 127 if bits == 8 else lowest  # of fewer bits the level above the highest is asked for, too
    x = np.concatenate([np.arange(-top, top + 0.25, 0.25)] * 3).reshape(3, -1).astype(np.float32)
    out = np.empty(x.size if bits == 8 else bits * -(-x.size // 8), np.uint8)
    to_integers(x * np.float32(0.5), np.full((3, 1), 2.0, np.float32), bits, out)
    back = np.empty_like(x)
    steps = np.array([[1.0], [0.5], [-2.0]], np.float32)
    from_integers(out, steps, bits, back)
    expected = np.minimum([[round(value) for value in row] for row in x.tolist()], lowest - 1)
    np.testing.assert_array_equal(back, expected * steps)


@given(st.integers(0, 300_000), st.integers(0, 20_000))
def test_row_slices_cover_every_row_once_and_whole_bytes(rows: int, width: int) -> None:
    rows = min(rows, 3_000_000 // max(1, width))
    covered = 0
    for part in row_slices(rows, width):
        assert part.start == covered
        assert part.stop > part.start
        assert part.start * width % 8 == 0
        assert (part.stop - part.start) * width <= max(32_768, 8 * width)
        covered = part.stop
    assert covered == rows


# encoded tensors


def by_hand(x: Float32, bits: int) -> bytes:
    """Encode by the documented layout, bit by bit."""
    lowest, tokens = 2 ** (bits - 1), x.reshape(-1, x.shape[-1]).tolist()
    exponent = max(math.frexp(value)[1] for token in tokens for value in token)
    scales, levels = b"", []
    for token in tokens:
        largest = max(token, key=abs)
        scales += struct.pack("<e", Fraction(-largest) / lowest / Fraction(2) ** exponent)
        levels += [lowest + min(lowest - 1, round(Fraction(v) * -lowest / Fraction(largest))) for v in token]
    planes = [sum((level >> bit & 1) << index for index, level in enumerate(levels)) for bit in range(bits)]
    return struct.pack("<i", exponent) + scales + b"".join(p.to_bytes(-(-x.size // 8), "little") for p in planes)


@pytest.mark.parametrize("precision", BITS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 3, 7), (5, 16), (9, 192)])
def test_few_bits_are_packed_as_if_by_hand(precision: Precision, shape: tuple[int, ...]) -> None:
    x = gaussian(*shape)
    data = encode(x, precision)
    assert data == by_hand(x, BITS[precision])
    exponent, rows, size = struct.unpack("<i", data[:4])[0], x.size // shape[-1], -(-x.size // 8)
    scales = struct.unpack(f"<{rows}e", data[4 : 4 + 2 * rows])
    planes = [int.from_bytes(data[4 + 2 * rows + bit * size :][:size], "little") for bit in range(BITS[precision])]
    lowest = 2 ** (BITS[precision] - 1)
    for index, value in enumerate(decode(data, shape, precision).reshape(-1).tolist()):
        level = sum((plane >> index & 1) << bit for bit, plane in enumerate(planes))
        assert value == math.ldexp((level - lowest) * scales[index // shape[-1]], exponent)


@given(TENSORS)
@settings(deadline=None)
def test_bf16_is_what_torch_casts_to(x: Float32) -> None:
    theirs = torch.from_numpy(x).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(
        decode(encode(x, "bf16"), x.shape, "bf16"), np.clip(theirs, -LARGEST_BFLOAT, LARGEST_BFLOAT)
    )


@given(TENSORS)
@settings(deadline=None)
def test_fp16_is_what_numpy_casts_to_after_the_power_of_two(x: Float32) -> None:
    within = np.clip(x.astype(np.float64), -LARGEST_HALF, LARGEST_HALF)
    exponent = int(np.frexp(np.abs(within).max())[1])
    data = encode(x, "fp16")
    assert data == struct.pack("<i", exponent) + np.ldexp(within, -exponent).astype("<f2").tobytes()
    theirs = np.ldexp(np.frombuffer(data, "<f2", offset=4).astype(np.float64), exponent).astype(np.float32)
    np.testing.assert_array_equal(decode(data, x.shape, "fp16"), theirs.reshape(x.shape))


@pytest.mark.parametrize("precision", VALUE_PRECISIONS)
@pytest.mark.parametrize("shape", [(40, 24), (11, 5), (3, 4001)])
def test_the_size_of_a_part_changes_nothing(
    precision: Precision, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = gaussian(*shape)
    data = encode(x, precision)
    back = decode(data, shape, precision)
    monkeypatch.setattr(adc_edge.codec.casts, "_SLICE_VALUES", 64)
    assert encode(x, precision) == data
    assert decode(data, shape, precision).tobytes() == back.tobytes()
