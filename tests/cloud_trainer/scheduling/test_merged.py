"""Merged passes: the gradients are those of separate passes, each session is counted as alone, and a head learns."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adc_edge.cloud_trainer.accumulator import StepAccumulator
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.scheduling.merged import MOST_MERGED, Merging
from adc_edge.defaults import MergePasses
from adc_edge.errors import ProtocolError

IMAGES = (8, 8, 24)


def inputs(
    dim: int, images: tuple[int, ...] = IMAGES
) -> list[tuple[Tensor, np.ndarray[Any, np.dtype[np.float32]], int]]:
    rng = np.random.default_rng(0)
    return [
        (
            torch.from_numpy(rng.standard_normal((4, 7, dim)).astype(np.float32)),
            rng.dirichlet(np.ones(10), 4).astype(np.float32),
            count,
        )
        for count in images
    ]


def alone(training: HeadTraining, given: list[Any]) -> list[tuple[StepAccumulator, Any]]:
    """The steps learned one by one at the same weights."""
    steps = [StepAccumulator(1) for _ in given]
    return [(step, training.learn(one[0], one[1], True, step)) for step, one in zip(steps, given, strict=True)]


@pytest.mark.parametrize("how", ["sum", "each"])
def test_a_merged_pass_gives_the_gradients_of_separate_passes(training: HeadTraining, how: MergePasses) -> None:
    given = inputs(training.head.vit.embed_dim)
    expected = alone(training, given)
    totals = [StepAccumulator(1) for _ in given]
    learned = Merging(how).learn(training, given, totals)
    for one, (_, single) in zip(learned, expected, strict=True):
        assert one.loss == pytest.approx(single.loss, rel=1e-6)
        assert one.accuracy == pytest.approx(single.accuracy, rel=1e-6)
        torch.testing.assert_close(one.gradient, single.gradient, rtol=1e-4, atol=1e-7)
    if how == "each":
        for step, (single_step, _) in zip(totals, expected, strict=True):
            torch.testing.assert_close(step.gradients, single_step.gradients, rtol=1e-4, atol=1e-6)
        return
    mean = sum(IMAGES) / len(IMAGES)
    for number, total in enumerate(totals[0].gradients):
        summed = torch.zeros_like(training.parameters[number])
        for images, (step, _) in zip(IMAGES, expected, strict=True):
            part = step.gradients[number]
            assert part is not None
            summed += images / mean * part
        torch.testing.assert_close(total, summed, rtol=1e-4, atol=1e-6)
    assert [step.gradients for step in totals[1:]] == [[], []]


@pytest.mark.parametrize(("how", "updates"), [("sum", 1), ("each", 3)])
def test_each_step_is_counted_and_the_optimizer_steps_as_the_name_says(
    training: HeadTraining, how: MergePasses, updates: int
) -> None:
    given = inputs(training.head.vit.embed_dim)
    totals = [StepAccumulator(1) for _ in given]
    Merging(how).learn(training, given, totals)
    assert all(step.complete for step in totals)
    for step in totals:
        training.update(step, 0)
    assert training.steps == 3
    (count,) = {float(state["step"]) for state in training.optimizer._torch.state_dict()["state"].values()}
    assert count == updates


def test_each_makes_the_optimizer_steps_in_order_with_gradients_of_the_same_weights(training: HeadTraining) -> None:
    given = inputs(training.head.vit.embed_dim)
    other = copy.deepcopy(training)
    other._forward = other.head
    steps = [step for step, _ in alone(other, given)]
    totals = [StepAccumulator(1) for _ in given]
    Merging("each").learn(training, given, totals)
    for mine, theirs in zip(totals, steps, strict=True):
        training.update(mine, 0)
        other.update(theirs, 0)
    for mine_p, theirs_p in zip(training.parameters, other.parameters, strict=True):
        torch.testing.assert_close(mine_p, theirs_p, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("how", ["sum", "each"])
def test_a_loss_that_is_not_finite_changes_nothing(training: HeadTraining, how: MergePasses) -> None:
    given = inputs(training.head.vit.embed_dim)
    given[1][0][0, 0, 0] = math.nan
    totals = [StepAccumulator(1) for _ in given]
    with pytest.raises(ProtocolError, match="a loss of nan"):
        Merging(how).learn(training, given, totals)
    assert [step.learned for step in totals] == [0, 0, 0]


def queued(session: int, clusters: int = 4, next_step: bool = True, message: bool = True) -> Any:
    from adc_edge.wire.messages import Bye, Step

    step = Step(session, 3, 0, 1, 9, 8, clusters, 7, 4, "fp32", "fp32")
    served = SimpleNamespace(id=session, is_next_step=lambda step: next_step)
    return SimpleNamespace(peer=SimpleNamespace(session=served), message=step if message else Bye(session))


def test_only_whole_steps_of_the_same_shape_are_merged_and_no_more_rows_than_one_message_may_have() -> None:
    merging = Merging("sum", 7 * 4 * 3)
    assert merging.most(queued(1)) == 3
    assert Merging("sum", 10**9).most(queued(1)) == MOST_MERGED
    assert Merging("sum", 1).most(queued(1)) == 1
    assert [merging.most(one) for one in (queued(1, next_step=False), queued(1, message=False))] == [1, 1]
    assert Merging("off", 10**9).most(queued(1)) == 1
    others = (queued(2), queued(2, clusters=3), queued(2, next_step=False), queued(2, message=False))
    assert [merging.fits(queued(1), other) for other in others] == [True, False, False, False]
