"""The rounds of a fleet, compared with their formulae in float64."""

from __future__ import annotations

import numpy as np
import pytest

from adc_edge.arrays import Float32
from adc_edge.codec.trunk_changes import changes_bytes, shapes_of
from adc_edge.defaults import FleetPrecision
from adc_edge.evaluation.fleet.rounds import StudyRounds
from adc_edge.evaluation.fleet.setting import StudyFleet

RNG = np.random.default_rng(0)
KEPT = 8  # rounds whose changes a trainer keeps
SHAPES = {"blocks.0.weight": (6, 5), "cls_token": (1, 1, 5), "bias": (7,)}


def a_trunk(size: float = 1.0) -> dict[str, Float32]:
    return {name: RNG.normal(size=shape, scale=size).astype(np.float32) for name, shape in SHAPES.items()}


def moved(trunk: dict[str, Float32], by: dict[str, Float32]) -> dict[str, Float32]:
    return {name: value + by[name] for name, value in trunk.items()}


def test_a_round_adds_the_mean_of_the_changes_weighted_by_images() -> None:
    start = a_trunk()
    rounds = StudyRounds(start, StudyFleet(3, mode="averaged", precision="fp32", guard=False))
    steps, images = [a_trunk(0.1) for _ in range(3)], [10, 30, 60]
    rounds.close({device: rounds.change(device, moved(start, step)) for device, step in enumerate(steps)}, images)
    for name, value in start.items():
        wanted = value + sum(w / 100 * step[name].astype(np.float64) for w, step in zip(images, steps, strict=True))
        np.testing.assert_allclose(rounds.newest[name], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_what_rounding_loses_is_sent_with_the_next_change_so_that_the_sum_of_many_rounds_is_right(
    precision: FleetPrecision,
) -> None:
    rounds = StudyRounds(a_trunk(), StudyFleet(2, mode="averaged", precision=precision, guard=False))
    start, wanted = dict(rounds.newest), {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for number in range(1, 41):
        steps = [a_trunk(0.01) for _ in range(2)]
        bodies = {device: rounds.change(device, moved(rounds.newest, step)) for device, step in enumerate(steps)}
        rounds.close(bodies, [1, 1])
        for name in wanted:
            wanted[name] += (steps[0][name].astype(np.float64) + steps[1][name]) / 2
        off = max(float(np.abs(rounds.newest[name] - start[name] - wanted[name]).max()) for name in wanted)
        assert off < {"fp16": 2e-5, "bf16": 3e-4, "int8": 6e-4}[precision], number  # one round's rounding, not forty


def test_a_change_that_does_not_fit_is_left_out_unless_the_guard_is_off() -> None:
    for guard, left_out in ((True, 1), (False, 0)):
        start = {"w": np.zeros((4, 8), np.float32)}
        rounds = StudyRounds(start, StudyFleet(4, mode="averaged", precision="fp32", guard=guard))
        steps = [{"w": np.full((4, 8), size, np.float32)} for size in (1.0, 1.1, 0.9, 100.0)]
        rounds.close({device: rounds.change(device, step) for device, step in enumerate(steps)}, [1] * 4)
        assert rounds.left_out == left_out
        assert (float(rounds.newest["w"].max()) < 2) is guard


def test_an_answer_is_the_changes_since_the_base_or_the_whole_trunk_if_that_is_smaller() -> None:
    start = {"w": RNG.normal(size=(64, 96)).astype(np.float32)}
    rounds = StudyRounds(start, StudyFleet(3, mode="sequential"))
    small, whole = changes_bytes(shapes_of(start), "int8"), changes_bytes(shapes_of(start), "fp32")
    assert len(rounds.answer(0).body) == 0
    sent = []
    for _ in range(KEPT):
        rounds.close({0: rounds.change(0, moved(rounds.newest, {"w": np.full((64, 96), 0.1, np.float32)}))}, [1])
        sent.append(rounds.answer(0))
    assert {(len(answer.body), answer.whole) for answer in sent} == {(small, False)}
    assert [(answer.base, answer.round) for answer in sent] == [(number, number + 1) for number in range(KEPT)]
    late = rounds.answer(1)
    assert (late.base, late.round, late.whole, len(late.body)) == (0, KEPT, True, whole)
    assert np.array_equal(np.frombuffer(late.body, np.float32).reshape(64, 96), rounds.newest["w"])


def test_rounds_that_were_restored_go_on_with_the_same_bits() -> None:
    fleet = StudyFleet(2, mode="averaged")
    first = StudyRounds(a_trunk(), fleet)
    first.close({device: first.change(device, moved(first.newest, a_trunk(0.1))) for device in range(2)}, [3, 5])
    second = StudyRounds(a_trunk(), fleet)
    second.restore(first.arrays())
    steps = [a_trunk(0.1) for _ in range(2)]
    for rounds in (first, second):
        rounds.close(
            {device: rounds.change(device, moved(rounds.newest, steps[device])) for device in range(2)}, [3, 5]
        )
    assert first.round == second.round == 2
    assert all(np.array_equal(first.newest[name], second.newest[name]) for name in SHAPES)
    assert first.answer(0) == second.answer(0)
