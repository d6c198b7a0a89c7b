"""The cut of a step: which numbers of messages are possible, and which of them is chosen."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adc_edge.method.ratio import Ratio
from adc_edge.planning.micro_batches import best_cut, possible_cuts
from adc_edge.planning.schedule import Costs, step_seconds


def whole(forward: float, recompute: float, backward: float, up: float, down: float, message: float = 0.0) -> dict:  # type: ignore[type-arg]
    """Costs of each of M micro-batches, for a step that has these in all."""
    counts = (1, 2, 4, 8, 16, 32)
    return {m: Costs(forward / m + message, recompute / m, backward / m, up / m, 0.0, down / m) for m in counts}


@pytest.mark.parametrize(
    ("images", "ratio", "counts"),
    [
        (256, Ratio(xi=1.0), [1, 2, 4, 8, 16, 32, 64]),
        (256, Ratio(batch=0.25, token=0.5), [1, 2, 4, 8, 16, 32]),  # merged: 8 images at least
        (32, Ratio(batch=0.5, token=0.5), [1, 2, 4]),
        (32, Ratio(batch=1.0, token=0.5), [1, 2, 4, 8, 16]),
        (24, Ratio(batch=0.3, token=1.0), [1]),  # T is 7 of 24, and would be 3 of 12 or 2 of 8
        (7, Ratio(xi=1.0), [1]),
        (12, Ratio(xi=1.0), [1, 2, 3, 4, 6]),
    ],
)
def test_only_cuts_that_change_little_in_what_is_sent_are_possible(
    images: int, ratio: Ratio, counts: list[int]
) -> None:
    found = possible_cuts(images, lambda count: ratio.shape(images // count, 197, 1))
    assert list(found) == counts
    assert all(shape.images * count == images for count, shape in found.items())


def test_a_slow_link_is_worth_several_messages_and_a_fast_one_is_not() -> None:
    slow = best_cut(whole(0.3, 0.4, 0.5, up=2.0, down=1.0), rtt=0.04)
    assert slow.micro_batches > 1
    assert slow.seconds < 0.75 * 3.84
    assert best_cut(whole(0.3, 0.4, 0.5, up=0.01, down=0.005), rtt=0.001).micro_batches == 1


def test_messages_that_cost_something_are_few() -> None:
    costly = best_cut(whole(0.3, 0.4, 0.5, up=2.0, down=1.0, message=0.1), rtt=0.04)
    assert 1 < costly.micro_batches < best_cut(whole(0.3, 0.4, 0.5, up=2.0, down=1.0), rtt=0.04).micro_batches


def test_a_number_that_does_not_fit_takes_the_larger_ones_with_it() -> None:
    asked: list[int] = []

    def fits(count: int) -> bool:
        asked.append(count)
        return count <= 4

    costs = whole(0.3, 0.4, 0.5, up=2.0, down=1.0)
    assert best_cut(costs, 0.04, fits=fits).micro_batches == 4
    assert asked[-1] == 4
    assert best_cut(costs, 0.04, fits=lambda count: False).micro_batches == 1


def test_a_window_that_was_named_is_used() -> None:
    found = best_cut(whole(0.3, 0.4, 0.5, up=2.0, down=1.0), 0.04, window=2)
    assert found.window == min(2, found.micro_batches)


SECONDS = st.floats(0.0, 10.0)


@given(SECONDS, SECONDS, SECONDS, SECONDS, SECONDS, st.floats(0.0, 1.0), st.floats(0.0, 0.1))
@settings(deadline=None)
def test_the_choice_gains_a_tenth_or_is_one_message_and_its_window_loses_little(
    forward: float, recompute: float, backward: float, up: float, down: float, rtt: float, message: float
) -> None:
    costs = whole(forward, recompute, backward, up, down, message)
    best = best_cut(costs, rtt)
    alone = step_seconds(costs[1], rtt)
    assert best.seconds == step_seconds(costs[best.micro_batches], rtt, best.micro_batches, best.window)
    if best.micro_batches > 1:
        assert best.seconds <= 0.9 * alone + 1e-9
        assert best.seconds <= 1.01 * 1.06 * 1.01 * min(step_seconds(costs[m], rtt, m) for m in costs) + 1e-9
    else:
        assert best.seconds == alone
