"""Counted operations, against PyTorch's own count."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from adc_edge.method.ratio import Shape
from adc_edge.method.spec import TrunkSpec
from adc_edge.method.trunk import Trunk
from adc_edge.planning.work import block_operations, embedding_operations, last_operations, last_work

SPEC = TrunkSpec((32, 32), (4, 4), 3, 64, 2, 3, 256, position_tokens=65)


def counted(trunk: Trunk, shape: Shape | None = None) -> float:
    images = torch.randn(12, 3, 32, 32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if shape is None:
            trunk(images)
        else:
            trunk.compress(images, torch.arange(shape.clusters), torch.zeros(shape.kept - 1, dtype=torch.int64))
    return float(counter.get_total_flops() / len(images))


@pytest.mark.parametrize(("clusters", "kept"), [(12, 65), (6, 20), (3, 65), (12, 5)])
def test_operations_are_those_that_pytorch_counts(clusters: int, kept: int) -> None:
    trunk, shape = Trunk(SPEC), Shape(12, 65, clusters, kept)
    block = block_operations(65, 64, 256)
    assert counted(trunk) == pytest.approx(embedding_operations(SPEC) + 3 * block, rel=0.02)
    with_adc = embedding_operations(SPEC) + 2 * block + last_operations(shape, 64, 256)
    assert counted(trunk, shape) == pytest.approx(with_adc, rel=0.02)


def test_fewer_tokens_and_clusters_are_less_work() -> None:
    works = [last_work(Shape(12, 65, *cut), 64, 256) for cut in ((12, 65), (12, 30), (6, 30), (2, 2))]
    assert works == sorted(works, reverse=True)
    assert works[-1] < 0.25
