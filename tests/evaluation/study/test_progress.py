"""The time left of a study: the time that the computed steps took, for each share that remains."""

from __future__ import annotations

import io
import logging
import re

import pytest
from rich.console import Console

from adc_edge.evaluation.study import progress
from adc_edge.evaluation.study.progress import Pace, StudyDisplay, growths, spelt


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_is_told_long_before_the_first_run_is_finished() -> None:
    clock = Clock()
    pace = Pace(10.0, clock)
    clock.now += 1000  # weights are loaded
    pace.add(0.0, False)
    for step in range(5):
        assert (step, pace.left_s()) == (step, None)
        clock.now += 2
        pace.add(0.01, True)
    assert pace.left_s() == pytest.approx(10 / 0.05 * 9.95)


def test_what_an_earlier_command_has_done_shortens_the_time_and_does_not_look_fast() -> None:
    clock = Clock()
    pace = Pace(2.0, clock)
    pace.add(0.5, False)
    for _ in range(10):
        clock.now += 1
        pace.add(0.01, True)
    assert pace.left_s() == pytest.approx(10 / 0.1 * 1.4)
    pace.add(0.9, False)  # the second run goes on, too
    assert pace.left_s() == pytest.approx(10 / 0.1 * 0.5)


def test_a_resumed_run_reports_its_start_as_done_before() -> None:
    told: list[tuple[float, bool]] = []
    step = growths(lambda growth, computed: told.append((growth, computed)))
    for share in (0.5, 0.75, 1.0, 1.2):
        step(share)
    assert told == [(0.5, False), (0.25, True), (0.25, True), (0.0, True)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.1, "1 s"), (45, "45 s"), (89, "89 s"), (95, "2 min"), (3600, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_times_are_spelt_as_a_person_says_them(seconds: float, text: str) -> None:
    assert spelt(seconds) == text


@pytest.mark.parametrize("width", [50, 80, 120])
def test_the_line_fits_the_terminal_and_keeps_the_runs_and_the_time_left(
    width: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "_FIRST_S", 0.0)
    screen = io.StringIO()
    with (
        caplog.at_level(logging.INFO, "adc_edge"),
        StudyDisplay(Console(file=screen, width=width, force_terminal=True, color_system=None), 24) as display,
    ):
        for _ in range(5):
            display.report(0.02, True)
    last = re.findall(r"runs [^\x1b\r\n]*", screen.getvalue())[-1]
    assert len(last) <= width
    assert "0.1 of 24" in last
    assert last.rstrip().endswith("left")
    assert "for 24 runs, by the first 5 steps" in caplog.text
