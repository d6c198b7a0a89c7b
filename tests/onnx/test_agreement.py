"""Agreement of two engines' outputs: choices as shares, numbers only where both chose alike."""

from __future__ import annotations

import math

import numpy as np
import pytest

from adc_edge.method.compressed import CompressedBatch
from adc_edge.onnx.agreement import agreement


def sent(assignment: list[int], tokens: list[list[int]]) -> CompressedBatch:
    """Two channels; each token's values are its number and its cluster's."""
    z = [[[token, cluster] for token in row] for cluster, row in enumerate(tokens)]
    return CompressedBatch(np.array(z, np.float32), np.array(assignment), np.array(tokens))


def test_equal_outputs_agree_wholly() -> None:
    one = sent([0, 1, 1], [[0, 3, 4], [0, 2, 5]])
    assert agreement(one, one) == (1.0, 1.0, 0.0)


def test_the_order_of_tokens_does_not_matter() -> None:
    assert agreement(sent([0, 1], [[0, 4, 3], [0, 2, 5]]), sent([0, 1], [[0, 3, 4], [0, 5, 2]])) == (1.0, 1.0, 0.0)


def test_a_flipped_image_counts_and_its_clusters_are_not_compared() -> None:
    ours, theirs = sent([0, 1, 1], [[0, 3], [0, 2]]), sent([0, 0, 1], [[0, 3], [0, 2]])
    found = agreement(ours, theirs)
    assert found.assignment == pytest.approx(2 / 3)
    assert found.tokens == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert math.isnan(found.difference)


def test_numbers_are_compared_where_members_and_tokens_are_the_same() -> None:
    ours, theirs = sent([0, 1, 2], [[0, 3], [0, 2], [0, 1]]), sent([0, 1, 2], [[0, 3], [0, 2], [0, 4]])
    moved = ours._replace(activations=ours.activations + np.array([0.0, 0.5, 9.0], np.float32)[:, None, None])
    found = agreement(moved, theirs)
    assert found.tokens == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert found.difference == 0.5 / 4  # the largest of theirs is token 4


def test_fewer_clusters_than_the_other_are_no_error() -> None:
    found = agreement(sent([0, 0], [[0, 3]]), sent([0, 1], [[0, 3], [0, 3]]))
    assert found.assignment == 0.5
    assert found.tokens == 1.0
