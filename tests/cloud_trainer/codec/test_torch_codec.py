"""The codec in torch, held to NumPy's on a CPU: each reads what the other wrote, with the same values and error."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from adc_edge.arrays import Array, Float32, UInt8
from adc_edge.cloud_trainer.accumulator import StepAccumulator
from adc_edge.cloud_trainer.codec import lloyd_max as in_torch_normal
from adc_edge.cloud_trainer.codec import precision as in_torch
from adc_edge.cloud_trainer.codec import vectors as in_torch_vectors
from adc_edge.cloud_trainer.codec.casts import times_power
from adc_edge.cloud_trainer.codec.on_device import decode_to, encode_from
from adc_edge.cloud_trainer.codec.planes import PlanePlaces, pack_bits, unpack_bits
from adc_edge.cloud_trainer.codec.spectrum import TensorSpectrum
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.codec import lloyd_max, vectors
from adc_edge.codec import precision as in_numpy
from adc_edge.codec.bit_allocation import empty_allocation
from adc_edge.codec.lowrank import decode_rows, read_head
from adc_edge.codec.planes import CodePlanes, blocks_of
from adc_edge.codec.precision import PRECISIONS, VALUE_PRECISIONS, Precision, encoded_bytes, pca_bits
from adc_edge.codec.spectrum import ROW_CLASSES, ArraySpectrum
from adc_edge.errors import ProtocolError

CPU = torch.device("cpu")
LARGEST = float(np.finfo(np.float32).max)
PCA = [precision for precision in PRECISIONS if pca_bits(precision)]
VALUES = st.floats(-LARGEST, LARGEST, width=32) | st.floats(-1.0, 1.0, width=32)
TENSORS = arrays(np.float32, array_shapes(min_dims=2, max_dims=3, max_side=9), elements=VALUES)
ULPS = 1e-6  # of the largest value: a few units in the last place of the sums of a matrix product


def rows_like(rows: int, width: int, spread: float, seed: int = 0) -> Float32:
    """Rows around a mean, with components that decay; ``spread`` is the deviation of the logarithm of a row's size."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((width, width)))[0]
    x = rng.standard_normal((rows, width)) * 2.0 ** (-np.arange(width) * 6 / width) @ directions
    x *= 2.0 ** (spread * rng.standard_normal((rows, 1)))
    around: Float32 = (x + 0.3 * rng.standard_normal(width) * 2.0**-spread).astype(np.float32)
    return around


def encoded(x: Float32, precision: Precision) -> memoryview:
    return in_torch.encode(torch.from_numpy(x), precision)


def decoded(data: memoryview | bytes | bytearray, shape: tuple[int, ...], precision: Precision) -> Float32:
    x: Float32 = in_torch.decode(data, shape, precision, CPU).numpy()
    return x


def squared_error(back: Array, x: Array) -> float:
    return float(np.square(back.astype(np.float64) - x).sum())


ALIKE, UNLIKE = rows_like(700, 48, 0.2), rows_like(900, 32, 2.5)
CASES = {
    "rows alike": ALIKE,
    "rows of unlike sizes": UNLIKE,
    "gradients below fp16's range": (UNLIKE * 1e-20).astype(np.float32),
    "subnormal values": (ALIKE * np.float64(1e-40)).astype(np.float32),
    "near float32's limit": (ALIKE * (LARGEST / 2 / np.abs(ALIKE).max())).astype(np.float32),
    "few rows for the channels": rows_like(100, 64, 1.0),
    "fewer rows than channels": rows_like(20, 64, 1.0),
    "many rows": rows_like(9000, 24, 1.5),
    "three axes": rows_like(600, 16, 0.5).reshape(30, 20, 16),
}


# values


@pytest.mark.parametrize("precision", VALUE_PRECISIONS)
@pytest.mark.parametrize("name", CASES)
def test_casts_and_integers_are_numpys_bytes_and_values(name: str, precision: Precision) -> None:
    x = CASES[name]
    data = in_numpy.encode(x, precision)
    assert encoded(x, precision) == data
    np.testing.assert_array_equal(decoded(data, x.shape, precision), in_numpy.decode(data, x.shape, precision))


