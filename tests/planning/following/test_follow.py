"""A run follows its link: it changes its setting when that clearly pays, and not because a rate wobbles."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adc_edge.method.ratio import Shape
from adc_edge.planning.following.follow import DWELL_S, GAIN, STEADY_STEPS, Alternative, Change, Follower, MessageForm
from adc_edge.planning.profile import TrainerShare
from adc_edge.planning.step_model import LinkRates

SHAPE = Shape(32, 197, 32, 197)
LARGE = Alternative(MessageForm(1, SHAPE, "int8", "int8"), 1, 1_200_000, 1_200_000, 0.004, 0.004)  # quick to encode
SMALL = Alternative(MessageForm(1, SHAPE, "pca1", "pca0.25"), 1, 150_000, 40_000, 0.4, 0.4)
COMPUTE = {"data": 0.05, "forward": 0.5, "send": 0.01, "recompute": 0.6, "backward": 0.9, "cloud": 0.3}


def travel(alternative: Alternative, link: LinkRates) -> float:
    """Seconds of a message and its answer on the way."""
    there = alternative.bytes_up * 8e-6 / link.up_mbit_s + alternative.bytes_down * 8e-6 / link.down_mbit_s
    return there + link.rtt_ms / 1e3


def measured(alternative: Alternative, link: LinkRates, load: float = 1.0) -> dict[str, float]:
    """The phases of a step with an alternative, on a machine that is ``load`` times as slow."""
    codec = {
        "encode": alternative.codec_seconds / 2,
        "decode": alternative.codec_seconds / 2,
        "cloud_codec": alternative.trainer_codec_seconds,
        "cloud_wait": 0.0,
    }
    spent = {name: load * seconds for name, seconds in {**COMPUTE, **codec}.items()}
    return {**spent, "link": travel(alternative, link)}


def realised(alternative: Alternative, link: LinkRates, load: float = 1.0) -> float:
    """The time of that step: the device recomputes while it waits."""
    spent = measured(alternative, link, load)
    away = spent.pop("link") + spent.pop("cloud") + spent.pop("cloud_codec")
    return max(spent.pop("recompute"), away) + sum(spent.values())


class Run:
    """A run of one alternative or another, whose changes are taken at once."""

    def __init__(self, start: Alternative = LARGE) -> None:
        alternatives = [LARGE, SMALL]
        self.follower = Follower(alternatives, alternatives.index(start))
        self.now_s = 1000.0
        self.changes: list[tuple[int, Change]] = []
        self.steps = 0

    @property
    def alternative(self) -> Alternative:
        return self.follower.alternatives[self.follower.current]

    def step(
        self,
        rate_mbit_s: float,
        load: float = 1.0,
        estimate_mbit_s: float | None = None,
        waited_s: float = 0.0,
        share: TrainerShare | None = None,
    ) -> None:
        link, told = (LinkRates(40.0, rate, rate) for rate in (rate_mbit_s, estimate_mbit_s or rate_mbit_s))
        seconds = realised(self.alternative, link, load) + waited_s
        self.now_s += seconds
        spent = measured(self.alternative, link, load) | {"cloud_wait": waited_s}
        change = self.follower.observe(spent, seconds, told, self.now_s, None, share)
        if change is not None:
            self.changes.append((self.steps, change))
            self.follower.take(change, self.now_s)
        self.steps += 1


def test_a_link_that_falls_and_recovers_is_followed_within_ten_steps() -> None:
    run = Run()
    for rate in (500.0, 2.0, 500.0):
        for _ in range(10):
            run.step(rate)
        assert run.alternative == (SMALL if rate == 2.0 else LARGE)
    assert [change.alternative for _, change in run.changes] == [SMALL, LARGE]


@pytest.mark.parametrize("told_mbit_s", [500.0, 5.0])
def test_a_change_that_the_estimate_does_not_show_is_seen_in_the_time_on_the_link(told_mbit_s: float) -> None:
    run = Run()
    for rate in (500.0, 2.0, 500.0):
        for _ in range(10):
            run.step(rate, estimate_mbit_s=told_mbit_s)
        assert run.alternative == (SMALL if rate == 2.0 else LARGE)


def test_one_slow_step_changes_nothing() -> None:
    run = Run()
    for number in range(40):
        run.step(2.0 if number % 10 < STEADY_STEPS - 1 else 500.0)
    assert not run.changes


@settings(deadline=None, max_examples=60)
@given(st.floats(1.0, 300.0), st.lists(st.floats(0.8, 1.2), min_size=120, max_size=120))
def test_a_rate_that_wobbles_by_a_fifth_changes_at_most_once_a_minute(rate: float, wobble: list[float]) -> None:
    run = Run()
    times = []
    for factor in wobble:
        before = len(run.changes)
        run.step(rate * factor)
        times += [run.now_s] * (len(run.changes) - before)
    assert all(later - earlier >= DWELL_S for earlier, later in pairwise(times))


def test_cores_that_become_busy_are_no_reason_to_send_more() -> None:
    run = Run(SMALL)
    for number in range(30):
        run.step(5.0, load=1.0 if number < 10 else 3.0)
    other = realised(LARGE, LinkRates(40.0, 5.0, 5.0), 3.0)
    here = realised(SMALL, LinkRates(40.0, 5.0, 5.0), 3.0)
    assert here < other
    assert not run.changes


def test_the_reason_names_the_link_and_both_predictions() -> None:
    run = Run()
    for _ in range(STEADY_STEPS):
        run.step(2.0)
    ((_, change),) = run.changes
    assert "2 Mbit/s up" in change.why
    assert "s a step is predicted" in change.why
    assert change.seconds < (1 - GAIN) * change.seconds_before
    link = LinkRates(40.0, 2.0, 2.0)
    assert change.seconds_before == pytest.approx(realised(LARGE, link), rel=0.1)
    assert change.seconds == pytest.approx(realised(SMALL, link), rel=0.1)


def test_the_correction_learns_how_far_the_prediction_is_off() -> None:
    run = Run()
    link = LinkRates(40.0, 100.0, 100.0)
    for _ in range(30):
        run.follower.observe(measured(LARGE, link), 1.3 * realised(LARGE, link), link, run.now_s)
    assert math.isclose(run.follower.correction, 1.3, rel_tol=0.02)


SEVERAL = Alternative(MessageForm(4, Shape(8, 197, 8, 197), "int8", "int8"), 4, 300_000, 300_000, 0.001, 0.001)


@pytest.mark.parametrize("share", [TrainerShare(0.5, 1.5, 2), TrainerShare(0.6, 0.8, 2), None])
def test_a_second_device_at_the_trainer_is_no_slow_link(share: TrainerShare | None) -> None:
    run = Run()
    for number in range(40):
        waited_s = 0.0 if number < 10 else 1.5
        run.step(500.0, waited_s=waited_s, share=share if waited_s else None)
    assert not run.changes


def test_a_link_that_becomes_slow_is_followed_beside_a_second_device() -> None:
    run = Run()
    for number in range(20):
        run.step(500.0 if number < 10 else 2.0, waited_s=0.5, share=TrainerShare(0.7, 0.5, 2))
    assert run.alternative == SMALL


def test_fewer_bytes_gain_nothing_where_the_trainer_is_the_limit() -> None:
    share = TrainerShare(0.1, 0.0, 10)  # 3 s of a step for 0.3 s of work, and the step takes them
    run = Run()
    for _ in range(20):
        run.step(10.0, waited_s=2.0, share=share)
    assert not run.changes
    alone = Run()
    for _ in range(20):
        alone.step(10.0)
    assert alone.alternative == SMALL


@pytest.mark.parametrize("waited_s", [0.0, 0.4, 2.0])
def test_the_wait_of_several_messages_does_not_count_for_the_link(waited_s: float) -> None:
    follower = Follower([SEVERAL, SMALL], 0)
    link = LinkRates(40.0, 400.0, 400.0)
    spent = measured(SEVERAL, link) | {"cloud_wait": waited_s, "encode": 0.0, "decode": 0.0}
    realised_s = follower._predict(SEVERAL, link, {**spent, "cloud": spent["cloud"] + waited_s})
    assert follower._calibrated(spent, realised_s, link) == link
