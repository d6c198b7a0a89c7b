"""Low-rank messages: quantisers, the documented bytes, the error of decoded rows, and refused messages."""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from adc_edge.arrays import Float32, UInt8
from adc_edge.codec import lloyd_max as normal
from adc_edge.codec.lowrank import coordinates_in, decode_rows, encode_rows, payload_bytes
from adc_edge.codec.precision import decode, encode, encoded_bytes
from adc_edge.errors import ProtocolError

LARGEST = float(np.finfo(np.float32).max)
RATES = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0)
RATE = st.sampled_from(RATES)
VALUES = st.floats(-LARGEST, LARGEST, width=32) | st.floats(-1.0, 1.0, width=32)
SHAPES = array_shapes(min_dims=2, max_dims=2, max_side=12)
TENSORS = arrays(np.float32, SHAPES, elements=VALUES)
HEAD = "<iHhhH"  # exponent, rank, threshold, vector offset, class bits


def packed(x: Float32, bits: float) -> UInt8:
    rows, width = x.shape
    out = np.full(payload_bytes(rows, width, bits), 0xAA, np.uint8)
    encode_rows(x, out)
    return out


def round_trip(x: Float32, bits: float) -> Float32:
    return decode_rows(packed(x, bits).data, *x.shape)


def relative_error(back: Float32, x: Float32) -> float:
    """Squared error as a share of the squares of ``x``."""
    exact = x.astype(np.float64)
    return float(np.square(back - exact).sum() / np.square(exact).sum())


def decaying(rows: int, width: int, seed: int = 0, decay: float = 4.0) -> Float32:
    """Rows around a mean; their components' deviations halve every ``decay`` components."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((width, width)))[0]
    coordinates = rng.standard_normal((rows, width)) * 2.0 ** (-np.arange(width) / decay)
    rows_around: Float32 = (coordinates @ directions + 0.5 * rng.standard_normal(width)).astype(np.float32)
    return rows_around


def of_unlike_sizes(rows: int, width: int) -> Float32:
    """Rows like ``decaying``'s; as in gradients, some are a hundred times as large as others."""
    x = decaying(rows, width)
    x -= x.mean(axis=0)
    x *= np.exp2(np.random.default_rng(1).uniform(-6.6, 0, (rows, 1))).astype(np.float32)
    return x


# the quantisers

# Max, Quantizing for Minimum Distortion, 1960, table I: errors at 2, 4, 8, 16 and 32 levels.
MAX_1960 = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497, 5: 0.002499}
POINTS = np.linspace(-9, 9, 90_001)
DENSITY = np.exp(-np.square(POINTS) / 2) / math.sqrt(2 * math.pi) * (POINTS[1] - POINTS[0])


def levels(width: int) -> npt.NDArray[np.float64]:
    return normal.values(np.arange(2**width, dtype=np.uint8), np.array(width, np.uint8)).astype(np.float64)


@pytest.mark.parametrize("width", range(1, 9))
def test_the_levels_leave_the_error_that_is_written_down_and_hardly_more_than_the_least(width: int) -> None:
    table = levels(width)
    assert (np.diff(table) > 0).all()
    np.testing.assert_allclose(table, -table[::-1])
    nearest = table[np.searchsorted((table[1:] + table[:-1]) / 2, POINTS)]
    error = float((np.square(POINTS - nearest) * DENSITY).sum())
    assert error == pytest.approx(normal.ERRORS[width], rel=0.01)
    asymptotic = math.sqrt(3) * math.pi / 2 * 4.0**-width  # Panter and Dite, of many levels
    assert error == pytest.approx(MAX_1960.get(width, asymptotic), rel=0.01 if width in MAX_1960 else 0.04)


@pytest.mark.parametrize("width", range(1, 4))
def test_the_levels_are_where_lloyds_rounds_end(width: int) -> None:
    table = np.linspace(-2, 2, 2**width)
    for _ in range(200):
        cells = np.searchsorted((table[1:] + table[:-1]) / 2, POINTS)
        table = np.bincount(cells, POINTS * DENSITY) / np.bincount(cells, DENSITY)
    np.testing.assert_allclose(levels(width), table, atol=0.05)