@given(TENSORS, st.sampled_from(VALUE_PRECISIONS))
@settings(deadline=None)
def test_values_of_any_size_are_numpys(x: Float32, precision: Precision) -> None:
    expected = in_numpy.decode(in_numpy.encode(x, precision), x.shape, precision)
    data = encoded(x, precision)  # the scale of a row of zeros may have either sign
    np.testing.assert_array_equal(in_numpy.decode(data, x.shape, precision), expected)
    np.testing.assert_array_equal(decoded(data, x.shape, precision), expected)


# principal components


@pytest.mark.parametrize("precision", ["pca4", "pca2", "pca1", "pca0.25", "pca0.0625"])
@pytest.mark.parametrize("name", CASES)
def test_each_side_reads_what_the_other_wrote_and_the_error_is_the_same(name: str, precision: Precision) -> None:
    x = CASES[name]
    unit = np.abs(x).max()
    theirs, ours = in_numpy.encode(x, precision), encoded(x, precision)
    assert len(ours) == encoded_bytes(x.shape, precision)
    size = 1 / np.float64(unit)
    for data in (theirs, ours):
        back = in_numpy.decode(data, x.shape, precision)
        np.testing.assert_allclose(
            decoded(data, x.shape, precision) * size, back * size, rtol=0, atol=2 * ULPS + 3e-45 / unit
        )
    errors = [squared_error(in_numpy.decode(data, x.shape, precision) * size, x * size) for data in (theirs, ours)]
    assert errors[1] <= 1.01 * errors[0]


@pytest.mark.parametrize("precision", PCA)
def test_heads_are_numpys_and_codes_differ_only_where_rounding_decides(precision: Precision) -> None:
    theirs, ours = in_numpy.encode(ALIKE, precision), encoded(ALIKE, precision)
    expected, found = (read_head(data, *ALIKE.shape).allocation for data in (theirs, ours))
    assert found.levels.shape == expected.levels.shape
    assert np.abs(found.levels - expected.levels).max() <= 1
    assert (found.threshold, found.vector_offset) == (expected.threshold, expected.vector_offset)
    if found.levels.tolist() != expected.levels.tolist():  # it moves all coordinates of a component a little
        return
    # An eigenvector's sign is arbitrary; rows do not depend on it.
    backs = [decode_rows(data, *ALIKE.shape) for data in (theirs, ours)]
    moved = np.abs(backs[0] - backs[1]).max(axis=1) > 1e-4 * np.abs(ALIKE).max()
    assert moved.mean() < 0.1


def test_rows_have_the_classes_that_numpy_gives_them_or_one_beside() -> None:
    rows = UNLIKE - UNLIKE.mean(axis=0)
    theirs, ours = ArraySpectrum(rows), TensorSpectrum(torch.from_numpy(rows))
    difference = ours.classes.numpy() - theirs.classes
    assert np.abs(difference).max() <= 1
    assert np.count_nonzero(difference) <= 2
    assert ours.counts.sum() == len(rows)
    np.testing.assert_allclose(ours.variances, theirs.variances, atol=1e-5 * theirs.variances.max())
    np.testing.assert_allclose(ours.saved_bits(), theirs.saved_bits(), rtol=1e-4)
    np.testing.assert_allclose(
        ours.energies(0).sum(axis=0), theirs.variances, rtol=0.01, atol=1e-4 * theirs.variances.max()
    )


@pytest.mark.parametrize("width", range(9))
def test_codes_and_levels_of_every_width_are_numpys(width: int) -> None:
    near = lloyd_max.tables().bounds[width] if width else np.zeros(1, np.float32)
    around = [near, np.nextafter(near, np.float32(-9)), np.nextafter(near, np.float32(9))]
    x = np.concatenate(
        [*around, np.linspace(-7, 7, 5001, dtype=np.float32), np.array([-(2.0**100), 2.0**100, 0, -0.0], np.float32)]
    )
    widths = np.full(x.shape, width, np.uint8)
    codes = lloyd_max.codes(x, width)
    ours = in_torch_normal.codes(torch.from_numpy(x), torch.tensor(width))
    np.testing.assert_array_equal(ours.numpy(), codes)
    np.testing.assert_array_equal(
        in_torch_normal.values(ours, torch.tensor(width)).numpy(), lloyd_max.values(codes, widths)
    )


