"""Every precision: the error of a decoded tensor, its size in bytes, and refused messages."""

from __future__ import annotations

import math
import struct

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from adc_edge.arrays import Float32
from adc_edge.codec.precision import (
    PRECISIONS,
    VALUE_PRECISIONS,
    Precision,
    component_bits,
    dct_bits,
    decode,
    encode,
    encoded_bytes,
    integer_bits,
    pca_bits,
)
from adc_edge.errors import ProtocolError
from adc_edge.options import PRECISION as OPTION

LARGEST = float(np.finfo(np.float32).max)
DENORMAL = 2e-45  # float32's smallest step, when everything is that small
BITS: dict[Precision, int] = {"int4": 4, "int3": 3, "int2": 2}
PACKED = st.sampled_from(list(BITS))
PRECISION = st.sampled_from(PRECISIONS)
VALUE_PRECISION = st.sampled_from(VALUE_PRECISIONS)
PCA: list[Precision] = [precision for precision in PRECISIONS if pca_bits(precision)]
DCT: list[Precision] = [precision for precision in PRECISIONS if dct_bits(precision)]
VALUES = st.floats(-LARGEST, LARGEST, width=32) | st.floats(-1.0, 1.0, width=32)
TENSORS = arrays(np.float32, array_shapes(min_dims=2, max_dims=3, max_side=6), elements=VALUES)
# Far from where scales, halves and float32 itself lose bits.
MODERATE = st.floats(2.0**-6, 1.0, width=32) | st.floats(-1.0, -(2.0**-6), width=32)
MODERATE_TENSORS = arrays(np.float32, array_shapes(min_dims=2, max_dims=3, max_side=6), elements=MODERATE)


def round_trip(x: Float32, precision: Precision) -> Float32:
    return decode(encode(x, precision), x.shape, precision)


def error(x: Float32, precision: Precision) -> npt.NDArray[np.float64]:
    return np.abs(round_trip(x, precision).astype(np.float64) - x.astype(np.float64))


def gaussian(*shape: int, size: float = 1.0) -> Float32:
    return (np.random.default_rng(0).standard_normal(shape) * size).astype(np.float32)


@given(TENSORS)
@settings(deadline=None)
def test_fp32_is_exact(x: Float32) -> None:
    assert round_trip(x, "fp32").tobytes() == x.tobytes()


@given(TENSORS)
@settings(deadline=None)
def test_fp16_keeps_eleven_bits_of_each_value_and_24_of_the_peak(x: Float32) -> None:
    size = np.abs(x.astype(np.float64))
    assert (error(x, "fp16") <= size * 2.0**-11 + size.max() * 2.0**-24 + DENORMAL).all()


@given(TENSORS)
@settings(deadline=None)
def test_bf16_keeps_eight_bits_of_each_value_of_whatever_size(x: Float32) -> None:
    assert (error(x, "bf16") <= np.abs(x.astype(np.float64)) * 2.0**-8 + 2.0**-134).all()


@given(TENSORS)
@settings(deadline=None)
def test_int8_is_off_by_half_a_step_of_its_token_plus_the_rounding_of_the_scale(x: Float32) -> None:
    token = np.abs(x.astype(np.float64)).max(axis=-1, keepdims=True)
    half_step = token / 127 / 2
    scale_rounding = token * 2.0**-11 + token.max() * 2.0**-17  # 127 * fp16's half unit, relative or at its floor
    assert (error(x, "int8") <= (half_step + scale_rounding) * 1.001 + DENORMAL).all()


@given(TENSORS, PACKED)
@settings(deadline=None)
def test_few_bits_are_off_by_half_a_step_and_beyond_the_highest_level_by_one(x: Float32, precision: Precision) -> None:
    lowest = 2.0 ** (BITS[precision] - 1)
    exact = x.astype(np.float64)
    token = np.abs(exact).max(axis=-1, keepdims=True)
    step = token / lowest
    largest_is = np.where(exact.max(axis=-1, keepdims=True) == token, 1.0, -1.0)
    beyond = -exact * largest_is > (lowest - 1.5) * step  # the other sign has a level less
    # A scale is off by fp16's half unit, relative or at its floor, and a value is up to ``lowest`` of them.
    scale_rounding = token * 2.0**-11 + lowest * np.abs(exact).max() * 2.0**-24
    assert (error(x, precision) <= (np.where(beyond, step, step / 2) + scale_rounding) * 1.001 + DENORMAL).all()


