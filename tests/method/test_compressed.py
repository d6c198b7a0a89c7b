"""Empty clusters never travel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adc_edge.method.compressed import CompressedBatch, drop_empty


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_empty_clusters_are_dropped_and_the_others_renumbered(kind: type) -> None:
    activations = kind([[[0.0, 1.0]], [[2.0, 3.0]], [[4.0, 5.0]], [[6.0, 7.0]]])
    kept = CompressedBatch(*drop_empty(activations, kind([3, 1, 3]), kind([[0], [1], [2], [3]]), kind([0, 1, 0, 2])))
    assert kept.activations.tolist() == [[[2.0, 3.0]], [[6.0, 7.0]]]
    assert kept.assignment.tolist() == [1, 0, 1]
    assert kept.tokens.tolist() == [[1], [3]]