def test_vectors_get_numpys_codes() -> None:
    x = rows_like(60, 96, 0.5)
    x[3] = 0
    x[5], x[5, 7] = 0.05, 1.0  # one large entry
    widths = np.arange(60).astype(np.uint8) % 9
    there = torch.from_numpy(widths).long()
    codes = vectors.vector_codes(x, widths)
    ours = in_torch_vectors.vector_codes(torch.from_numpy(x), there).numpy()
    different = (codes != ours).any(axis=1)
    assert np.count_nonzero(different) <= 2
    assert np.abs(codes.astype(int) - ours)[~different].max(initial=0) == 0
    ours_decoded = in_torch_vectors.decoded_vectors(torch.from_numpy(codes).long(), there).numpy()
    np.testing.assert_allclose(ours_decoded, vectors.decoded_vectors(codes, widths), atol=ULPS)


@pytest.mark.parametrize("kinds", [1, 5])
@pytest.mark.parametrize("sorted_widths", [True, False])
def test_planes_are_numpys_whatever_the_order_of_the_widths(kinds: int, sorted_widths: bool) -> None:
    rng = np.random.default_rng(kinds)
    levels = rng.integers(-300, 300, 1 + 11)
    levels[1:] = -np.sort(-levels[1:]) if sorted_widths else levels[1:]
    classes = rng.integers(0, kinds, 57).astype(np.uint8)
    counts = np.bincount(classes, minlength=len(ROW_CLASSES))
    allocation = empty_allocation(57)._replace(threshold=-200, levels=levels, counts=counts, has_classes=kinds > 1)
    widths = allocation.class_widths()[: len(ROW_CLASSES) if kinds > 1 else 1]
    codes = (rng.integers(0, 256, (57, 11)) & ((1 << widths[classes].astype(int)) - 1)).astype(np.uint8)
    blocks = blocks_of(allocation, classes)
    planes = CodePlanes(blocks, 57)
    for block in blocks:
        planes.write(block, codes[block.rows][:, block.components])
    expected = planes.pack()
    assert allocation.coordinates_bytes() == len(expected)
    places = PlanePlaces(widths, counts[: len(widths)], torch.from_numpy(classes).long())
    bits = torch.zeros(8 * (3 + len(expected)) + 1, dtype=torch.uint8)
    places.write(torch.from_numpy(codes).long(), bits, 3)
    assert pack_bits(bits[:-1])[3:].numpy().tobytes() == expected
    bits[-1] = 0
    np.testing.assert_array_equal(places.read(bits, 3).numpy(), codes)


@pytest.mark.parametrize("shape", [(8,), (3, 24)])
def test_bits_lie_eight_to_a_byte_the_first_one_lowest(shape: tuple[int, ...]) -> None:
    bits: UInt8 = np.random.default_rng(0).integers(0, 2, shape).astype(np.uint8)
    packed = pack_bits(torch.from_numpy(bits))
    np.testing.assert_array_equal(packed.numpy(), np.packbits(bits, axis=-1, bitorder="little"))
    np.testing.assert_array_equal(unpack_bits(packed).numpy(), bits)


@given(st.floats(-LARGEST, LARGEST, width=32), st.integers(-149, 149))
def test_a_power_of_two_rounds_once(x: float, exponent: int) -> None:
    one = np.array([x], np.float32)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(times_power(torch.from_numpy(one), exponent).numpy(), np.ldexp(one, exponent))


