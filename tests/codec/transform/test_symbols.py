"""Integers of known classes come back, whatever their size; damaged bytes are refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adc_edge.codec.transform.models import LARGEST_CLASS
from adc_edge.codec.transform.symbols import pack_symbols, read_symbols
from adc_edge.errors import ProtocolError

LARGEST_VALUE = 2**31 - 1
VALUES = st.integers(-LARGEST_VALUE, LARGEST_VALUE) | st.integers(-300, 300)
PAIRS = st.lists(st.tuples(VALUES, st.integers(0, LARGEST_CLASS)), max_size=40)


@given(PAIRS, st.integers(1, 5))
@settings(deadline=None)
def test_values_of_any_class_come_back(pairs: list[tuple[int, int]], lanes: int) -> None:
    values, classes = np.array(pairs, np.int64).reshape(-1, 2).T
    packed = pack_symbols(values, classes, lanes)
    np.testing.assert_array_equal(read_symbols(memoryview(packed + bytes(9)), classes, lanes), values)


def test_the_largest_of_too_many_outliers_are_kept_and_the_others_cut() -> None:
    values = np.arange(70_000, dtype=np.int64) + 100_000
    classes = np.zeros(len(values), np.int64)
    back = read_symbols(memoryview(pack_symbols(values, classes, 64)), classes, 64)
    np.testing.assert_array_equal(back[-65_535:], values[-65_535:])
    assert (back[:-65_535] < 100).all()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "ends before"),
        (struct.pack("<H", 1), "1 outliers"),
        (struct.pack("<HIi", 1, 8, 5) + bytes(60), "outlier at 8 of 8"),
        (bytes(3), "0 outliers"),
        (bytes(60), "range coder"),
    ],
)
def test_bytes_that_no_encoder_writes_are_refused(data: bytes, text: str) -> None:
    classes = np.array([0, 0, 0, 0, 60, 60, 60, 60])
    with pytest.raises(ProtocolError, match=text) as caught:
        read_symbols(memoryview(data), classes, 2)
    assert caught.value.code == "size"


@given(PAIRS, st.binary(max_size=120), st.integers(1, 5))
@settings(deadline=None)
def test_any_bytes_are_values_or_refused(pairs: list[tuple[int, int]], data: bytes, lanes: int) -> None:
    classes = np.array(pairs, np.int64).reshape(-1, 2)[:, 1]
    try:
        values = read_symbols(memoryview(data), classes, lanes)
    except ProtocolError:
        return
    assert len(values) == len(classes)