@given(MODERATE_TENSORS, VALUE_PRECISION)
@settings(deadline=None)
def test_a_decoded_tensor_survives_a_second_round_trip_unchanged(x: Float32, precision: Precision) -> None:
    once = round_trip(x, precision)
    np.testing.assert_array_equal(round_trip(once, precision), once)


@given(MODERATE_TENSORS, VALUE_PRECISION, st.integers(-100, 110))
@settings(deadline=None)
def test_a_power_of_two_changes_nothing_but_the_size(x: Float32, precision: Precision, power: int) -> None:
    np.testing.assert_array_equal(round_trip(np.ldexp(x, power), precision), np.ldexp(round_trip(x, precision), power))


@pytest.mark.parametrize("precision", ["int8", *BITS])
def test_each_token_has_its_own_scale(precision: Precision) -> None:
    x = np.array([[[100.0, 50.0], [-0.5, 0.25]]], np.float32)
    np.testing.assert_allclose(round_trip(x, precision), x, rtol=0.01)


RELATIVE: dict[Precision, float] = {"fp32": 0, "fp16": 2**-10, "bf16": 2**-8}  # else by the step
LEVELS: dict[Precision, float] = {"int8": 127, "int4": 8, "int3": 4, "int2": 2}


@pytest.mark.parametrize("precision", VALUE_PRECISIONS)
@pytest.mark.parametrize("size", [1e-9, 1e-30, 1e-36, 1e-42])
def test_tiny_gradients_survive(precision: Precision, size: float) -> None:
    x = gaussian(4, 5, 16, size=size)
    back, rtol = round_trip(x, precision), RELATIVE.get(precision, 0.0)
    peaks = np.abs(x).max(axis=-1, keepdims=True)
    step = peaks / LEVELS[precision] if precision in LEVELS else 0
    beyond = 0.51 if precision == "int8" else 1.01
    floor = 2.0**-134 if precision == "bf16" else DENORMAL  # bf16 has float32's exponents and seven bits below
    assert (np.abs(back - x) <= beyond * step + rtol * np.abs(x) + floor + rtol * np.abs(x).max() / 1000).all()
    assert np.abs(back).max() == pytest.approx(np.abs(x).max(), rel=0.01, abs=floor)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_tensor_of_zeros_comes_back(precision: Precision) -> None:
    x = np.zeros((2, 3, 4), np.float32)
    assert not round_trip(x, precision).any()


@pytest.mark.parametrize("precision", VALUE_PRECISIONS)
def test_a_token_of_zeros_beside_others_comes_back(precision: Precision) -> None:
    x = np.array([[0, 0, 0], [1, -0.5, 0.5]], np.float32)
    np.testing.assert_allclose(round_trip(x, precision), x, atol=0.005)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_tensor_without_rows_comes_back(precision: Precision) -> None:
    assert round_trip(np.empty((0, 4), np.float32), precision).shape == (0, 4)


