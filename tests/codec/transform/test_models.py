"""The models' frequencies are the same integers on every processor, and those of the distributions they stand for."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from adc_edge.codec.transform.models import (
    LARGEST,
    LARGEST_CLASS,
    MODELS,
    SLOTS,
    STEPS_PER_OCTAVE,
    SYMBOLS,
    UNIT,
    class_of,
    lower_bits,
    model_of,
    models,
)

FREQUENCIES = "30633f2b30be069e76cd2c0651d78f864b6bbe1e070cf552b1afa1882fdb6919"


def test_the_frequencies_are_the_stored_ones() -> None:
    stored = models().frequencies.astype("<u2").tobytes()
    assert hashlib.sha256(stored).hexdigest() == FREQUENCIES


def test_the_frequencies_of_a_model_are_symmetric_and_fill_its_slots() -> None:
    table = models().frequencies.reshape(MODELS, SYMBOLS).astype(np.int64)
    np.testing.assert_array_equal(table, table[:, ::-1])
    np.testing.assert_array_equal(table.sum(axis=1), SLOTS)
    np.testing.assert_array_equal(np.count_nonzero(table, axis=1), 2 * models().largest + 1)


@pytest.mark.parametrize("model", [UNIT - 8, UNIT, UNIT + 8])
def test_the_mean_magnitude_of_a_model_is_that_of_its_class(model: int) -> None:
    table = models().frequencies.reshape(MODELS, SYMBOLS)[model].astype(np.float64) / SLOTS
    mean = float(table @ np.abs(np.arange(-LARGEST, LARGEST + 1)))
    assert mean == pytest.approx(2.0 ** ((model - UNIT) / STEPS_PER_OCTAVE), rel=0.03)


def test_each_slot_belongs_to_the_symbol_whose_frequency_holds_it() -> None:
    tables = models()
    slots = np.arange(MODELS * SLOTS) % SLOTS
    symbols = np.arange(MODELS * SLOTS) // SLOTS * SYMBOLS + tables.slot_symbols
    np.testing.assert_array_equal(tables.slots >> np.uint32(16), tables.frequencies[symbols])
    offsets = (tables.slots & np.uint32(0xFFFF)).astype(np.int64)
    np.testing.assert_array_equal(offsets, slots - tables.starts[symbols].astype(np.int64))
    assert (offsets < tables.frequencies[symbols]).all()


def test_classes_are_quarter_octaves_and_large_ones_have_lower_bits() -> None:
    np.testing.assert_array_equal(class_of(np.array([0.5, 1.0, 2.0, 8.0])), [UNIT - 4, UNIT, UNIT + 4, UNIT + 12])
    classes = np.array([0, MODELS - 1, MODELS, MODELS + 3, MODELS + 4, LARGEST_CLASS])
    np.testing.assert_array_equal(lower_bits(classes), [0, 0, 1, 1, 2, 20])
    np.testing.assert_array_equal(model_of(classes), [0, MODELS - 1, MODELS - 4, MODELS - 1, MODELS - 4, MODELS - 1])
