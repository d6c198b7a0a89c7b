"""The range coder: symbols come back, in the stored bytes and as few as the models promise; others are refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adc_edge.arrays import Int64
from adc_edge.codec.transform.models import LARGEST, MODELS, SYMBOLS, UNIT, models
from adc_edge.codec.transform.rans import BrokenStreamError, decode_symbols, encode_symbols, most_bytes

STREAM = "00400200583fed030140ecb70240b7bf913fc4b6fe7f3d00d6a4af39f2bfeb3ffd3f"
DIGEST = "445b6eea3c11f12d073d8a44fd74a985ba44318e2d32c29d89a28f53452d265e"


def drawn(count: int, seed: int) -> tuple[Int64, Int64]:
    """Classes, and symbols that their models give."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, MODELS, count)
    table = models().frequencies.reshape(MODELS, SYMBOLS).astype(np.int64)
    largest = np.minimum(models().largest[classes], 40)
    symbols = np.clip(rng.geometric(0.4, count) - 1, 0, largest) * rng.choice([-1, 1], count) + LARGEST
    assert (table[classes, symbols] > 0).all()
    return classes, symbols


def counted(count: int) -> tuple[Int64, Int64]:
    """Classes and symbols of whole numbers alone, the same on every processor."""
    classes = np.arange(count) * 7919 % MODELS
    largest = models().largest[classes]
    return classes, np.arange(count) * 104729 % (2 * largest + 1) - largest + LARGEST


@given(st.integers(0, 300), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_symbols_come_back(count: int, lanes: int, seed: int) -> None:
    classes, symbols = drawn(count, seed)
    stream = encode_symbols(classes, symbols, lanes)
    np.testing.assert_array_equal(decode_symbols(memoryview(stream), classes, lanes), symbols)
    np.testing.assert_array_equal(decode_symbols(memoryview(stream + b"rest"), classes, lanes), symbols)


def test_the_bytes_are_the_stored_ones() -> None:
    classes, symbols = counted(24)
    assert encode_symbols(classes, symbols, 2).hex() == STREAM
    assert hashlib.sha256(encode_symbols(*counted(20_000), 37)).hexdigest() == DIGEST


@pytest.mark.parametrize("model", [0, UNIT - 12, UNIT, MODELS - 1])
def test_a_stream_has_hardly_more_bits_than_its_symbols_have(model: int) -> None:
    table = models().frequencies.reshape(MODELS, SYMBOLS)[model].astype(np.float64)
    rng, lanes = np.random.default_rng(0), 8
    symbols = rng.choice(SYMBOLS, 50_000, p=table / table.sum())
    classes = np.full(len(symbols), model)
    bits = float(models().bits[classes * SYMBOLS + symbols].sum(dtype=np.float64))
    size = len(encode_symbols(classes, symbols, lanes))
    assert bits / 8 <= size <= bits / 8 * 1.002 + most_bytes(lanes)


@given(st.binary(max_size=200), st.integers(0, 100), st.integers(1, 9))
@settings(deadline=None)
def test_any_bytes_are_symbols_or_refused(stream: bytes, count: int, lanes: int) -> None:
    classes, _ = counted(count)
    try:
        found = decode_symbols(memoryview(stream), classes, lanes)
    except BrokenStreamError:
        return
    assert len(found) == count


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.data())
@settings(deadline=None)
def test_a_stream_that_is_cut_is_refused(seed: int, lanes: int, data: st.DataObject) -> None:
    classes, symbols = drawn(60, seed)
    stream = memoryview(encode_symbols(classes, symbols, lanes))
    with pytest.raises(BrokenStreamError):
        decode_symbols(stream[: data.draw(st.integers(0, len(stream) - 1))], classes, lanes)


def test_nearly_all_streams_with_a_wrong_bit_are_refused() -> None:
    classes, symbols = drawn(200, 0)
    stream = encode_symbols(classes, symbols, 3)
    refused = 0
    for bit in range(8 * len(stream)):
        damaged = bytearray(stream)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = decode_symbols(memoryview(damaged), classes, 3)
        except BrokenStreamError:
            refused += 1
        else:
            assert (found != symbols).any()
    assert refused > 0.95 * 8 * len(stream)