SIZES: dict[Precision, int] = {  # of 105 values in 15 rows
    "fp32": 4 * 105,
    "fp16": 4 + 2 * 105,
    "bf16": 2 * 105,
    "int8": 4 + 2 * 15 + 105,
    "int4": 4 + 2 * 15 + 4 * 14,
    "int3": 4 + 2 * 15 + 3 * 14,
    "int2": 4 + 2 * 15 + 2 * 14,
    "pca4": math.ceil(4 * 105 / 8),
    "pca3": math.ceil(3 * 105 / 8),
    "pca2": math.ceil(2 * 105 / 8),
    "pca1.5": 14 + 8,  # what the mean row takes
    "pca1": 14 + 8,
    "pca0.75": 14 + 8,
    "pca0.5": 14 + 8,
    "pca0.375": 14 + 8,
    "pca0.25": 14 + 8,
    "pca0.125": 14 + 8,
    "pca0.0625": 14 + 8,
    "dct2": 48,  # what the mean row takes, with the bands of five tokens
    "dct1": 48,
    "dct0.75": 48,
    "dct0.5": 48,
    "dct0.375": 48,
    "dct0.25": 48,
    "dct0.125": 48,
    "dct0.0625": 48,
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tail", [b"", b"x", b"labels of the step"])
def test_the_size_is_known_before_encoding_and_a_tail_follows(precision: Precision, tail: bytes) -> None:
    x = gaussian(3, 5, 7)
    assert encoded_bytes((3, 5, 7), precision) == SIZES[precision]
    message = encode(x, precision, tail)
    assert message.nbytes == len(message) == SIZES[precision] + len(tail)
    assert not message.readonly
    assert message[SIZES[precision] :] == tail
    assert message[: SIZES[precision]] == encode(x, precision)


@pytest.mark.parametrize("precision", VALUE_PRECISIONS)
@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4), (3, 0), (1, 1), (5,)])
def test_tensors_of_odd_shapes_come_back(precision: Precision, shape: tuple[int, ...]) -> None:
    x = np.full(shape, -3.0, np.float32)
    data = encode(x, precision)
    assert len(data) == encoded_bytes(shape, precision)
    back = decode(data, shape, precision)
    assert back.shape == shape
    np.testing.assert_allclose(back, x, rtol=0.001)


def test_the_names_are_those_of_the_command_line_and_tell_the_bits() -> None:
    assert tuple(OPTION.choices) == PRECISIONS
    assert {p: component_bits(p) for p in PRECISIONS if p not in VALUE_PRECISIONS} == {
        p: float(p[3:]) for p in (*PCA, *DCT)
    }
    assert not any(component_bits(p) for p in VALUE_PRECISIONS)
    assert not any(integer_bits(p) for p in (*PCA, *DCT))
    assert not any(dct_bits(p) for p in PCA)


@pytest.mark.parametrize("precision", PCA)
def test_pca_takes_so_many_bits_for_each_value_in_all(precision: Precision) -> None:
    for shape in ((64, 17, 192), (1000, 63)):
        assert encoded_bytes(shape, precision) == math.ceil(pca_bits(precision) * math.prod(shape) / 8)
        assert len(encode(gaussian(*shape), precision)) == encoded_bytes(shape, precision)


def smooth(*shape: int) -> Float32:
    """Rows whose variance lies in a few directions."""
    return (gaussian(*shape) * 2.0 ** (-np.arange(shape[-1]) / 3) + 1.0).astype(np.float32)


LOST: dict[Precision, float] = {"pca2": 0.002, "pca1": 0.02, "pca0.5": 0.1, "pca0.25": 0.3, "pca0.125": 0.7}


@pytest.mark.parametrize("precision", LOST)
@pytest.mark.parametrize("size", [1.0, 1e-9, 1e-30, 1e-36])
def test_pca_leaves_less_error_with_more_bits_at_any_size(precision: Precision, size: float) -> None:
    x = (smooth(20, 30, 48) * np.float64(size)).astype(np.float32)
    exact = x.astype(np.float64) / size
    lost = np.square(error(x, precision) / size).sum() / np.square(exact - exact.mean(axis=(0, 1))).sum()
    assert lost < LOST[precision]


@pytest.mark.parametrize("shape", [(1, 1), (5,), (3, 2), (2, 4, 9)])
@pytest.mark.parametrize("precision", PCA)
def test_pca_brings_back_rows_that_are_all_alike(precision: Precision, shape: tuple[int, ...]) -> None:
    x = np.full(shape, -3.0, np.float32)
    np.testing.assert_allclose(round_trip(x, precision), x, rtol=0.02)