@given(
    arrays(np.float32, 50, elements=st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-8, 8)), st.integers(0, 8)
)
def test_a_code_is_that_of_the_nearest_level(x: Float32, width: int) -> None:
    widths = np.full(x.shape, width, np.uint8)
    codes = normal.codes(x, width)
    found = normal.values(codes, widths)
    assert int(codes.max()) < 2**width
    if not width:
        assert not found.any()
    exact = x.astype(np.float64)
    least = np.abs(exact[:, None] - levels(width)).min(1)
    assert (np.abs(exact - found) <= least * (1 + 1e-6) + 1 / 256).all()  # it is looked up by 256ths


# the bytes


@given(SHAPES, st.sampled_from((*RATES, 3.3)))
def test_the_size_follows_from_the_shape(shape: tuple[int, int], bits: float) -> None:
    rows, width = shape
    least = 12 + 2 + 8 * math.ceil(width / 8)  # head, level and 8 bits an entry of the mean
    assert payload_bytes(rows, width, bits) == max(math.ceil(bits * rows * width / 8), least)


@given(TENSORS, RATE)
@settings(deadline=None)
def test_any_tensor_comes_back_finite_and_the_same_each_time(x: Float32, bits: float) -> None:
    before, data = x.tobytes(), packed(x, bits)
    back = decode_rows(data.data, *x.shape)
    assert np.isfinite(back).all()
    assert float(np.abs(back).max()) <= 2 * float(np.abs(x).max())  # below the next power of two
    assert back.dtype == np.float32
    assert back.flags.writeable
    assert back.flags.c_contiguous
    assert packed(x, bits).tobytes() == data.tobytes()
    assert decode_rows(data.data, *x.shape).tobytes() == back.tobytes()
    assert x.tobytes() == before


def reference_bits(above: int) -> int:
    """Bits at an excess of ``above``: each where it saves as much as the first one does at the threshold."""
    savings = normal.ERRORS[:-1] - normal.ERRORS[1:]
    rises = [round(32 * math.log2(savings[0] / saving)) for saving in savings]
    return sum(above >= rise for rise in rises)


