"""Tensors on the wire: how exact they come back, how many bytes they take, and what is refused."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from adc_edge.errors import ProtocolError
from adc_edge.precision import PRECISIONS, Float32, Precision, decode, encode, encoded_bytes

LARGEST = float(np.float32(1e38))
DENORMAL = 2e-45  # float32's smallest step, when everything is that small
PRECISION = st.sampled_from(PRECISIONS)
VALUES = st.floats(-LARGEST, LARGEST, width=32) | st.floats(-1.0, 1.0, width=32)
TENSORS = arrays(np.float32, array_shapes(min_dims=2, max_dims=3, max_side=6), elements=VALUES)


def round_trip(x: Float32, precision: Precision) -> Float32:
    return decode(encode(x, precision), x.shape, precision)


def error(x: Float32, precision: Precision) -> npt.NDArray[np.float64]:
    return np.abs(round_trip(x, precision).astype(np.float64) - x.astype(np.float64))


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
def test_int8_is_off_by_half_a_step_of_its_token_plus_the_rounding_of_the_scale(x: Float32) -> None:
    token = np.abs(x.astype(np.float64)).max(axis=-1, keepdims=True)
    half_step = token / 127 / 2
    scale_rounding = token * 2.0**-11 + token.max() * 2.0**-17  # 127 * fp16's half unit, relative or at its floor
    assert (error(x, "int8") <= (half_step + scale_rounding) * 1.001 + DENORMAL).all()


def test_each_token_has_its_own_int8_scale() -> None:
    x = np.array([[[100.0, -50.0], [0.1, -0.05]]], np.float32)
    np.testing.assert_allclose(round_trip(x, "int8"), x, rtol=0.01)


@pytest.mark.parametrize(("precision", "rtol"), [("fp32", 0), ("fp16", 2**-10), ("int8", 0)])
@pytest.mark.parametrize("size", [1e-9, 1e-30, 1e-42])
def test_tiny_gradients_survive(precision: Precision, rtol: float, size: float) -> None:
    x = (np.random.default_rng(0).standard_normal((4, 5, 16)) * size).astype(np.float32)
    back = round_trip(x, precision)
    step = np.abs(x).max(axis=-1, keepdims=True) / 127 if precision == "int8" else 0
    assert (np.abs(back - x) <= 0.51 * step + rtol * np.abs(x) + DENORMAL + rtol * np.abs(x).max() / 1000).all()
    assert np.abs(back).max() == pytest.approx(np.abs(x).max(), rel=0.01)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_tensor_of_zeros_comes_back(precision: Precision) -> None:
    x = np.zeros((2, 3, 4), np.float32)
    assert not round_trip(x, precision).any()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_token_of_zeros_beside_others_comes_back(precision: Precision) -> None:
    x = np.array([[0, 0, 0], [1, -1, 0.5]], np.float32)
    np.testing.assert_allclose(round_trip(x, precision), x, atol=0.005)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_tensor_without_rows_comes_back(precision: Precision) -> None:
    assert round_trip(np.empty((0, 4), np.float32), precision).shape == (0, 4)


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4 * 105), ("fp16", 4 + 2 * 105), ("int8", 4 + 2 * 15 + 105)])
def test_the_size_is_known_before_encoding(precision: Precision, size: int) -> None:
    assert encoded_bytes((3, 5, 7), precision) == size
    assert len(encode(np.ones((3, 5, 7), np.float32), precision)) == size


@given(TENSORS, PRECISION)
@settings(deadline=None)
def test_encoding_takes_exactly_the_bytes_that_were_promised(x: Float32, precision: Precision) -> None:
    assert len(encode(x, precision)) == encoded_bytes(x.shape, precision)


def test_the_layout_can_be_read_in_any_language() -> None:
    x = np.array([[127.0, -64.0, 1.0, 0.0]], np.float32)
    assert encode(x, "fp32") == struct.pack("<4f", 127, -64, 1, 0)
    assert encode(x, "fp16") == struct.pack("<i4e", 7, 127 / 128, -0.5, 1 / 128, 0)
    assert encode(x, "int8") == struct.pack("<ie4b", 7, 1 / 128, 127, -64, 1, 0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_strided_tensors_and_unaligned_buffers_are_fine_and_the_result_may_be_written_to(precision: Precision) -> None:
    x = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    message = b"!" + encode(x.T[::2], precision)
    back = decode(memoryview(message)[1:], (4, 6), precision)
    np.testing.assert_allclose(back, x.T[::2], atol=0.02)
    assert back.dtype == np.float32
    assert back.flags.writeable


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("change", [-1, 1])
def test_another_length_is_refused(precision: Precision, change: int) -> None:
    data = encode(np.ones((2, 4), np.float32), precision) + b"x"
    with pytest.raises(ProtocolError, match=rf"{precision} tensor \[2, 4\]") as caught:
        decode(data[: len(data) - 1 + change], (2, 4), precision)
    assert caught.value.code == "size"


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
}


@pytest.mark.parametrize("name", HOSTILE)
def test_bytes_that_mean_no_finite_number_are_refused(name: str) -> None:
    precision, data = HOSTILE[name]
    with pytest.raises(ProtocolError, match="NaN or infinite") as caught:
        decode(data, (1, 2), precision)
    assert caught.value.code == "nan"


@given(PRECISION, st.data())
@settings(deadline=None)
def test_any_bytes_of_the_right_length_are_finite_values_or_refused(precision: Precision, data: st.DataObject) -> None:
    size = encoded_bytes((2, 3), precision)
    try:
        x = decode(data.draw(st.binary(min_size=size, max_size=size)), (2, 3), precision)
    except ProtocolError as refusal:
        assert refusal.code == "nan"  # noqa: PT017 - both outcomes are allowed
    else:
        assert np.isfinite(x).all()