# edges and refusals


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4), (3, 0), (1, 1), (5,), (300, 40)])
def test_zeros_and_odd_shapes_come_back(precision: Precision, shape: tuple[int, ...]) -> None:
    for value in (0.0, -3.0):
        x = np.full(shape, value, np.float32)
        data = encoded(x, precision)
        assert len(data) == encoded_bytes(shape, precision)
        back = decoded(data, shape, precision)
        assert back.shape == shape
        np.testing.assert_allclose(back, x, rtol=0.02)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_not_sent(precision: Precision, bad: float) -> None:
    x = np.ones((9, 4), np.float32)
    x[1, 2] = bad
    with pytest.raises(ProtocolError, match="NaN or infinite") as caught:
        encoded(x, precision)
    assert caught.value.code == "nan"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_another_length_is_refused(precision: Precision) -> None:
    with pytest.raises(ProtocolError, match=rf"{precision} tensor \[2, 4\]") as caught:
        decoded(bytes(encoded_bytes((2, 4), precision) + 1), (2, 4), precision)
    assert caught.value.code == "size"


@given(st.sampled_from(PRECISIONS), st.data())
@settings(deadline=None, max_examples=200)
def test_any_bytes_are_refused_or_decoded_as_numpy_does(precision: Precision, data: st.DataObject) -> None:
    size = encoded_bytes((4, 3), precision)
    message = bytearray(data.draw(st.binary(min_size=size, max_size=size)))
    if precision not in ("fp32", "bf16") and data.draw(st.booleans()):  # else hardly any would come past the exponent
        message[:4] = struct.pack("<i", data.draw(st.integers(-150, 130)))
    if pca_bits(precision) and data.draw(st.booleans()):  # nor, of these, past the rank and the class bits
        message[4:6], message[10:12] = struct.pack("<H", data.draw(st.integers(0, 4))), bytes(2)
    try:
        expected = in_numpy.decode(bytes(message), (4, 3), precision)
    except ProtocolError as refusal:
        with pytest.raises(ProtocolError) as caught:
            decoded(message, (4, 3), precision)
        assert caught.value.code == refusal.code  # noqa: PT017 - or none
    else:
        peak = float(np.abs(expected).max())
        np.testing.assert_allclose(decoded(message, (4, 3), precision), expected, rtol=0, atol=ULPS * peak + 3e-45)


# dct


@pytest.mark.parametrize("precision", ["dct2", "dct0.25"])
@pytest.mark.parametrize("name", ["three axes", "rows of unlike sizes", "fewer rows than channels"])
def test_dct_is_numpys_wherever_the_head_is(name: str, precision: Precision) -> None:
    data = encoded(CASES[name], precision)
    assert data == in_numpy.encode(CASES[name], precision)
    read = decoded(data, CASES[name].shape, precision)
    np.testing.assert_array_equal(read, in_numpy.decode(data, CASES[name].shape, precision))


# the trainer


def test_a_step_with_the_codec_in_torch_is_the_step_with_numpys(training: HeadTraining) -> None:
    rng = np.random.default_rng(0)
    sent = in_numpy.encode(rng.standard_normal((40, 7, 32)).astype(np.float32), "pca4")
    soft = np.full((40, 10), 0.1, np.float32)
    answers: list[tuple[float, memoryview]] = []
    for activations in (decode_to(CPU, sent, (40, 7, 32), "pca4"), in_torch.decode(sent, (40, 7, 32), "pca4", CPU)):
        learned = training.learn(activations, soft, True, StepAccumulator(1))
        assert learned.gradient is not None
        assert learned.gradient.device == CPU
        code = in_torch.encode if answers else encode_from
        answers.append((learned.loss, code(learned.gradient, "int8")))
    assert answers[0][0] == pytest.approx(answers[1][0], abs=1e-6)
    backs = [in_numpy.decode(body, (40, 7, 32), "int8") for _, body in answers]
    np.testing.assert_allclose(backs[0], backs[1], rtol=0, atol=0.01 * np.abs(backs[0]).max())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_trainer_on_a_cpu_sends_and_reads_as_numpy_does(precision: Precision) -> None:
    data = encode_from(torch.from_numpy(UNLIKE), precision)
    assert data == in_numpy.encode(UNLIKE, precision)
    read = decode_to(CPU, data, UNLIKE.shape, precision).numpy()
    np.testing.assert_array_equal(read, in_numpy.decode(data, UNLIKE.shape, precision))
