"""The range of a tensor that INT8 covers, against plain NumPy."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from adc_edge.arrays import Float32
from adc_edge.calibration.int8.ranges import Histogram, Method, Reach, entropy_bins

METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy")
BIN = 1 / 2048  # of the largest value at most: 4096 bins up to a power of two


def values(count: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def histogram(*parts: Float32) -> Histogram:
    made = Histogram()
    for part in parts:
        made.add(part)
    return made


def test_counts_do_not_depend_on_the_order_or_size_of_the_batches() -> None:
    small, large, zeros = values(1000) * 1e-3, values(3000, 1) * 40, np.zeros(50, np.float32)
    once = histogram(np.concatenate([small, large, zeros]))
    for parts in ((small, large, zeros), (zeros, large, small), (large[:7], small, zeros, large[7:])):
        other = histogram(*parts)
        np.testing.assert_array_equal(other.counts, once.counts)
        assert (other.top, other.largest) == (once.top, once.largest)
    assert once.counts.sum() == 4050


@pytest.mark.parametrize("percentile", [50, 90, 99.99, 100])
def test_percentile_is_numpys_to_the_next_bin(percentile: float) -> None:
    x = values(20_000)
    exact = np.percentile(np.abs(x), percentile)
    found = histogram(x).threshold("percentile", percentile)
    assert exact <= found + 1e-6 <= exact + BIN * np.abs(x).max() * 2 + 1e-3
    assert found <= np.abs(x).max()


def test_minmax_is_the_largest_value_exactly() -> None:
    x = values(500) * 3
    assert histogram(x[:100], x[100:]).threshold("minmax", 99) == np.abs(x).max()


@pytest.mark.parametrize("largest", [1.0, 2.0, 0.5, np.float32(0.1), 1e-30, 3e30])
def test_powers_of_two_and_extremes_have_a_bin(largest: float) -> None:
    found = histogram(np.array([largest, 0, -largest], np.float32))
    assert found.counts.sum() == 3
    for method in METHODS:
        assert found.threshold(method, 100) == pytest.approx(largest, rel=1e-6)


def plain_divergence(counts: npt.NDArray[np.int64], kept: int, levels: int = 128) -> float:
    """TensorRT's rule, written out bin by bin."""
    p = [float(count) for count in counts[:kept]]
    p[-1] += float(counts[kept:].sum())
    q = [0.0] * kept
    for level in range(levels):
        bins = range(level * kept // levels, (level + 1) * kept // levels)
        occupied = [each for each in bins if p[each] > 0]
        for each in occupied:
            q[each] = float(sum(counts[b] for b in bins)) / len(occupied)
    pairs = [(a / sum(p), max(b / sum(q), 1e-12)) for a, b in zip(p, q, strict=True) if a > 0]
    return sum(a * math.log(a / b) for a, b in pairs)


def test_entropy_keeps_what_a_plain_search_keeps() -> None:
    tailed = np.concatenate([values(50_000), values(20, 1) * 20])
    counts = histogram(tailed).counts.reshape(-1, 4).sum(axis=1)  # fewer, for the plain search's sake
    used = int(np.flatnonzero(counts)[-1]) + 1
    candidates = [*range(128, used, 16), used]
    best = min(candidates, key=lambda kept: plain_divergence(counts, kept))
    assert entropy_bins(counts) == best
    assert best < used / 2  # the tail is cut off


def test_entropy_keeps_all_of_few_bins() -> None:
    counts = np.zeros(4096, np.int64)
    counts[:100] = 5
    assert entropy_bins(counts) == 100


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_cls_is_not_cut_off_however_rare_it_is(method: Method) -> None:
    x = np.random.default_rng(0).standard_normal((64, 197, 192)).astype(np.float32)
    x[:, 0, 7] = 40 + np.arange(64) / 64  # one channel of CLS: 1 value in 37,824
    reach, blind = Reach(), Histogram()
    for image in x:
        reach.add(image[None], prefix=1)
        blind.add(image)
    assert blind.threshold("percentile", 99.99) < 6
    assert reach.scale(method, 99.99) * 127 > 39


def test_a_tensor_of_zeros_has_a_scale() -> None:
    reach = Reach()
    reach.add(np.zeros((1, 3, 4), np.float32), prefix=1)
    assert [reach.scale(method, 99) for method in METHODS] == [1.0, 1.0, 1.0]