@pytest.mark.parametrize("precision", PCA)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_pca_leaves_the_largest_float32_finite(precision: Precision, sign: float) -> None:
    x = (smooth(300, 24) * np.float32(sign)).astype(np.float32)
    x = (x * (LARGEST / np.abs(x).max().astype(np.float64))).astype(np.float32)
    back = round_trip(x, precision)
    assert np.isfinite(back).all()
    exact = x.astype(np.float64) / LARGEST
    rounded = 1.001  # where there is room for the mean alone, it comes in so many bits
    assert np.square(back / LARGEST - exact).sum() < rounded * np.square(exact - exact.mean(axis=0)).sum()


def test_the_layout_is_the_documented_one() -> None:
    x = np.array([[127.0, -64.0, 1.0, 0.0]], np.float32)
    assert encode(x, "fp32") == struct.pack("<4f", 127, -64, 1, 0)
    assert encode(x, "fp16") == struct.pack("<i4e", 7, 127 / 128, -0.5, 1 / 128, 0)
    assert encode(x, "bf16") == struct.pack("<4H", 0x42FE, 0xC280, 0x3F80, 0)
    assert encode(x, "int8") == struct.pack("<ie4b", 7, 1 / 128, 127, -64, 1, 0)
    assert encode(-x, "int8") == struct.pack("<ie4b", 7, 1 / 128, -127, 64, -1, 0)
    y = np.array([[-2.0, 1.0, 0.5, 0.0, 1.9]], np.float32)  # two bits, steps of 1: levels 0, 3, 2 (even), 2, 3
    assert encode(y, "int2") == struct.pack("<ie2B", 2, 0.25, 0b10010, 0b11110)
    assert encode(-y, "int2") == struct.pack("<ie2B", 2, -0.25, 0b10010, 0b11110)


