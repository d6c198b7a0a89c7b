"""The progress of a run on a terminal, and the log lines of what happens to it."""

from __future__ import annotations

import errno
import io
import logging

import pytest
from rich.console import Console

from adc_edge.edge_runtime.screen import result as result_module
from adc_edge.edge_runtime.screen.display import Display
from adc_edge.edge_runtime.screen.result import report_table
from adc_edge.edge_runtime.tally import StepRecord, Tally
from adc_edge.method.ratio import Ratio, Shape
from adc_edge.screen.words import roughly


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "adc_edge")


def a_step(step: int = 0, seconds: float = 0.2) -> StepRecord:
    return StepRecord(step, 2.5, 0.25, 3000, 1000, seconds, *[0.0] * 8)


def one_step() -> Tally:
    tally = Tally()
    tally.add(a_step(), 16)
    return tally


def test_without_a_terminal_progress_is_logged_but_not_every_step(caplog: pytest.LogCaptureFixture) -> None:
    display = Display(Console(file=io.StringIO()), total=10, done=0)
    for step in range(3):
        display.step(a_step(step), one_step())
    assert [record.message[:9] for record in caplog.records] == ["step 1/10"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_log_line_keeps_step_and_time_left_and_fits_a_terminal(
    width: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("adc_edge.edge_runtime.screen.display._LOG_EVERY_S", -1.0)
    display, tally = Display(Console(file=io.StringIO()), total=12000, done=0), Tally()
    for step in range(3):
        record = a_step(step, 1.3)
        tally.add(record, 16)
        display.step(record, tally)
    line = caplog.records[-1].message
    assert line.startswith("step 3/12000  4.3 h left")
    assert len(line) + len("2026-01-01 00:00:00 INFO    ") <= max(width, 52)
    assert ("loss 2.500" in line) == (width >= 80)


def test_the_time_to_go_is_said_once_after_a_few_steps(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    display, tally = Display(Console(file=io.StringIO()), total=560, done=0), Tally()
    for step in range(20):  # the first step warms up, and is not counted
        record = a_step(step, 30.0 if step == 0 else 1.3)
        tally.add(record, 16)
        display.step(record, tally)
    (said,) = [record.message for record in caplog.records if "to go" in record.message]
    assert said == "about 12 min to go at 1.3 s a step, evaluations apart"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0854, "85 ms"), (1.31, "1.3 s"), (40.0, "40 s"), (99.6, "1.7 min"), (720.0, "12 min"), (12600.0, "3.5 h"),
     (176400.0, "2.0 days")],
)  # fmt: skip
def test_times_are_told_with_two_digits(seconds: float, text: str) -> None:
    assert roughly(seconds) == text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_report_fits_and_breaks_no_word(width: int) -> None:
    tally = one_step()
    tally.rtt_samples_ms, tally.up_samples_mbit_s = [123.4], [20_000.0]
    more = {"precision": "pca0.0625", "gradient_precision": "pca0.0625", "complete": True}
    table = report_table(tally.report(Shape(16, 197, 4, 98), 192, False, **more))
    words = []
    for columns in (width, 200):
        console = Console(file=io.StringIO(), width=columns, record=True)
        console.print(table)
        shown = console.export_text()
        assert max(map(len, shown.splitlines())) <= columns
        words.append({word for word in shown.split() if word[0] not in "│┌├└"})
    assert words[0] == words[1]


def test_a_file_that_cannot_be_written_is_logged_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    display = Display(Console(file=io.StringIO()), total=10, done=0)
    full = OSError(errno.ENOSPC, "No space left on device", "/run/checkpoint")
    for error in (None, full, full, None, None):
        display.trouble(error)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "/run/checkpoint: No space left on device" in caplog.records[0].message


def test_an_insecure_run_warns(caplog: pytest.LogCaptureFixture) -> None:
    Display(Console(file=io.StringIO()), total=10, done=0, insecure=True)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def shown(tally: Tally) -> str:
    """The table at the end of a run with this tally."""
    report = tally.report(Ratio(xi=0.4).shape(16, 17, 1), 32, False, precision="fp32", gradient_precision="fp32")
    file = io.StringIO()
    Console(file=file, width=100).print(report_table(report))
    return file.getvalue()


def test_a_link_that_was_not_measured_says_the_true_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_module, "KERNEL_COUNTS", True)
    assert "not measured (no step was finished)" in shown(Tally())  # stopped while it waited for the trainer
    monkeypatch.setattr(result_module, "KERNEL_COUNTS", False)
    assert "not measured (needs Linux)" in shown(one_step())


def test_the_probes_of_the_link_have_a_row_of_their_own() -> None:
    tally = one_step()
    assert "probes" not in shown(tally)
    tally.probe(200_000, 190_000)
    tally.probe(10_000, 0)
    assert "400.0 kB" in next(line for line in shown(tally).splitlines() if "probes of the link" in line)
    assert (tally.bytes_up, tally.bytes_down) == (3000, 1000)
