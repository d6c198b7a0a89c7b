"""Augmentation of stored activations: which tokens a row keeps or takes over, and what that makes of its label."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adc_edge.method.token_augmentation import NO_AUGMENTATION, TokenAugmentation, exchanged, without_tokens

CLASSES = 6


def rows_with_names(rows: int, kept: int) -> tuple[torch.Tensor, np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
    """Activations ``[T, k, 2]`` whose tokens tell their row and place, and labels of one class for each row."""
    row, place = torch.meshgrid(torch.arange(rows), torch.arange(kept), indexing="ij")
    return torch.stack([row, place], dim=2).float(), np.eye(CLASSES, dtype=np.float32)[np.arange(rows) % CLASSES]


def test_tokens_left_out_are_patches_and_others_in_each_row() -> None:
    tokens = torch.arange(20.0).reshape(1, 20, 1).expand(6, 20, 1)
    left = without_tokens(tokens, 2, 0.5, np.random.default_rng(0))[:, :, 0]
    assert left.shape == (6, 11)
    assert (left[:, :2] == torch.tensor([0.0, 1.0])).all()
    assert (left[:, 2:] > 1).all()
    assert (left.diff(dim=1) > 0).all()  # as they were, none twice
    assert len({tuple(row) for row in left.tolist()}) == 6
    assert without_tokens(tokens[:, :3], 2, 0.9, np.random.default_rng(0)).shape == (6, 3, 1)


@settings(deadline=None)
@given(st.integers(1, CLASSES), st.integers(1, 9), st.integers(0, 2), st.floats(0.01, 100), st.integers(0, 2**32))
def test_a_row_takes_as_large_a_share_of_another_rows_label_as_of_its_patch_tokens(
    rows: int, patches: int, prefix: int, alpha: float, seed: int
) -> None:
    activations, soft = rows_with_names(rows, prefix + patches)
    found = exchanged(activations, soft, prefix, alpha, np.random.default_rng(seed))
    origins, places = found.activations[:, :, 0].long(), found.activations[:, :, 1]
    assert (places == activations[:, :, 1]).all()  # each token stays at its place in the row
    assert (origins[:, :prefix] == torch.arange(rows)[:, None]).all()
    share = np.zeros((rows, CLASSES))
    for row in range(rows):
        for origin in origins[row, prefix:].tolist():
            share[row] += soft[origin] / patches
    np.testing.assert_allclose(found.soft, share, atol=1e-6)
    assert found.soft.dtype == np.float32


def test_shares_are_drawn_from_the_whole_range_and_every_row_gives_tokens_once() -> None:
    activations, soft = rows_with_names(CLASSES, 17)
    shares, rng = [], np.random.default_rng(0)
    for _ in range(200):
        found = exchanged(activations, soft, 1, 1.0, rng)
        shares.append(float(1 - np.diag(found.soft).min()))
        assert found.soft.sum(axis=0) == pytest.approx(np.ones(CLASSES), abs=1e-5)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1)
    assert np.quantile(shares, [0.1, 0.9]) == pytest.approx([0.1, 0.9], abs=0.1)


def test_both_together_exchange_what_is_left() -> None:
    activations, soft = rows_with_names(CLASSES, 11)
    found = TokenAugmentation(drop=0.4, mix=1.0).augmented(activations, soft, 1, np.random.default_rng(1))
    assert found.activations.shape == (CLASSES, 7, 2)
    assert not np.array_equal(found.soft, soft)
    same = NO_AUGMENTATION.augmented(activations, soft, 1, np.random.default_rng(1))
    assert same.activations is activations
    assert same.soft is soft


def test_the_given_rows_stay_as_they_are() -> None:
    """They are used again in the same group of steps."""
    activations, soft = rows_with_names(CLASSES, 11)
    before = activations.clone(), soft.copy()
    TokenAugmentation(drop=0.2, mix=1.0).augmented(activations, soft, 1, np.random.default_rng(1))
    assert torch.equal(activations, before[0])
    assert np.array_equal(soft, before[1])