def reference_decode(data: bytes, rows: int, width: int) -> npt.NDArray[np.float64]:
    """Decode by the documented layout, bit by bit."""
    exponent, rank, threshold, offset, class_bits = struct.unpack_from(HEAD, data)
    at = struct.calcsize(HEAD)
    level = struct.unpack_from(f"<{1 + rank}h", data, at)
    at += 2 * (1 + rank)

    def planes(widths: list[int]) -> list[int]:
        nonlocal at
        codes = [0] * len(widths)
        for bit in range(8):
            wide = [index for index, bits in enumerate(widths) if bits > bit]
            for place, index in enumerate(wide):
                codes[index] |= (data[at + place // 8] >> place % 8 & 1) << bit
            at += math.ceil(len(wide) / 8)
        return codes

    classes = [0] * rows
    for bit in range(class_bits):
        for row in range(rows):
            classes[row] |= (data[at + row // 8] >> row % 8 & 1) << bit
        at += math.ceil(rows / 8)
    entry = [reference_bits(level[0] - threshold - offset)]
    entry += [max(1, reference_bits(one - threshold - offset)) if one >= threshold else 0 for one in level[1:]]
    codes = planes([bits for bits in entry for _ in range(width)])
    vectors = np.array([[levels(b)[c] for c in codes[i * width :][:width]] for i, b in enumerate(entry)])
    vectors /= np.maximum(np.sqrt(np.square(vectors).sum(axis=1, keepdims=True)), 1e-300)
    widths = [reference_bits(one - threshold - 32 * row) for row in classes for one in level[1:]]
    chosen = planes(widths)
    assert not any(data[at:])
    deviations = [2.0 ** ((one - 32 * row) / 64) for row in classes for one in level[1:]]
    coordinates = [d * levels(b)[c] if b else 0.0 for d, b, c in zip(deviations, widths, chosen, strict=True)]
    mean = 2.0 ** (level[0] / 64) * math.sqrt(sum(2.0**-row for row in classes) / rows) * vectors[0]
    x = np.array(coordinates).reshape(rows, rank) @ vectors[1:] + mean
    decoded: npt.NDArray[np.float64] = np.ldexp(np.clip(x, -1, 1), exponent)
    return decoded


CASES = {"alike": decaying(61, 13), "unlike": of_unlike_sizes(101, 12), "small": decaying(3, 5)}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bits", [0.5, 1.0, 2.0, 4.0])
def test_the_layout_is_the_documented_one(name: str, bits: float) -> None:
    x = CASES[name]
    data = packed(x, bits)
    expected = reference_decode(data.tobytes(), *x.shape)
    np.testing.assert_allclose(decode_rows(data.data, *x.shape), expected, atol=1e-5 * float(np.abs(x).max()))


@pytest.mark.parametrize("name", CASES)
def test_components_may_stand_in_any_order_of_their_levels(name: str) -> None:
    x = CASES[name]
    data = packed(x, 1.0)
    rank = struct.unpack_from(HEAD, data.data)[1]
    levels = data[14 : 14 + 2 * rank].view("<i2")
    levels[:] = np.roll(levels, rank // 2)  # as our encoder never writes them
    expected = reference_decode(data.tobytes(), *x.shape)
    np.testing.assert_allclose(decode_rows(data.data, *x.shape), expected, atol=1e-5 * float(np.abs(expected).max()))


def test_a_tensor_of_zeros_is_a_head_alone() -> None:
    for shape in ((3, 5), (0, 5), (3, 0), (0, 0), (300, 40)):
        data = packed(np.zeros(shape, np.float32), 1.0)
        assert len(data) == payload_bytes(*shape, 1.0)
        assert struct.unpack_from(HEAD, data.data)[1] == 0
        assert not data[14:].any()
        back = decode_rows(data.data, *shape)
        assert back.shape == shape
        assert not back.any()


@pytest.mark.parametrize("bits", RATES)
def test_a_message_is_full(bits: float) -> None:
    for x in (decaying(2000, 64), of_unlike_sizes(2000, 64)):
        data = packed(x, bits)
        end = coordinates_in(data.data, *x.shape).stop
        assert not data[end:].any()
        assert len(data) - end < 20 + len(x) / 8  # less than another bit for each row


def class_bits(x: Float32) -> int:
    return int(struct.unpack_from(HEAD, packed(x, 0.5).data)[4])


def test_rows_have_classes_where_they_differ_in_size_and_none_where_they_do_not() -> None:
    assert class_bits(decaying(2000, 64)) == 0
    assert class_bits(of_unlike_sizes(2000, 64)) == 4


# the error


@given(TENSORS, RATE)
@settings(deadline=None)
def test_the_error_is_at_most_that_of_the_mean_row(x: Float32, bits: float) -> None:
    peak = float(np.abs(x).max())
    if peak < 1e-30:
        return  # subnormal float32 values have too few bits for this bound
    exact = x.astype(np.float64) / peak
    mean = exact.mean(axis=0)
    error = np.square(round_trip(x, bits) / peak - exact).sum()
    alone = np.square(exact - mean).sum()
    assert error <= alone * 1.001 + len(x) * np.square(mean).sum() * 0.01 + 1e-12  # the mean, too, is rounded


@pytest.mark.parametrize("make", [decaying, of_unlike_sizes])
def test_more_bits_bring_rows_nearer(make: Callable[[int, int], Float32]) -> None:
    x = make(1500, 64)
    errors = [relative_error(round_trip(x, bits), x) for bits in RATES]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05 * errors[0]


@pytest.mark.parametrize("bits", [0.5, 1.0, 2.0])
def test_rows_in_the_span_of_a_few_directions_come_back_nearly_exactly(bits: float) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((1000, 3)) @ rng.standard_normal((3, 192)) + rng.standard_normal(192)).astype(np.float32)
    assert relative_error(round_trip(x, bits), x) < 2e-3


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_rows_that_are_all_the_same_come_back_nearly_exactly(rows: int, width: int, seed: int) -> None:
    row = np.random.default_rng(seed).standard_normal(width).astype(np.float32)
    x = np.repeat(row[None], rows, axis=0)
    assert relative_error(round_trip(x, 1.0), x) < 2e-3


def test_an_eighth_of_the_bytes_brings_rows_nearer_than_two_bits_for_each_value_do() -> None:
    for x in (decaying(3000, 64), of_unlike_sizes(3000, 64)):
        small, large = encode(x, "pca0.25"), encode(x, "int2")
        assert len(small) < len(large) / 8
        near, far = decode(small, x.shape, "pca0.25"), decode(large, x.shape, "int2")
        assert relative_error(near, x) < relative_error(far, x) / 2


def test_components_of_equal_size_leave_the_error_of_their_quantiser() -> None:
    """Eight equal components need every vector; 0.02 bits a value pay for the vectors."""
    x = np.random.default_rng(0).standard_normal((20_000, 8)).astype(np.float32)
    for bits in (1.0, 2.0):
        assert relative_error(round_trip(x, bits + 0.02), x) == pytest.approx(normal.ERRORS[int(bits)], rel=0.05)


@pytest.mark.parametrize("size", [1e-8, 1e-30, 1e-36, 1.0, 1e30])
def test_the_size_of_gradients_does_not_matter(size: float) -> None:
    x = decaying(400, 32)
    small = (x * np.float64(size)).astype(np.float32)
    assert relative_error(round_trip(small, 1.0), small) == pytest.approx(
        relative_error(round_trip(x, 1.0), x), rel=0.05
    )


@given(TENSORS, RATE, st.integers(-60, 60))
@settings(deadline=None)
def test_a_power_of_two_changes_nothing_but_the_size(x: Float32, bits: float, power: int) -> None:
    x = np.ldexp(x / max(float(np.abs(x).max()), 1e-30), 0).astype(np.float32)
    x[np.abs(x) < 2.0**-40] = 0
    np.testing.assert_array_equal(round_trip(np.ldexp(x, power), bits), np.ldexp(round_trip(x, bits), power))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_float32_comes_back_finite(sign: float) -> None:
    x = np.full((50, 16), LARGEST * sign, np.float32)
    np.testing.assert_allclose(round_trip(x, 2.0), x, rtol=0.02)
    x[::2] /= 3
    back = round_trip(x, 2.0)
    assert np.isfinite(back).all()
    np.testing.assert_allclose(back / LARGEST, x / LARGEST, atol=0.05)


def test_one_huge_row_does_not_spoil_the_zero_rows() -> None:
    x = np.zeros((500, 40), np.float32)
    x[7] = np.random.default_rng(0).standard_normal(40)
    back = round_trip(x, 0.5)
    assert relative_error(back, x) < 0.1
    assert np.abs(np.delete(back, 7, axis=0)).max() < 0.05


# what is refused


def hostile(data: st.DataObject, shape: tuple[int, int], size: int) -> bytearray:
    message = bytearray(data.draw(st.binary(min_size=size, max_size=size)))
    if data.draw(st.booleans()):  # else hardly any would come past the head
        head = (st.integers(-150, 129), st.integers(0, shape[1] + 1), *[st.integers(-600, 600)] * 2)
        message[:12] = struct.pack(HEAD, *map(data.draw, head), data.draw(st.sampled_from([0, 4, 4, 5])))
        levels = data.draw(st.lists(st.integers(-1000, 300), max_size=4))
        struct.pack_into(f"<{len(levels)}h", message, 12, *levels)
    return message


@given(st.tuples(st.integers(0, 12), st.integers(1, 12)), st.data())
@settings(deadline=None, max_examples=400)
def test_any_bytes_of_the_right_length_are_a_tensor_or_refused(shape: tuple[int, int], data: st.DataObject) -> None:
    message = hostile(data, shape, payload_bytes(*shape, 2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            x = decode_rows(memoryview(message), *shape)
        except ProtocolError as refusal:
            assert refusal.code in {"size", "nan"}  # noqa: PT017 - both outcomes are allowed
        else:
            assert x.shape == shape
            assert np.isfinite(x).all()
            assert coordinates_in(memoryview(message), *shape).stop <= len(message)


@pytest.mark.parametrize(
    "head",
    [
        (0, 9, 0, 0, 0),
        (0, 65535, 0, 0, 0),
        (0, 8, -3000, 0, 0),
        (0, 0, 0, 0, 3),
        (0, 0, 0, 0, 65535),
        (129, 0, 0, 0, 0),
    ],
    ids=["rank", "largest rank", "more bits than bytes", "class bits", "many class bits", "exponent"],
)
def test_a_head_that_no_encoder_writes_is_refused(head: tuple[int, ...]) -> None:
    size = encoded_bytes((4, 8), "pca2")
    message = struct.pack(HEAD, *head).ljust(size, b"\0")
    with pytest.raises(ProtocolError) as caught:
        decode(message, (4, 8), "pca2")
    assert caught.value.code == "size"


def test_levels_that_no_encoder_writes_are_refused_as_nan() -> None:
    x = decaying(100, 8)
    message = bytearray(encode(x, "pca2"))
    rank = struct.unpack_from(HEAD, message)[1]
    message[12 : 12 + 2 * (1 + rank)] = struct.pack("<h", 32767) * (1 + rank)
    with pytest.raises(ProtocolError):
        decode(message, (100, 8), "pca2")
