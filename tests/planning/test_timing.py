"""Medians and lines of measured times."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from adc_edge.planning.timing import finished, fit, line, timed


def test_the_coefficients_of_exact_times_are_found() -> None:
    images, works = [64.0, 16.0, 4.0, 64.0], [0.5, 0.5, 0.6, 1.0]
    seconds = [0.01 + 0.002 * b + 0.003 * b * w for b, w in zip(images, works, strict=True)]
    columns: list[list[float]] = [[1.0] * 4, images, [b * w for b, w in zip(images, works, strict=True)]]
    assert fit(columns, seconds) == pytest.approx([0.01, 0.002, 0.003])


def test_no_coefficient_is_negative() -> None:
    assert fit([[1.0, 1.0], [1, 4]], [1.0, 5.0]) == pytest.approx([0.0, 1.1], rel=0.2)
    assert fit([[1.0, 1.0], [1, 4]], [2.0, 1.0])[1] == 0.0


def test_a_line_through_one_size_begins_at_nothing() -> None:
    assert line({10: 2.0}).seconds(5) == 1.0
    assert line({10: 2.0, 20: 3.0}).seconds(40) == pytest.approx(5.0)


def test_a_slow_machine_does_fewer_rounds_and_at_least_one() -> None:
    calls: list[str] = []

    def slow() -> None:
        calls.append("slow")
        time.sleep(0.02)

    cases: dict[str, Callable[[], object]] = {"slow": slow, "quick": lambda: calls.append("quick")}
    found = finished(timed(cases, rounds=50, budget_s=0.05))
    assert calls[:2] == ["slow", "quick"]
    assert len(calls) <= 10
    assert found["slow"] > 0.01 > found["quick"]
    calls.clear()
    assert finished(timed(cases, rounds=3, budget_s=0.0)).keys() == cases.keys()
    assert calls == ["slow", "quick"]


def test_the_rounds_pause_after_each_run() -> None:
    work = timed({"a": lambda: None, "b": lambda: None}, rounds=2, budget_s=10)
    assert sum(1 for _ in work) == 6
