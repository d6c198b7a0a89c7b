"""The live area of `serve`, at any size and in every state of a run."""

from __future__ import annotations

import contextlib
import io
import threading
import time

import pytest
from rich.console import Console

from adc_edge.edge_runtime.screen.dashboard import Dashboard
from adc_edge.edge_runtime.screen.display import Display
from adc_edge.edge_runtime.screen.figures import RunFigures
from adc_edge.edge_runtime.settings import StepSettings
from adc_edge.edge_runtime.tally import Evaluation, StepRecord, Tally
from adc_edge.errors import LinkError
from adc_edge.method.ratio import Shape
from adc_edge.planning.passive import LinkEstimate, RateSample
from adc_edge.screen.sheet import RowSheet, rows_for
from adc_edge.wire.channel import Attempt, Channel

SETTINGS = StepSettings(1, Shape(32, 197, 16, 98), 1, 192, 10, "pca1", "pca0.25", 12_000)


def a_step(step: int) -> StepRecord:
    spent = {"data": 0.02, "forward": 0.05, "send": 0.01, "recompute": 0.02, "link": 0.06, "cloud": 0.03}
    spent |= {"wait": 0.05, "backward": 0.04}
    return StepRecord(
        step, 2.5 - step / 1e4, step / 12e3, 30_000, 10_000, 0.2, **{f"seconds_{k}": v for k, v in spent.items()}
    )


def a_run(steps: int, insecure: bool = False) -> RunFigures:
    """Figures of a run after so many steps."""
    figures = RunFigures(12_000, 0, insecure, "vit_tiny_patch16_224, blocks 1 to 3 of 12 → tcp://a.b:5700", False)
    tally, link = Tally(), LinkEstimate()
    for step in range(steps):
        record = a_step(step)
        tally.add(record, 32)
        tally.link(12.3, 23.4, 45.6)
        figures.note(record, tally, link, SETTINGS)
    link.up.add(RateSample(23.4))
    link.down.add(RateSample(45.6))
    tally.evaluations = [Evaluation(100, 360, 0.5, 1.0), Evaluation(200, 360, 0.6, 0.9)]
    return figures


def drawn(
    figures: RunFigures, width: int = 80, height: int = 24, encoding: str = "utf-8", colours: bool = False
) -> str:
    console = Console(file=io.StringIO(), color_system="standard" if colours else None, force_terminal=True)
    sheet = RowSheet(width, encoding)
    Dashboard(figures, console).draw(sheet, height)
    return "\n".join(row.plain for row in sheet.fitting(rows_for(height)))


@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(("width", "height"), [(50, 12), (60, 15), (80, 24), (140, 40), (250, 90)])
def test_the_area_fits_and_the_most_important_rows_are_there(
    width: int, height: int, encoding: str, insecure: bool
) -> None:
    lines = drawn(a_run(300, insecure), width, height, encoding).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= height - 4
    text = "\n".join(lines)
    assert "300/12000" in text
    assert "left" in text
    assert "steps/s" in text
    assert "loss" in text
    assert ("insecure" in text) == insecure


def test_eighty_by_twenty_four_shows_all_that_matters() -> None:
    text = drawn(a_run(300))
    expected = """5 steps/s, 60.0%, best 60.0% at step 200, pca1 up, pca0.25 down, ξ 0.249, RTT 12.3 ms, 9.0 MB up,
        3.0 MB down, 1/, 23.4 up, 45.6 down Mbit/s, forward 25 %, wait 25 %"""
    for words in map(str.strip, expected.split(",")):
        assert words in text, text
    assert drawn(a_run(300), 140, 40).count("█") > text.count("█")  # higher curves


def test_without_colours_the_split_of_a_step_is_of_letters() -> None:
    assert "ffffff" in drawn(a_run(9))
    assert "ffffff" not in drawn(a_run(9), colours=True)


def test_waiting_for_the_trainer_tells_for_how_long_and_which_try() -> None:
    figures, channel = a_run(3), Channel("tcp://127.0.0.1:9")
    try:
        figures.channel = channel
        channel.attempt = Attempt(time.monotonic() - 12.2, 3, "connection refused by \x1b[2J")
        assert "waiting for the trainer, 12 s, try 3 (connection refused by \\x1b[2J)" in drawn(figures, 120)
        figures.link_state = "lost"
        text = drawn(figures)
        assert "link lost, waiting for the trainer, 12 s, try 3" in text
        assert "link    lost" in text
        channel.attempt, figures.link_state = None, "back"
        assert "the trainer is back" in drawn(figures)
        figures.fleet_wait = "the fleet's average", time.monotonic() - 12.2
        assert "waiting for the fleet's average, 12 s" in drawn(figures)
        figures.note(a_step(4), Tally(), None, None)
        assert "trainer is" not in drawn(figures)
    finally:
        channel.close()


def test_a_real_outage_counts_its_tries() -> None:
    channel, seen = Channel("tcp://127.0.0.1:9"), []  # nothing listens there

    def fail() -> None:
        with contextlib.suppress(LinkError):
            channel.open(0.8)

    thread = threading.Thread(target=fail)
    thread.start()
    while thread.is_alive():
        seen.append(channel.attempt)
        time.sleep(0.02)
    channel.close()
    numbers = [attempt.number for attempt in seen if attempt is not None]
    assert numbers == sorted(numbers)
    assert numbers[-1] >= 2
    assert any(attempt and "refused" in attempt.why for attempt in seen)
    assert channel.attempt is None


def test_an_evaluation_and_a_step_that_does_not_come_are_told() -> None:
    figures = a_run(3)
    figures.evaluating_since = time.monotonic() - 7.1
    assert "evaluating, 7 s" in drawn(figures)
    figures.evaluating_since, figures.last_step_at = None, time.monotonic() - 60
    assert "no step for" not in drawn(figures)  # this process has begun just now


def test_before_the_first_step_there_is_a_title_and_progress() -> None:
    text = drawn(RunFigures(10, 0, False, "title", False))
    assert "serve  title" in text
    assert "0/10" in text


def test_a_step_costs_microseconds_and_draws_nothing() -> None:
    figures, tally, link, records = a_run(1), Tally(), LinkEstimate(), [a_step(step) for step in range(5000)]
    tally.add(records[0], 32)
    display = Display(Console(file=io.StringIO()), total=12_000, done=0)
    display._live, display.figures = True, figures  # as on a terminal
    start = time.perf_counter()
    for record in records:
        display.step(record, tally, link, SETTINGS)
    assert (time.perf_counter() - start) / 5000 < 50e-6  # 1 µs on an idle machine
    assert not display._console.file.getvalue()  # type: ignore[attr-defined]


def test_a_hundred_thousand_steps_leave_bounded_memory() -> None:
    figures = a_run(1)
    dashboard = Dashboard(figures, Console(file=io.StringIO()))
    record, tally = a_step(0), figures.tally
    assert tally is not None
    for number in range(100_000):
        figures.note(record, tally, None, None)
        if number % 20_000 == 0:
            dashboard.draw(RowSheet(80), 24)
    assert len(figures.steps) <= 8192
    assert len(dashboard._loss.values()) <= 1024
