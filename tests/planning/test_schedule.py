"""The predicted time of a step, against arithmetic done by hand and a simulation written another way."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adc_edge.planning.schedule import Costs, step_seconds

SECONDS = st.floats(0.0, 10.0)
COSTS = st.builds(Costs, *6 * [SECONDS], wait=st.just(0.0), share=st.just(1.0))


def test_one_message_hides_the_recompute_behind_its_way() -> None:
    costs = Costs(forward=1, recompute=2, backward=4, up=3, cloud=5, down=6)
    assert step_seconds(costs, rtt=0.5) == 1 + 3 + 5 + 6 + 0.5 + 4
    slow = costs._replace(recompute=20)
    assert step_seconds(slow, rtt=0.5) == 1 + 20 + 4


def test_two_micro_batches_by_hand() -> None:
    costs = Costs(forward=1, recompute=0, backward=1, up=2, cloud=1, down=2)
    # up 1-3 and 3-5, cloud 3-4 and 5-6, down 4-6 and 6-8, backward 6-7 and 8-9
    assert step_seconds(costs, rtt=0.0, micro_batches=2) == 9
    assert step_seconds(costs, rtt=0.0, micro_batches=2, window=1) == 2 * step_seconds(costs, rtt=0.0)


def test_a_message_waits_for_other_devices_before_its_turn_and_between_two_turns_by_hand() -> None:
    costs = Costs(forward=1, recompute=0, backward=1, up=2, cloud=2, down=1, wait=3, share=0.5)
    assert step_seconds(costs, rtt=0.5) == 1 + 2 + 0.5 + 3 + 2 + 1 + 1
    # up 1-3 and 3-5; the first waits until 6, is served until 8; others take 2 s; the second is served 10-12
    # down 8-9 and 12-13, backward 9-10 and 13-14
    assert step_seconds(costs, rtt=0.0, micro_batches=2) == 14
    # the second comes when the first is long done: it waits as the first did
    late = costs._replace(up=9)
    assert step_seconds(late, rtt=0.0, micro_batches=2) == 1 + 2 * 9 + 3 + 2 + 1 + 1


@given(COSTS, SECONDS, st.integers(1, 12), SECONDS, st.floats(0.1, 1.0))
@settings(max_examples=100)
def test_other_devices_never_make_a_step_shorter(
    costs: Costs, rtt: float, micro_batches: int, wait: float, share: float
) -> None:
    alone = step_seconds(costs, rtt, micro_batches)
    assert step_seconds(costs._replace(wait=wait, share=share), rtt, micro_batches) >= alone * (1 - 1e-9)
    assert step_seconds(costs._replace(wait=wait), rtt) >= step_seconds(costs, rtt)


def by_events(costs: Costs, rtt: float, micro_batches: int) -> float:
    """All in flight: an event queue over three servers, between what the device does before and after."""
    free = {"up": 0.0, "cloud": 0.0, "down": 0.0}
    durations = {"up": costs.up, "cloud": costs.cloud, "down": costs.down}
    following = {"up": ("cloud", rtt / 2), "cloud": ("down", 0.0), "down": ("device", rtt / 2)}
    queue = [((number + 1) * costs.forward, number, "up") for number in range(micro_batches)]
    back: dict[int, float] = {}
    while queue:
        at, number, place = heapq.heappop(queue)
        if place == "device":
            back[number] = at
            continue
        free[place] = max(at, free[place]) + durations[place]
        after, delay = following[place]
        heapq.heappush(queue, (free[place] + delay, number, after))
    now = micro_batches * (costs.forward + costs.recompute)
    for number in range(micro_batches):
        now = max(now, back[number]) + costs.backward
    return now


@given(COSTS, SECONDS, st.integers(1, 12))
@settings(max_examples=200)
def test_it_equals_a_simulation_by_events(costs: Costs, rtt: float, micro_batches: int) -> None:
    assert step_seconds(costs, rtt, micro_batches) == pytest.approx(by_events(costs, rtt, micro_batches))


def bound_seconds(costs: Costs, micro_batches: int = 1) -> float:
    """The lower bound of a step's time: that of the busiest of device, link (each way) and cloud."""
    device = costs.forward + costs.recompute + costs.backward
    return micro_batches * max(device, costs.up, costs.cloud, costs.down)


@given(COSTS, SECONDS, st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=200)
def test_no_schedule_beats_the_bound_and_no_window_beats_none(
    costs: Costs, rtt: float, micro_batches: int, window: int
) -> None:
    free = step_seconds(costs, rtt, micro_batches)
    assert free >= bound_seconds(costs, micro_batches) * (1 - 1e-9)
    windowed = step_seconds(costs, rtt, micro_batches, window)
    assert windowed >= bound_seconds(costs, micro_batches) * (1 - 1e-9)
    assert windowed <= step_seconds(costs, rtt, micro_batches, 1) * (1 + 1e-9)


def test_cutting_a_step_in_pieces_approaches_the_bound() -> None:
    whole = Costs(1, 1, 1, 3, 3, 3)
    times = [step_seconds(Costs(*(value / pieces for value in whole[:6])), 0.04, pieces) for pieces in (1, 2, 4, 8, 16)]
    assert times == sorted(times, reverse=True)
    assert times[0] > 11
    assert times[-1] < 1.4 * bound_seconds(whole)
