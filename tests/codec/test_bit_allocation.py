"""The constants of the bit allocation and of the quantisers: each follows from a formula or a measurement."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from adc_edge.arrays import Float32
from adc_edge.codec import bit_allocation, lloyd_max, lowrank
from adc_edge.codec.bit_allocation import LEVEL_DTYPE, allocation_candidates
from adc_edge.codec.spectrum import ROW_CLASSES, ArraySpectrum
from adc_edge.codec.vectors import decoded_vectors, unit_vectors, vector_codes

WIDTHS = range(1, lloyd_max.LARGEST_WIDTH + 1)
POINTS = np.linspace(-9, 9, 90_001)
DENSITY = np.exp(-np.square(POINTS) / 2) / math.sqrt(2 * math.pi) * (POINTS[1] - POINTS[0])


def levels(width: int) -> npt.NDArray[np.float64]:
    return lloyd_max.values(np.arange(2**width, dtype=np.uint8), np.array(width, np.uint8)).astype(np.float64)


def error_at(width: int, units: float) -> float:
    """Squared error, in variances, of a normal variable whose level is wrong by so many units."""
    table, factor = levels(width), 2.0 ** (units / bit_allocation._UNIT)
    nearest = table[np.searchsorted((table[1:] + table[:-1]) / 2, POINTS * factor)] / factor
    return float((np.square(POINTS - nearest) * DENSITY).sum())


def uneven_rows(seed: int) -> Float32:
    """Rows of unlike magnitudes whose components halve every four."""
    rng = np.random.default_rng(seed)
    coordinates = rng.standard_normal((400, 32)) * 2.0 ** (-np.arange(32) / 4 - rng.uniform(0, 6, (400, 1)))
    rows: Float32 = (coordinates @ np.linalg.qr(rng.standard_normal((32, 32)))[0]).astype(np.float32)
    return rows


def test_each_bit_is_due_where_it_saves_as_much_as_the_first_at_the_threshold() -> None:
    savings = lloyd_max.ERRORS[:-1] - lloyd_max.ERRORS[1:]
    exact = 0.5 * bit_allocation._UNIT * np.log2(savings[0] / savings)
    np.testing.assert_array_equal(bit_allocation._BIT_EXCESS, np.rint(exact))


@pytest.mark.parametrize("width", WIDTHS)
def test_rounding_a_level_costs_at_most_two_thousandths_of_the_error(width: int) -> None:
    assert max(error_at(width, units) for units in (-0.5, 0.5)) < 1.002 * error_at(width, 0)


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_within_a_class_cost_at_most_seven_percent_more_error(width: int) -> None:
    half = bit_allocation._CLASS_UNITS / 2
    spread = np.mean([error_at(width, units) for units in np.linspace(-half, half, 21)])
    assert spread < 1.07 * error_at(width, 0)


def test_every_level_and_threshold_fits_in_sixteen_bits() -> None:
    most = np.iinfo(LEVEL_DTYPE).max
    highest = 0.5 * bit_allocation._UNIT * math.log2(2.0**32 * 2.0**16)  # the mean of 2**32 rows, 2**16 channels of 1
    lowest = bit_allocation._LOWEST_LEVEL - bit_allocation._SEARCH_SPAN - highest - bit_allocation._BIT_EXCESS[-1]
    assert -most < lowest < highest < bit_allocation._LARGEST_THRESHOLD <= most


def test_beyond_the_tabulated_excesses_no_width_changes() -> None:
    lowest_class = bit_allocation._EXCESSES - bit_allocation._CLASS_UNITS * ROW_CLASSES[-1]
    assert bit_allocation._bits(bit_allocation._EXCESSES[:2]).tolist() == [0, 1]
    assert bit_allocation._bits(lowest_class[-1:]).tolist() == [lloyd_max.LARGEST_WIDTH]


def test_the_reserve_covers_the_last_byte_of_every_plane() -> None:
    planes = 2 * lloyd_max.LARGEST_WIDTH
    assert planes * 7 <= bit_allocation._SLACK_BITS <= planes * 8


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("budget", [400, 1600])
def test_the_search_in_strides_finds_what_an_exhaustive_one_finds(
    seed: int, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spectrum = ArraySpectrum(uneven_rows(seed))
    found = allocation_candidates(spectrum, 0.0, budget)[0]
    monkeypatch.setattr(bit_allocation, "_SEARCH_STRIDES", (1,))
    assert found.error <= 1.001 * allocation_candidates(spectrum, 0.0, budget)[0].error


def test_the_table_of_codes_resolves_and_covers_the_levels_of_eight_bits() -> None:
    table = levels(lloyd_max.LARGEST_WIDTH)
    assert np.diff(table).min() > 4 / lloyd_max.GRID
    assert (table[-1] + table[-2]) / 2 < lloyd_max.REACH / lloyd_max.GRID


def test_a_vector_with_one_large_entry_keeps_its_direction() -> None:
    vector = np.full((1, 192), 0.05, np.float32)
    vector[0, 7] = 1.0
    widths = np.array([4], np.uint8)
    decoded = decoded_vectors(vector_codes(vector, widths), widths)
    assert float(decoded[0] @ vector[0]) > 0.99 * float(np.linalg.norm(vector))
    narrow = decoded_vectors(lloyd_max.codes(unit_vectors(vector) * np.float32(math.sqrt(192)), 4), widths)
    assert float(narrow[0] @ vector[0]) < 0.9 * float(np.linalg.norm(vector))  # without a factor of its own


def test_coinciding_vectors_leave_equations_that_can_be_solved() -> None:
    basis = np.ones((2, 8), np.float32) / np.float32(math.sqrt(8))
    dual = lowrank._solve(basis @ basis.T, basis)
    assert np.isfinite(dual).all()
    np.testing.assert_allclose(dual.sum(axis=0) @ basis[0], 1.0, atol=1e-3)
