"""The cosine transform of the tokens that lie on a grid."""

from __future__ import annotations

import numpy as np
import pytest

from adc_edge.codec.transform.grid import no_grid, whole_grid


@pytest.mark.parametrize("tokens", [1, 2, 5, 17, 50, 98, 197, 257])
def test_the_transform_keeps_energies_and_its_inverse_brings_back_the_tokens(tokens: int) -> None:
    x = np.random.default_rng(0).standard_normal((3, tokens, 4)).astype(np.float32)
    for grid in (whole_grid(tokens), no_grid(tokens)):
        found = grid.transform(x)
        np.testing.assert_allclose(np.square(found).sum(axis=1), np.square(x).sum(axis=1), rtol=1e-4)
        np.testing.assert_allclose(grid.inverse(found), x, atol=1e-5)


def test_tokens_in_front_stay_as_they_are_and_equal_patches_have_one_coefficient() -> None:
    grid = whole_grid(17)
    assert grid == (1, 4)
    x = np.full((2, 17, 3), 0.5, np.float32)
    found = grid.transform(x)
    np.testing.assert_array_equal(found[:, 0], 0.5)
    np.testing.assert_allclose(found[:, 1], 2.0, atol=1e-6)
    np.testing.assert_allclose(found[:, 2:], 0.0, atol=1e-6)


@pytest.mark.parametrize(("tokens", "prefix", "side"), [(1, 0, 1), (50, 1, 7), (197, 1, 14), (201, 5, 14), (98, 17, 9)])
def test_each_band_has_a_token_in_front_or_the_frequencies_of_one_sum(tokens: int, prefix: int, side: int) -> None:
    grid = whole_grid(tokens)
    assert grid == (prefix, side)
    counts = np.bincount(grid.bands())
    assert len(counts) == grid.band_count() == prefix + 2 * side - 1
    np.testing.assert_array_equal(counts[prefix:], [*range(1, side), *range(side, 0, -1)])
