"""Transform-coded tensors: their size, their error, equal bytes for equal tensors, and tensors of odd kinds."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from adc_edge.arrays import Float32
from adc_edge.codec.precision import PRECISIONS, Precision, dct_bits, decode, encode, encoded_bytes
from adc_edge.codec.transform.decoding import decode_tensor
from adc_edge.codec.transform.encoding import encode_tensor, payload_bytes
from adc_edge.errors import ProtocolError
from tests.codec.transform.tensors import relative_error, rows_alone, smooth_grids

DCT: list[Precision] = [precision for precision in PRECISIONS if dct_bits(precision)]
FINE_TO_COARSE = sorted(DCT, key=dct_bits, reverse=True)
LARGEST = float(np.finfo(np.float32).max)
VALUES = st.floats(-LARGEST, LARGEST, width=32) | st.floats(-1.0, 1.0, width=32)
TENSORS = arrays(np.float32, array_shapes(min_dims=1, max_dims=4, max_side=7), elements=VALUES)
BITS = st.sampled_from([0.0625, 0.25, 1.0, 2.0, 6.0])


def error(x: Float32, precision: Precision) -> float:
    return relative_error(decode(encode(x, precision), x.shape, precision), x)


@given(TENSORS, BITS)
@settings(deadline=None)
def test_any_finite_tensor_is_coded_in_the_size_that_is_known_before(x: Float32, bits: float) -> None:
    out = np.full(payload_bytes(x.shape, bits), 0xAA, np.uint8)
    encode_tensor(x, out)
    again = np.full_like(out, 0x55)
    encode_tensor(x.copy(), again)
    np.testing.assert_array_equal(out, again)
    back = decode_tensor(out.data, x.shape)
    assert back.shape == x.shape
    assert back.dtype == np.float32
    assert np.isfinite(back).all()
    rows = x.astype(np.float64).reshape(-1, x.shape[-1])
    lost = np.square(back.astype(np.float64).reshape(rows.shape) - rows).sum()
    around = np.square(rows - rows.mean(axis=0)).sum()
    assert lost <= 1.05 * around + 1e-3 * np.square(rows).sum() + 1e-80


@pytest.mark.parametrize("precision", DCT)
def test_dct_takes_so_many_bits_for_each_value_in_all(precision: Precision) -> None:
    for shape in ((64, 17, 192), (2000, 63)):
        assert encoded_bytes(shape, precision) == math.ceil(dct_bits(precision) * math.prod(shape) / 8)
        assert len(encode(rows_alone(*shape), precision)) == encoded_bytes(shape, precision)


@pytest.mark.parametrize("size", [1.0, 1e-9, 1e-30, 1e30])
def test_more_bits_leave_less_error_at_any_size(size: float) -> None:
    x = (smooth_grids(16, 7, 48) * np.float64(size)).astype(np.float32)
    errors = [error(x, precision) for precision in FINE_TO_COARSE]
    assert errors == sorted(errors)
    assert errors[0] < 0.02
    assert errors[-1] < 1


AGAINST_PCA: dict[Precision, Precision] = {"dct2": "pca2", "dct1": "pca1", "dct0.5": "pca0.5", "dct0.25": "pca0.25"}


@pytest.mark.parametrize(("dct", "pca"), AGAINST_PCA.items())
def test_grids_of_like_tokens_lose_much_less_than_in_pca_of_the_same_bytes(dct: Precision, pca: Precision) -> None:
    x = smooth_grids(32, 7, 96)
    assert encoded_bytes(x.shape, dct) == encoded_bytes(x.shape, pca)
    assert error(x, dct) < 0.6 * error(x, pca)


@pytest.mark.parametrize(("dct", "pca"), AGAINST_PCA.items())
@pytest.mark.parametrize("shape", [(32, 50, 96), (1600, 96), (32, 25, 96)])
def test_rows_that_stand_alone_lose_hardly_more_than_in_pca(
    dct: Precision, pca: Precision, shape: tuple[int, ...]
) -> None:
    x = rows_alone(*shape)
    assert error(x, dct) < 1.05 * error(x, pca)


def test_a_tensor_of_many_rows_in_one_direction_is_nearly_exact() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((16, 50, 1)) * rng.standard_normal(192)).astype(np.float32)
    assert error(x, "dct2") < 1e-6


def test_a_mean_far_above_the_deviations_costs_them_little() -> None:
    x = smooth_grids(16, 7, 48)
    assert error(x + np.float32(200), "dct1") < 1.2 * error(x, "dct1") + 1e-3


@pytest.mark.parametrize("precision", DCT)
@pytest.mark.parametrize("shape", [(1, 1), (5,), (3, 2), (1, 4, 9), (16, 50, 32), (2, 1, 3)])
def test_rows_that_are_all_alike_come_back(precision: Precision, shape: tuple[int, ...]) -> None:
    x = np.full(shape, -3.0, np.float32)
    np.testing.assert_allclose(decode(encode(x, precision), shape, precision), x, rtol=0.001)


@pytest.mark.parametrize("width", [32, 192, 1024])
@pytest.mark.parametrize(("images", "tokens"), [(1, 1), (1, 50), (3, 27), (2, 99), (4, 65)])
def test_few_tokens_of_any_number_are_coded_without_warnings(images: int, tokens: int, width: int) -> None:
    x = rows_alone(images, tokens, width) + np.float32(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for precision in ("dct2", "dct0.0625"):
            back = decode(encode(x, precision), x.shape, precision)
            assert np.square(back - x).sum() < np.square(x).sum()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_float32_stays_finite(sign: float) -> None:
    x = smooth_grids(8, 4, 24).astype(np.float64)
    x = (x * (sign * LARGEST / np.abs(x).max())).astype(np.float32)
    back = decode(encode(x, "dct1"), x.shape, "dct1")
    assert np.isfinite(back).all()
    assert relative_error((back / LARGEST).astype(np.float32), (x / LARGEST).astype(np.float32)) < 0.3


def test_heavy_tails_fit_too() -> None:
    rng = np.random.default_rng(0)
    for x in (
        rng.standard_cauchy((8, 50, 64)) ** 3,
        np.eye(64)[rng.integers(0, 64, (8, 50))],
        np.where(rng.random((8, 50, 64)) < 0.001, 1e30, 1e-30),
    ):
        tensor = x.astype(np.float32)
        for precision in DCT:
            back = decode(encode(tensor, precision), tensor.shape, precision)
            scale = np.float64(np.abs(tensor).max())
            assert relative_error((back / scale).astype(np.float32), (tensor / scale).astype(np.float32)) < 1.05


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    x = smooth_grids(2, 4, 8)
    x[1, 3, 2] = bad
    with pytest.raises(ProtocolError, match="NaN or infinite") as caught:
        encode_tensor(x, np.empty(payload_bytes(x.shape, 1.0), np.uint8))
    assert caught.value.code == "nan"
