"""A head that FSDP2 shares among ranks learns what one process learns, and the arithmetic of its memory is right."""

from __future__ import annotations

import pytest
import sharded_head
import sharded_memory
from sharded_memory import HeadSize

from adc_edge.method.split import Head, create_vit

SMALL = {"model": "vit_tiny_patch16_224", "model_args": {"depth": 4}, "split": 2, "classes": 10, "rows": 3, "tokens": 9}


def test_a_heads_parameters_are_those_that_timm_makes() -> None:
    head = Head(create_vit("vit_tiny_patch16_224", {"depth": 5}, 10), 2)
    size = HeadSize("ViT-T", 3, 192, 768, 197, 10)
    assert size.parameters() == sum(parameter.numel() for parameter in head.parameters())


def test_the_arithmetic_of_a_small_and_a_large_head() -> None:
    small, *_, large = sharded_memory.HEADS
    assert sharded_memory.ranks_needed(small, 32, 8) == 1
    assert sharded_memory.ranks_needed(large, 32, 80) is None, "its activations alone are more than a rank's share"
    ranks = sharded_memory.ranks_needed(large, 1, 80)
    assert ranks is not None
    assert sharded_memory.shard_gb(large, 1, ranks) <= 80 < sharded_memory.shard_gb(large, 1, ranks // 2)
    assert sharded_memory.most_parameters(80, 0) < large.parameters()
    assert sharded_memory.replica_gb(small, 1) > sharded_memory.alone_gb(small, 1)
    assert sharded_memory.moved_gb(large, 8, sharded=True) == 1.5 * sharded_memory.moved_gb(large, 8, sharded=False)


@pytest.mark.parametrize("counted", [True, False])
def test_bytes_are_told_only_where_they_are_those_of_the_ranks(
    counted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {"sharded, ms": 9.0, "replicated, ms": 6.0, "without exchange, ms": 5.0}
    found = sharded_head.steps(times | {"sharded, sent MB": 3.0, "replicated, sent MB": 2.0}, counted)
    assert [result.value for result in found] == ([9.0, 6.0, 3.0] if counted else [9.0, 6.0])
    assert ("left out" in capsys.readouterr().out) is not counted


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_that_share_a_head_learn_what_one_process_learns(ranks: int) -> None:
    answers = sharded_head.run_ranks(SMALL | {"task": "agree", "steps": 5}, ranks)
    assert len(answers) == ranks
    for answer in answers:
        assert answer.keys() == {"loss", "head gradient", "activation gradient", "weights after 5 steps"}
        assert all(difference <= 1e-5 for difference in answer.values()), answers


@pytest.mark.slow
def test_a_rank_holds_its_part_of_a_shared_head_alone() -> None:
    job = SMALL | {"task": "memory", "steps": 1}
    whole, shared = (sharded_head.run_ranks(job | {"how": how}) for how in ("replicated", "sharded"))
    for name in ("parameters", "gradients", "optimizer state"):
        assert sum(rank[name] for rank in shared) == pytest.approx(whole[0][name], rel=0.01)
        assert shared[0][name] < 0.6 * whole[0][name]
