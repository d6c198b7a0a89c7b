"""Fair queueing by time, as properties: shares by priority, order within a key, nothing saved up, nothing lost."""

from __future__ import annotations

from collections import Counter
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adc_edge.cloud_trainer.scheduling.queue import FairQueue

PRIORITIES = st.dictionaries(st.integers(0, 5), st.floats(0.1, 10), min_size=2)
T = TypeVar("T")
COSTS = st.lists(st.floats(0.001, 1), min_size=1, max_size=7)


def pop(queue: FairQueue[T]) -> T | None:
    """Take the item whose turn it is, alone."""
    return next(iter(queue.pop_with(lambda first, other: False, lambda first: 1)), None)


def take(queue: FairQueue[T]) -> T:
    item = pop(queue)
    assert item is not None
    return item


@settings(deadline=None)
@given(priorities=PRIORITIES, costs=COSTS)
def test_keys_that_always_wait_share_the_time_by_their_priorities(
    priorities: dict[int, float], costs: list[float]
) -> None:
    queue: FairQueue[tuple[int, int]] = FairQueue()
    queue.control(priorities, ())
    used = dict.fromkeys(priorities, 0.0)
    dearest = {key: max(costs[(key + n) % len(costs)] for n in range(len(costs))) for key in priorities}
    for key in priorities:
        for number in range(80):
            queue.push(key, (key, number))
    for _ in range(80):  # no key is ever empty
        key, number = take(queue)
        cost = costs[(key + number) % len(costs)]
        queue.charge(key, cost)
        used[key] += cost
        times = {key: used[key] / priorities[key] for key in priorities}
        for one in priorities:
            for other in priorities:
                bound = dearest[one] / priorities[one] + dearest[other] / priorities[other]
                assert times[one] - times[other] <= bound + 1e-9


@settings(deadline=None)
@given(
    events=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1), st.booleans()), max_size=60),
    paused=st.sets(st.integers(0, 3)),
)
def test_nothing_is_lost_and_each_key_keeps_its_order_also_over_a_pause(
    events: list[tuple[int, float, bool]], paused: set[int]
) -> None:
    queue: FairQueue[tuple[int, int]] = FairQueue()
    pushed: Counter[int] = Counter()
    came: list[tuple[int, int]] = []
    queue.control({}, paused)
    for key, cost, serve in events:
        queue.push(key, (key, pushed[key]))
        pushed[key] += 1
        if serve and (item := pop(queue)) is not None:
            came.append(item)
            queue.charge(item[0], cost)
    assert not {key for key, _ in came} & paused
    queue.control({}, ())
    while (item := pop(queue)) is not None:
        came.append(item)
    assert sorted(came) == sorted((key, n) for key, count in pushed.items() for n in range(count))
    for key in pushed:
        assert [n for other, n in came if other == key] == list(range(pushed[key]))


def test_a_key_that_was_idle_or_paused_gets_its_share_from_now_on_and_no_more() -> None:
    queue: FairQueue[int] = FairQueue()
    for paused in ((), (2,)):
        queue.control({}, paused)
        if paused:
            queue.push(2, 2)
        for _ in range(50):
            queue.push(1, 1)
            while (key := pop(queue)) == 2:
                queue.charge(2, 1.0)
            queue.charge(1, 1.0)
        queue.control({}, ())
        for key in (1, 2):
            for _ in range(20):
                queue.push(key, key)
        counts: Counter[int | None] = Counter()
        for _ in range(20):
            counts[key := pop(queue)] += 1
            queue.charge(key or 0, 1.0)
        assert abs(counts[1] - counts[2]) <= 2
        queue.withdraw(1)
        queue.withdraw(2)


def test_a_cheap_item_waits_for_one_dear_item_at_most() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(10):
        queue.push(1, "dear")
    assert pop(queue) == "dear"
    queue.push(2, "cheap")
    queue.charge(1, 60.0)
    for _ in range(5):
        assert pop(queue) == "cheap"
        queue.charge(2, 0.1)
        queue.push(2, "cheap")


def test_what_fits_is_taken_together_one_of_each_key_in_the_order_of_their_turns() -> None:
    queue: FairQueue[str] = FairQueue()
    for key, items in {1: ["a", "a"], 2: ["b"], 3: ["a"], 4: ["a"], 5: ["a"]}.items():
        for item in items:
            queue.push(key, f"{item}{key}")
    queue.charge(3, 1.0)
    queue.control({}, {4})

    def same(first: str, other: str) -> bool:
        return first[0] == other[0]

    assert queue.pop_with(same, lambda first: 9) == ["a1", "a5", "a3"]
    assert queue.pop_with(same, lambda first: 9) == ["b2"]
    assert queue.pop_with(same, lambda first: 1) == ["a1"]
    assert queue.pop_with(same, lambda first: 9) == []
    assert list(queue) == ["a4"]


def test_virtual_times_of_many_keys_take_bounded_memory() -> None:
    queue: FairQueue[int] = FairQueue()
    for key in range(20_000):
        queue.push(key, key)
        queue.charge(key, 1e-9)
        assert pop(queue) == key
    assert len(queue._used) < 5000


@pytest.mark.parametrize("priority", [0.5, 3.0])
def test_a_priority_that_changes_counts_from_then_on(priority: float) -> None:
    queue: FairQueue[int] = FairQueue()
    counts = {1: 0, 2: 0}
    for now in (1.0, priority):
        queue.control({2: now}, ())
        counts = {1: 0, 2: 0}
        for _ in range(80):
            for key in counts:
                queue.push(key, key)
            served = pop(queue) or 0
            counts[served] += 1
            queue.charge(served, 1.0)
    assert counts[2] / counts[1] == pytest.approx(priority, rel=0.1)
