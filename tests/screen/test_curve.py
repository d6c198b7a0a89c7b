"""Curves and bars of characters."""

from __future__ import annotations

import math
import time

import pytest

from adc_edge.screen.bars import Part, progress_bar, split_bar, split_legend
from adc_edge.screen.curve import MOST_POINTS, Curve, draw_curve


def test_a_curve_spans_lowest_to_highest_value() -> None:
    assert draw_curve([0, 1, 2, 3, 4, 5, 6, 7], 8) == ["▁▂▃▄▅▆▇█"]
    assert draw_curve([0, 15], 8, rows=2) == [" █", "▁█"]
    assert draw_curve([3.0, 3.0], 8) == ["▁▁"]
    assert draw_curve([], 8, rows=2) == ["", ""]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000])
def test_a_curve_never_takes_more_columns_than_there_are(count: int) -> None:
    (line,) = draw_curve(list(range(count)), 8)
    assert len(line) == min(count, 8)
    assert line == "".join(sorted(line))  # of values that rise


def test_a_hundred_thousand_steps_stay_a_curve_in_bounded_memory() -> None:
    curve = Curve()
    for step in range(100_000):
        curve.add(float(step))
    values = curve.values()
    assert MOST_POINTS <= len(values) <= 2 * MOST_POINTS
    assert values == sorted(values)
    assert values[0] < 200 < 99_000 < values[-1]


def test_a_loss_that_is_not_finite_leaves_the_curve_as_it_was() -> None:
    curve = Curve()
    for value in (2.0, math.nan, math.inf):
        curve.add(value)
    assert curve.values() == [2.0]


@pytest.mark.parametrize("width", [0, 1, 7, 40])
def test_the_parts_of_a_step_fill_their_share_of_the_bar(width: int) -> None:
    parts = [Part("forward", 0.5, "f", "cyan"), Part("wait", 0.25, "w", "red")]
    text = "".join(text for text, _ in split_bar(parts, width, colours=False))
    assert len(text) == round(0.75 * width)
    assert abs(text.count("f") - width / 2) <= 1
    more_than_all = [Part(name, 0.9, name, "red") for name in "abc"]
    assert sum(len(text) for text, _ in split_bar(more_than_all, width, colours=False)) == width


def test_the_largest_parts_are_named_where_not_all_fit() -> None:
    parts = [Part("data", 0.1, "d", "blue"), Part("send", 0.001, "s", "red"), Part("wait", 0.8, "w", "white")]
    assert [text for text, _ in split_legend(parts, True, 80)] == ["data 10 %", "wait 80 %"]
    assert [text for text, _ in split_legend(parts, False, 12)] == ["w wait 80 %"]


def test_a_bar_of_progress_is_empty_then_full() -> None:
    assert [text for text, _ in progress_bar(0.0, 4)] == ["", "░░░░"]
    assert [text for text, _ in progress_bar(1.5, 4)] == ["████", ""]


def test_a_curve_takes_a_value_in_microseconds() -> None:
    curve, start = Curve(), time.perf_counter()
    for _ in range(10_000):
        curve.add(1.0)
    assert time.perf_counter() - start < 1.0
