"""Agreement of two runs of trunk + ADC, when one computes with fewer bits or on another machine.

The cluster of an image is a discrete choice: a difference of 1e-9 can change it, and an activation then by 2. Choices
are compared as shares, and numbers only where both runs chose alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from adc_edge.arrays import Float32, Int64
from adc_edge.method.compressed import CompressedBatch

_NOISE = 0.5  # standard deviation of what is added, for a layer whose inputs and outputs are about 1


class Agreement(NamedTuple):
    """Shares in 0..1, and a difference relative to the largest activation (NaN: no cluster to compare)."""

    assignment: float  # images that fell into the same cluster
    tokens: float  # Jaccard index of the tokens kept of an image, mean over the images
    difference: float  # largest |ours - theirs| where members and tokens are the same, of the largest |theirs|


def agreement(ours: CompressedBatch, theirs: CompressedBatch) -> Agreement:
    """Compare two compressed batches of the same images, k-means rows and ratio."""
    same = ours.assignment == theirs.assignment
    kept = [_sets(each.tokens) for each in (ours, theirs)]
    jaccard = [
        len(kept[0][a] & kept[1][b]) / len(kept[0][a] | kept[1][b])
        for a, b in zip(ours.assignment, theirs.assignment, strict=True)
    ]
    differences = [
        np.abs(_in_order(ours, cluster) - _in_order(theirs, cluster)).max()
        for cluster in range(min(len(kept[0]), len(kept[1])))
        if kept[0][cluster] == kept[1][cluster]
        and np.array_equal(ours.assignment == cluster, theirs.assignment == cluster)
    ]
    largest = float(np.abs(theirs.activations).max())
    difference = float(max(differences)) / largest if differences else float("nan")
    return Agreement(float(same.mean()), float(np.mean(jaccard)), difference)


def _sets(tokens: Int64) -> list[frozenset[int]]:
    return [frozenset(row) for row in tokens.tolist()]


def _in_order(each: CompressedBatch, cluster: int) -> Float32:
    """Return a cluster's activations ``[k, D]`` by token number, since near ties come in either order."""
    rows: Float32 = each.activations[cluster][np.argsort(each.tokens[cluster])]
    return rows


def perturb_weights(weights: Mapping[str, Float32], turn: int) -> dict[str, Float32]:
    """Return all weights with noise: enough to show each of them, too little to make fp16 fail."""
    rng = np.random.default_rng(turn)
    return {name: (w + _step(w) * rng.standard_normal(w.shape)).astype(np.float32) for name, w in weights.items()}


def _step(weight: Float32) -> float:
    inputs = weight[0].size if weight.ndim > 1 and len(weight) > 1 else 1  # of a layer; a bias or an embedding has none
    return _NOISE / float(np.sqrt(inputs))
