"""The front holds what nothing beats, and the choice keeps the goals."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adc_edge.method.ratio import Ratio, Shape
from adc_edge.planning.accuracy.frontier import Estimate
from adc_edge.planning.choice import Candidate, Goal, choose, front, pareto, spread_out
from adc_edge.planning.schedule import Costs
from adc_edge.planning.step_model import Prediction, StepPlan

COSTS = Costs(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
NUMBERS = st.sampled_from([0.0, 1.0, 2.0, 3.0, 0.5])  # few, so that many are equal
TABLES = st.integers(1, 4).flatmap(
    lambda columns: st.lists(st.lists(NUMBERS, min_size=columns, max_size=columns), min_size=1, max_size=12)
)


def candidate(
    seconds: float, size: int, points: float | None, ssim: float | None = None, batch: float = 1.0
) -> Candidate:
    shape = Shape(16, 17, max(2, round(16 * batch)), 17)
    plan = StepPlan(2, shape, "pca1", "pca0.25")
    accuracy, similarity = (None if value is None else Estimate(value, 1.0, ("s",), "here") for value in (points, ssim))
    prediction = Prediction(seconds, size, 0, 0, COSTS)
    return Candidate(plan, Ratio(batch=batch, token=1.0), prediction, accuracy, similarity)


FAST = candidate(1.0, 100, -5.0, 0.3)
MIDDLE = candidate(2.0, 200, -0.8, 0.5)
SLOW = candidate(4.0, 400, 0.1, 0.6)
UNKNOWN = candidate(0.5, 50, None)
ALL = [FAST, MIDDLE, SLOW, UNKNOWN]


def beats(one: list[float], other: list[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


@given(TABLES)
def test_the_front_is_what_a_comparison_of_all_pairs_leaves(table: list[list[float]]) -> None:
    kept = pareto(table)
    unbeaten = [i for i, row in enumerate(table) if not any(beats(other, row) for other in table)]
    first = [i for i in unbeaten if table[i] not in [table[j] for j in unbeaten if j < i]]
    assert kept == first


def test_an_unknown_accuracy_is_the_worst_and_stays_only_if_it_is_faster_or_smaller() -> None:
    slower = candidate(1.5, 150, None)
    assert front([*ALL, slower], with_ssim=False) == ALL
    assert front([FAST, slower], with_ssim=False) == [FAST]


def test_ssim_counts_for_the_front_only_where_it_is_asked_for() -> None:
    hidden = candidate(2.0, 200, -0.9, 0.2)
    assert front([MIDDLE, hidden], with_ssim=False) == [MIDDLE]
    assert front([MIDDLE, hidden], with_ssim=True) == [MIDDLE, hidden]


def test_without_a_goal_the_fastest_that_loses_at_most_one_point_is_chosen() -> None:
    found = choose(ALL, [])
    assert (found.candidate, found.met) == (MIDDLE, True)
    assert found.reason == "the fastest of 2 settings that lose at most one point to uncompressed training"


def test_without_a_goal_the_most_accurate_is_chosen_where_all_lose_more() -> None:
    found = choose([FAST, candidate(3.0, 100, -2.0)], [])
    assert found.candidate.prediction.seconds == 3.0
    assert "all lose more than one point" in found.reason


def test_with_a_limit_of_time_or_bytes_the_most_accurate_is_chosen() -> None:
    for goal in (Goal("--target-step-time", "seconds", 3.0), Goal("--max-bytes-per-step", "bytes", 300)):
        found = choose(ALL, [goal])
        assert (found.candidate, found.met) == (MIDDLE, True)


def test_with_an_accuracy_the_fastest_that_keeps_it_is_chosen() -> None:
    assert choose(ALL, [Goal("--min-accuracy", "accuracy", -6.0)]).candidate == FAST
    both = [Goal("--min-accuracy", "accuracy", 0.0), Goal("--target-step-time", "seconds", 9.0)]
    assert choose(ALL, both).candidate == SLOW


def test_what_an_attacker_may_see_is_a_limit_that_an_unknown_value_does_not_keep() -> None:
    found = choose([candidate(0.1, 10, 0.0), *ALL], [Goal("--max-ssim", "ssim", 0.5)])
    assert found.candidate == MIDDLE


def test_of_equally_fast_settings_the_one_of_fewest_bytes_is_chosen() -> None:
    assert choose([candidate(2.0, 200, 0.0), candidate(2.01, 100, 0.0)], []).candidate.bytes == 100


def test_where_nothing_keeps_the_goals_the_nearest_measured_setting_comes_with_an_unmeasured_one_that_does() -> None:
    found = choose(ALL, [Goal("--target-step-time", "seconds", 0.6)])
    assert (found.candidate, found.met, found.unmeasured) == (FAST, False, UNKNOWN)
    assert choose(ALL, [Goal("--target-step-time", "seconds", 0.1)]).unmeasured is None


def test_of_unmeasured_settings_that_keep_the_goals_one_that_merges_less_is_named() -> None:
    merged = candidate(0.5, 60, None, batch=0.5)
    assert choose([FAST, merged, UNKNOWN], [Goal("--target-step-time", "seconds", 0.6)]).unmeasured == UNKNOWN


def test_a_setting_that_is_useless_is_not_the_nearest() -> None:
    useless = candidate(0.9, 90, -60.0)
    assert choose([useless, FAST], [Goal("--target-step-time", "seconds", 0.6)]).candidate == FAST


@given(
    st.lists(st.tuples(NUMBERS, st.integers(1, 4), st.one_of(st.none(), NUMBERS)), min_size=1, max_size=8),
    st.lists(st.sampled_from(["seconds", "bytes", "accuracy"]), max_size=3, unique=True),
    NUMBERS,
)
def test_a_choice_that_says_so_keeps_every_goal_and_one_that_does_not_could_not(
    values: list[tuple[float, int, float | None]], quantities: list[str], limit: float
) -> None:
    candidates = [candidate(seconds + 0.1, size, points) for seconds, size, points in values]
    goals = [Goal(f"--{name}", name, limit) for name in quantities]  # type: ignore[arg-type]
    found = choose(candidates, goals)
    measured = [one for one in candidates if one.accuracy is not None]
    keeping = [one for one in measured if not any(goal.excess(one) for goal in goals)]
    if measured and goals:
        assert found.met == bool(keeping)
        assert not keeping or found.candidate in keeping
    assert found.candidate in candidates


@pytest.mark.parametrize("most", [1, 2, 3, 9])
def test_a_table_has_the_chosen_row_and_at_most_the_rows_that_fit(most: int) -> None:
    many = [candidate(float(seconds), 10, 0.0) for seconds in range(1, 9)]
    for always in itertools.islice(many, 3):
        shown = spread_out(many, most, [always])
        assert always in shown
        assert len(shown) <= most
        assert shown == sorted(shown, key=lambda one: one.prediction.seconds)
