"""Changes of several trunks become one: against plain NumPy and exact fractions, value by value."""

from __future__ import annotations

from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adc_edge.arrays import Float32
from adc_edge.defaults import RobustRule
from adc_edge.method import averaging
from adc_edge.method.averaging import combined, median, outliers, trimmed_mean, weighted_mean

SHAPES = {"blocks.0.weight": (3, 4), "bias": (5,), "scale": ()}
Change = dict[str, Float32]

RULES: tuple[RobustRule, ...] = get_args(RobustRule)
values = st.floats(-1e6, 1e6, width=32)
seeds = st.integers(0, 2**32 - 1)


def change(rng: np.random.Generator, scale: float = 1.0, towards: float = 0.0) -> Change:
    return {name: (scale * (rng.standard_normal(shape) + towards)).astype(np.float32) for name, shape in SHAPES.items()}


def fleet(seed: int, count: int) -> list[Change]:
    rng = np.random.default_rng(seed)
    return [change(rng) for _ in range(count)]


@given(st.lists(st.tuples(values, st.integers(1, 10**6)), min_size=1, max_size=8))
def test_the_mean_is_that_of_exact_fractions(pairs: list[tuple[float, int]]) -> None:
    changes = [{"x": np.array([value], np.float32)} for value, _ in pairs]
    found = weighted_mean(changes, [images for _, images in pairs])["x"]
    total = sum((Fraction(value) * images for value, images in pairs), Fraction(0))
    exact = total / sum(images for _, images in pairs)
    peak = max(abs(value) for value, _ in pairs)
    rounding = Fraction(peak) / 2**23 + Fraction(1, 2**150)  # and half of the smallest subnormal number
    assert abs(Fraction(float(found[0])) - exact) <= rounding
    assert found.dtype == np.float32


@given(seeds, st.integers(1, 9))
@settings(deadline=None)
def test_the_robust_rules_equal_sorting_by_hand(seed: int, count: int) -> None:
    changes = fleet(seed, count)
    cut = max(count // 5, 1 if count >= 3 else 0)
    trimmed, middle = trimmed_mean(changes), median(changes)
    for name, shape in SHAPES.items():
        assert trimmed[name].shape == middle[name].shape == shape
        for at in np.ndindex(shape):
            column = sorted(float(one[name][at]) for one in changes)
            kept = column[cut : count - cut]
            assert trimmed[name][at] == pytest.approx(sum(kept) / len(kept), rel=1e-6, abs=1e-6)
            halves = column[(count - 1) // 2], column[count // 2]
            assert middle[name][at] == pytest.approx(sum(halves) / 2, rel=1e-6, abs=1e-6)


@given(seeds, st.integers(1, 7))
@settings(deadline=None)
def test_the_order_of_arrival_moves_no_more_than_the_last_bit(seed: int, count: int) -> None:
    changes, images = fleet(seed, count), list(range(1, count + 1))
    order = np.random.default_rng(seed).permutation(count)
    for rule in RULES:
        one = combined(changes, images, rule)
        other = combined([changes[i] for i in order], [images[i] for i in order], rule)
        for name in SHAPES:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-6, atol=1e-7)


@given(seeds, st.integers(3, 9), st.floats(1e3, 1e30))
@settings(deadline=None)
def test_one_device_that_lies_cannot_move_the_robust_rules_beyond_the_honest_values(
    seed: int, count: int, lie: float
) -> None:
    changes = fleet(seed, count)
    honest = changes[1:]
    changes[0] = {name: np.full(shape, lie, np.float32) for name, shape in SHAPES.items()}
    for rule in (trimmed_mean, median):
        found = rule(changes)
        for name in SHAPES:
            assert np.all(found[name] <= np.max([one[name] for one in honest], axis=0) + 1e-6)
            assert np.all(found[name] >= np.min([one[name] for one in honest], axis=0) - 1e-6)


def test_a_trunk_larger_than_a_block_is_averaged_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = fleet(3, 4)
    wanted = weighted_mean(changes, [1, 2, 3, 4]), outliers(changes)
    monkeypatch.setattr(averaging, "_BLOCK", 5)
    found = weighted_mean(changes, [1, 2, 3, 4]), outliers(changes)
    assert wanted[1] == found[1]
    for name in SHAPES:
        np.testing.assert_array_equal(wanted[0][name], found[0][name])


def test_two_changes_have_no_outlier() -> None:
    rng = np.random.default_rng(0)
    assert outliers([change(rng), change(rng, 1e9)]) == {}


@given(seeds, st.integers(3, 12), st.floats(20.0, 1e30))
@settings(deadline=None)
def test_a_change_that_is_far_too_large_is_left_out_and_no_other(seed: int, count: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    changes = [change(rng, towards=0.5) for _ in range(count)]
    who = int(rng.integers(count))
    changes[who] = change(rng, scale, 0.5)
    assert list(outliers(changes)) == [who]
    assert "times the others' median, above 4" in outliers(changes)[who]


@given(seeds, st.integers(3, 12), st.floats(0.5, 3.0))
@settings(deadline=None)
def test_a_change_against_the_others_direction_is_left_out_and_no_other(seed: int, count: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    changes = [change(rng, towards=4.0) for _ in range(count)]
    who = int(rng.integers(count))
    changes[who] = change(rng, -scale, 4.0)
    assert list(outliers(changes)) == [who]
    assert "cosine" in outliers(changes)[who]


@given(seeds, st.integers(3, 12))
@settings(deadline=None)
def test_changes_that_agree_are_all_kept(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    assert outliers([change(rng, scale=float(rng.uniform(0.7, 1.4)), towards=1.0) for _ in range(count)]) == {}


def test_devices_without_a_common_direction_are_all_kept() -> None:
    # Three directions at 120 degrees: each is against the sum of the other two.
    angles = np.deg2rad([0.0, 120.0, 240.0])
    assert outliers([{"x": np.array([np.cos(a), np.sin(a)], np.float32)} for a in angles]) == {}


def test_a_device_that_has_changed_nothing_is_no_outlier_and_makes_none() -> None:
    rng = np.random.default_rng(1)
    still = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    assert outliers([still, still, change(rng)]) == {}
    assert outliers([still, still, still]) == {}
