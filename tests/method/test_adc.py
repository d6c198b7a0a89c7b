"""The method, against NumPy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from adc_edge.method import adc


def attention_rows(images: int, tokens: int, seed: int) -> torch.Tensor:
    logits = torch.randn(images, tokens, generator=torch.Generator().manual_seed(seed)) * 2
    return logits.softmax(dim=1)


@pytest.mark.parametrize("seed", range(8))
def test_kmeans_equals_scikit_learn_from_the_same_rows(seed: int) -> None:
    rows = attention_rows(40, 30, seed)
    init_rows = torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:6]
    assignment, counts = adc.kmeans(rows, init_rows, iterations=50)
    reference = KMeans(6, init=rows[init_rows].double().numpy(), n_init=1, max_iter=50, tol=0, algorithm="lloyd")
    expected = reference.fit(rows.double().numpy()).labels_
    if len(np.unique(expected)) < 6:  # pragma: no cover - scikit-learn moves an emptied cluster, we keep it
        pytest.skip("a cluster emptied")
    assert assignment.tolist() == expected.tolist()
    assert counts.tolist() == np.bincount(expected, minlength=6).tolist()


@given(
    images=st.integers(2, 24), tokens=st.integers(2, 12), clusters=st.integers(2, 24), seed=st.integers(0, 2**31 - 1)
)
@settings(deadline=None, max_examples=60)
def test_every_image_lands_in_the_nearest_of_the_last_centroids(
    images: int, tokens: int, clusters: int, seed: int
) -> None:
    clusters = min(clusters, images)
    rows = attention_rows(images, tokens, seed)
    init_rows = torch.randperm(images, generator=torch.Generator().manual_seed(seed))[:clusters]
    assignment, counts = adc.kmeans(rows, init_rows)
    assert counts.sum() == images
    assert torch.bincount(assignment, minlength=clusters).tolist() == counts.tolist()
    # Plain Lloyd in float64 as the reference, with the same rule for emptied clusters.
    x = rows.double().numpy()
    centroids = x[init_rows.numpy()]
    for _ in range(adc.LLOYD_ITERATIONS):
        distances = ((x[:, None] - centroids[None]) ** 2).sum(-1)
        nearest = distances.argmin(1)
        margin = np.partition(distances, 1, axis=1)
        if (margin[:, 1] - margin[:, 0]).min() < 1e-7:
            return  # a tie may fall either way in float32
        centroids = np.stack(
            [x[nearest == t].mean(0) if (nearest == t).any() else centroids[t] for t in range(clusters)]
        )
    assert assignment.tolist() == nearest.tolist()


def test_an_emptied_cluster_keeps_its_centroid_and_counts_zero() -> None:
    # The middle cluster is first {4, 10} with its mean at 7; then the means of both others come nearer to them.
    rows = torch.tensor([0.0, 2, 2, 2, 2, 4, 10, 11, 11, 11, 11, 17]).unsqueeze(1)
    assignment, counts = adc.kmeans(rows, torch.tensor([0, 5, 11]))
    assert counts.tolist() == [6, 0, 6]
    assert assignment.tolist() == [0] * 6 + [2] * 6


def test_as_many_clusters_as_images_leaves_every_image_alone() -> None:
    rows = attention_rows(12, 20, 3)
    assignment, counts = adc.kmeans(rows, torch.arange(12))
    assert assignment.tolist() == list(range(12))
    assert counts.tolist() == [1] * 12


def test_a_cluster_is_the_mean_of_its_members() -> None:
    values = torch.randn(7, 3, 4)
    assignment = torch.tensor([0, 2, 0, 1, 2, 2, 0])
    merged = adc.cluster_mean(values, assignment, torch.arange(4)).numpy()
    for cluster in range(3):
        np.testing.assert_allclose(merged[cluster], values.numpy()[assignment.numpy() == cluster].mean(0), atol=1e-6)
    assert not merged[3].any()


def test_prefix_tokens_are_always_kept_and_then_the_largest_scores() -> None:
    centroids = torch.tensor([[0.0, 0.0, 0.5, 0.1, 0.4, 0.0], [0.9, 0.0, 0.0, 0.3, 0.1, 0.2]])
    assert adc.select_tokens(centroids, kept=2, prefix=2).tolist() == [[0, 1, 2, 4], [0, 1, 3, 5]]


def test_cls_attention_is_the_cls_row_of_the_softmax_averaged_over_heads() -> None:
    q, k = torch.randn(3, 4, 9, 8), torch.randn(3, 4, 9, 8)
    full = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1)[:, :, 0].mean(1)
    torch.testing.assert_close(adc.cls_attention(q[:, :, :1], k, 8**-0.5), full)


def test_no_gradient_flows_through_the_choice() -> None:
    q = torch.randn(2, 1, 1, 4, requires_grad=True)
    assert not adc.cls_attention(q, torch.randn(2, 1, 5, 4, requires_grad=True), 0.5).requires_grad


def test_autocast_changes_no_score_no_cluster_and_no_mean() -> None:
    """The blocks may compute in bfloat16; eight bits of mantissa would decide otherwise who is alike."""
    random = torch.Generator().manual_seed(0)
    query, keys = (torch.randn(32, 3, n, 16, generator=random) for n in (1, 50))
    init_rows = torch.randperm(32, generator=random)[:8]
    scores = adc.cls_attention(query, keys, 0.25)
    assignment, counts = adc.kmeans(scores, init_rows)
    means = adc.cluster_mean(keys, assignment, torch.arange(8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (query[:, 0] @ keys[:, 0].mT).dtype == torch.bfloat16, "autocast is on"
        assert torch.equal(adc.cls_attention(query, keys, 0.25), scores)
        for got, expected in zip(adc.kmeans(scores, init_rows), (assignment, counts), strict=True):
            assert torch.equal(got, expected)
        assert torch.equal(adc.cluster_mean(keys, assignment, torch.arange(8)), means)
