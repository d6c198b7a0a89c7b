"""Soft labels as sparse triples, against the mean of one-hot labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adc_edge.errors import ProtocolError
from adc_edge.method.labels import label_triples, soft_labels


@given(clusters=st.integers(1, 8), more=st.integers(0, 30), classes=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_soft_labels_are_the_mean_of_the_members_one_hot_labels(
    clusters: int, more: int, classes: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    assignment = rng.permutation(np.concatenate([np.arange(clusters), rng.integers(clusters, size=more)]))
    labels = rng.integers(classes, size=len(assignment))
    triples = label_triples(assignment, labels, classes)
    soft = soft_labels(triples.tobytes(), clusters, classes, len(assignment))
    one_hot = np.eye(classes)[labels]
    expected = np.stack([one_hot[assignment == cluster].mean(0) for cluster in range(clusters)])
    np.testing.assert_allclose(soft, expected, rtol=1e-6)
    assert soft.dtype == np.float32
    assert clusters <= len(triples) <= len(assignment)


def test_triples_are_cluster_class_count_in_order() -> None:
    triples = label_triples(np.array([1, 0, 1, 1, 0]), np.array([3, 9, 3, 0, 2]), 10)
    assert triples.tolist() == [[0, 2, 1], [0, 9, 1], [1, 0, 1], [1, 3, 2]]
    assert triples.dtype == np.dtype("<i4")


def wire(*triples: tuple[int, int, int]) -> bytes:
    values: npt.NDArray[np.int32] = np.array(triples, "<i4")
    return values.tobytes()


GOOD = ((0, 2, 3), (0, 4, 1), (1, 0, 2))  # 2 clusters, 5 classes, 6 images


def test_the_example_that_the_refusals_vary_is_accepted() -> None:
    assert soft_labels(wire(*GOOD), 2, 5, 6).tolist() == [[0, 0, 0.75, 0, 0.25], [1, 0, 0, 0, 0]]


@pytest.mark.parametrize("label", [-1, 5, 2**31 - 1, -(2**31)])
def test_a_class_outside_the_bundle_is_refused_with_the_remedy(label: int) -> None:
    with pytest.raises(ProtocolError, match=rf"labels from .*{label}[^$]*0 to 4[^$]*--num-classes") as caught:
        soft_labels(wire((0, label, 3), *GOOD[1:]), 2, 5, 6)
    assert caught.value.code == "labels"


@pytest.mark.parametrize(
    ("why", "triples"),
    [
        ("counts too high", ((0, 2, 4), (0, 4, 1), (1, 0, 2))),
        ("counts too low", ((0, 2, 2), (0, 4, 1), (1, 0, 2))),
        ("a count of none", ((0, 2, 4), (0, 4, 0), (1, 0, 2))),
        ("a negative count", ((0, 2, 5), (0, 4, -1), (1, 0, 2))),
        ("counts that wrap around", ((0, 2, 2**31 - 1), (0, 4, 2**31 - 1), (1, 0, 8))),
        ("a cluster without a label", ((0, 2, 3), (0, 4, 3))),
        ("a cluster too many", ((0, 2, 3), (1, 4, 1), (2, 0, 2))),
        ("a cluster out of range", ((0, 2, 4), (2, 0, 2))),
        ("a negative cluster", ((-1, 2, 4), (0, 0, 2))),
    ],
)
def test_counts_that_do_not_describe_the_batch_are_refused(why: str, triples: tuple[tuple[int, int, int], ...]) -> None:
    with pytest.raises(ProtocolError, match="2 clusters of 6 images") as caught:
        soft_labels(wire(*triples), 2, 5, 6)
    assert caught.value.code == "labels", why