@pytest.mark.parametrize("precision", VALUE_PRECISIONS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_float32_comes_back_finite(precision: Precision, sign: float) -> None:
    x = np.array([[LARGEST * sign, 0.0], [LARGEST * (1 - 2.0**-9) * sign, 0.0]], np.float32)
    np.testing.assert_allclose(round_trip(x, precision), x, rtol=2.0**-7)


def test_fp32_is_read_where_it_lies_if_it_may_be_written_to_and_copied_if_not() -> None:
    x = gaussian(3, 4)
    message = encode(x, "fp32", b"tail")
    there = decode(message[:48], (3, 4), "fp32")
    there[1, 2] = 7.0
    assert struct.unpack_from("<f", message, 4 * 6) == (7.0,)
    frozen = bytes(message[:48])
    copied = decode(frozen, (3, 4), "fp32")
    copied[0] = 0.0
    assert decode(frozen, (3, 4), "fp32").any(axis=1).all()
    unaligned = decode(memoryview(bytearray(b"!" + frozen))[1:], (3, 4), "fp32")
    for back in (there, copied, unaligned):
        assert back.flags.c_contiguous
        assert back.flags.writeable
        assert back.flags.aligned
        assert back.dtype == np.float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_encoding_leaves_the_tensor_as_it_was(precision: Precision) -> None:
    x = gaussian(3, 4)
    encode(x, precision)[:] = bytes(encoded_bytes((3, 4), precision))
    np.testing.assert_array_equal(x, gaussian(3, 4))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_strided_tensors_and_unaligned_buffers_are_fine_and_the_result_may_be_written_to(precision: Precision) -> None:
    x = gaussian(6, 8)
    message = b"!" + bytes(encode(x.T[::2], precision))
    back = decode(memoryview(message)[1:], (4, 6), precision)
    np.testing.assert_array_equal(back, round_trip(np.ascontiguousarray(x.T[::2]), precision))
    assert back.dtype == np.float32
    assert back.flags.writeable


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("change", [-1, 1])
def test_another_length_is_refused(precision: Precision, change: int) -> None:
    data = encode(np.ones((2, 4), np.float32), precision, b"x")
    with pytest.raises(ProtocolError, match=rf"{precision} tensor \[2, 4\]") as caught:
        decode(data[: len(data) - 1 + change], (2, 4), precision)
    assert caught.value.code == "size"


@pytest.mark.parametrize("precision", VALUE_PRECISIONS)
def test_a_large_scale_is_fine_where_the_values_are_small(precision: Precision) -> None:
    if precision in LEVELS:  # a sender of another make may scale otherwise
        size = encoded_bytes((1, 2), precision) - 6
        values = b"\x01\x00" if precision == "int8" else b"\x00" * (size - 1) + b"\x03"  # 1, 0; 0, 0 in planes
        assert decode(struct.pack("<ie", 127, 1.5) + values, (1, 2), precision).max() < LARGEST


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_not_sent(precision: Precision, bad: float) -> None:
    x = np.ones((2, 4), np.float32)
    x[1, 2] = bad
    with pytest.raises(ProtocolError, match="NaN or infinite") as caught:
        encode(x, precision)
    assert caught.value.code == "nan"


HOSTILE: dict[str, tuple[Precision, bytes]] = {
    "fp32 NaN": ("fp32", struct.pack("<2f", 1, np.nan)),
    "fp32 infinity": ("fp32", struct.pack("<2f", -np.inf, 1)),
    "fp16 NaN": ("fp16", struct.pack("<i2e", 0, 1, np.nan)),
    "fp16 infinity": ("fp16", struct.pack("<i2e", 0, np.inf, 1)),
    "fp16 exponent": ("fp16", struct.pack("<i2e", 2**31 - 1, 1, 1)),
    "int8 NaN scale": ("int8", struct.pack("<ie2b", 0, np.nan, 1, 0)),
    "int8 infinite scale": ("int8", struct.pack("<ie2b", 0, np.inf, 1, 0)),
    "int8 exponent": ("int8", struct.pack("<ie2b", 200, 1, 1, 0)),
    "int8 values": ("int8", struct.pack("<ie2b", 128, 1 / 127, 1, -128)),
    "fp16 negative infinity": ("fp16", struct.pack("<i2e", -140, -np.inf, 1)),
    "fp16 large exponent": ("fp16", struct.pack("<i2e", 128, 1, 0)),
    "fp16 small exponent": ("fp16", struct.pack("<i2e", -(2**31), 1, 0)),
    "bf16 NaN": ("bf16", struct.pack("<2H", 0x7F81, 0)),
    "bf16 infinity": ("bf16", struct.pack("<2H", 0, 0xFF80)),
    "int4 NaN scale": ("int4", struct.pack("<ie4B", 0, np.nan, 0, 0, 0, 0)),
    "int3 infinite scale": ("int3", struct.pack("<ie3B", 0, -np.inf, 0, 0, 0)),
    "int3 exponent beyond float32's": ("int3", struct.pack("<ie3B", 129, 0, 0, 0, 0)),
    "int3 exponent below float32's": ("int3", struct.pack("<ie3B", -150, 0, 0, 0, 0)),
    "int2 exponent": ("int2", struct.pack("<ie2B", 2**31 - 1, 1, 0, 0)),
    "int2 values": ("int2", struct.pack("<ie2B", 128, 0.51, 0, 0)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_bytes_of_values_that_are_not_finite_are_refused(name: str) -> None:
    precision, data = HOSTILE[name]
    with pytest.raises(ProtocolError, match="NaN or infinite") as caught:
        decode(data, (1, 2), precision)
    assert caught.value.code == "nan"


@given(PRECISION, st.data())
@settings(deadline=None)
def test_any_bytes_of_the_right_length_are_finite_values_or_refused(precision: Precision, data: st.DataObject) -> None:
    size = encoded_bytes((2, 3), precision)
    message = bytearray(data.draw(st.binary(min_size=size, max_size=size)))
    if precision not in ("fp32", "bf16") and data.draw(st.booleans()):  # else hardly any would come past the exponent
        message[:4] = struct.pack("<i", data.draw(st.integers(-150, 130)))
    if pca_bits(precision) and data.draw(st.booleans()):  # nor, of these, past the rank and the class bits
        message[4:6], message[10:12] = struct.pack("<H", data.draw(st.integers(0, 4))), bytes(2)
    try:
        x = decode(message, (2, 3), precision)
    except ProtocolError as refusal:
        assert refusal.code in ("nan", "size") if component_bits(precision) else refusal.code == "nan"  # noqa: PT017 - or none
    else:
        assert np.isfinite(x).all()
