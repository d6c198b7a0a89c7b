"""The live area on real terminals, and where there is none."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console, ConsoleDimensions

from adc_edge import logs
from adc_edge.screen.live import LiveArea, can_draw
from adc_edge.screen.sheet import RowSheet
from adc_edge.screen.warned import LastWarnings

from .conftest import Terminal


@pytest.fixture
def console(terminal: Terminal) -> Iterator[Console]:
    with terminal.name.open("w") as file:
        yield Console(file=file)


@pytest.fixture(autouse=True)
def _no_handlers() -> Iterator[None]:
    logger = logging.getLogger("adc_edge")
    before, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:], logger.level = before, level


def rows(*texts: str) -> Callable[[RowSheet, int], None]:
    def draw(sheet: RowSheet, height: int) -> None:
        for rank, text in enumerate(texts):
            sheet.add(rank, "", text)

    return draw


def wait_for(found: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not found():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def test_a_terminal_is_drawn_on(console: Console) -> None:
    assert can_draw(console)


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("TERM", "dumb"), ("TTY_INTERACTIVE", "0")])
def test_ci_and_dumb_terminals_get_plain_lines(
    name: str, value: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with terminal.name.open("w") as file:
        assert not can_draw(Console(file=file))


def test_a_pipe_gets_plain_lines_also_where_colours_are_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not can_draw(Console(file=io.StringIO()))


@pytest.mark.parametrize(("verbosity", "as_json", "drawn"), [(-1, False, False), (0, True, False), (0, False, True)])
def test_quiet_and_json_logs_get_no_live_area(console: Console, verbosity: int, as_json: bool, drawn: bool) -> None:
    logs.configure(console, verbosity, as_json)
    assert can_draw(console) == drawn


def test_log_lines_pass_above_the_area_and_a_single_row_stays(terminal: Terminal, console: Console) -> None:
    logs.configure(console)
    with LiveArea(console, rows("first row", "second row"), lambda sheet: sheet.add(0, "", "the end")):
        wait_for(lambda: "second row" in terminal.text())
        logging.getLogger("adc_edge.test").warning("a warning")
        wait_for(lambda: terminal.text().count("second row") > 1)
    wait_for(lambda: "the end" in terminal.text())
    text = terminal.text()
    assert text.index("a warning") < text.rindex("second row") < text.rindex("the end")
    assert text.endswith("\x1b[?25h")  # the cursor is back


def test_a_log_line_draws_nothing_in_the_thread_of_the_run(console: Console) -> None:
    drawers = set()

    def draw(sheet: RowSheet, height: int) -> None:
        drawers.add(threading.current_thread())
        sheet.add(0, "", "row")

    logs.configure(console)
    area = LiveArea(console, draw, lambda sheet: sheet.add(0, "", "the end"))
    drawers.clear()
    with area:
        wait_for(lambda: bool(drawers))
        logging.getLogger("adc_edge.test").warning("a warning")
        assert threading.current_thread() not in drawers


@pytest.mark.parametrize(("columns", "lines"), [(49, 24), (80, 11), (20, 3)])
def test_a_small_terminal_gets_a_single_line(columns: int, lines: int, console: Console) -> None:
    console.size = ConsoleDimensions(columns, lines)
    area = LiveArea(console, rows("first row", "second row"), lambda sheet: sheet.add(0, "", "the only one"))
    assert area.picture().plain == "the only one"


def test_a_fault_of_the_screen_is_shown_and_ends_no_run(terminal: Terminal, console: Console) -> None:
    def draw(sheet: RowSheet, height: int) -> None:
        raise ValueError("\x1b[31m")

    with LiveArea(console, draw, lambda sheet: sheet.add(0, "", "the end")):
        wait_for(lambda: "cannot be drawn" in terminal.text())
    assert "\x1b[31m" not in terminal.text()


def test_what_a_narrower_terminal_makes_of_the_rows_is_erased(terminal: Terminal, console: Console) -> None:
    area = LiveArea(console, lambda sheet, height: sheet.rule(0, "title"), lambda sheet: sheet.add(0, "", "the end"))
    with area:
        wait_for(lambda: "title" in terminal.text())
        console.size = ConsoleDimensions(60, 24)
        seen = len(terminal.seen)
        wait_for(lambda: b"title" in terminal.seen[seen:])
    assert b"\x1b[2K\x1b[1A\r\x1b[2K" in terminal.seen[seen:]  # the row of 80 columns takes two lines of 60


def test_a_terminal_that_goes_away_ends_no_run() -> None:
    code = """
import logging, os, pty, time
from adc_edge import logs
from adc_edge.screen.live import LiveArea, can_draw
parent, child = pty.openpty()
os.dup2(child, 1)
os.close(child)
console = logs.AnyConsole()
logs.configure(console)
assert can_draw(console)
with LiveArea(console, lambda sheet, height: sheet.add(0, "", "row"), lambda sheet: sheet.add(0, "", "end")):
    os.close(parent)
    time.sleep(0.8)
    logging.getLogger("adc_edge").warning("a warning")
console.print("the result")
os.write(2, b"still at work")
"""
    environment = {key: value for key, value in os.environ.items() if key != "CI"} | {"TERM": "xterm"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, env=environment, start_new_session=True
    )
    assert done.stderr == b"still at work"
    assert done.returncode == 0


def test_the_last_warnings_stay_in_the_area_and_are_escaped() -> None:
    sheet, logger = RowSheet(100), logging.getLogger("adc_edge.test")
    with LastWarnings() as warnings:
        logger.info("nothing")
        for number in range(9):
            logger.warning("trouble %d\x1b[2J [red]x\nnext", number)
        assert warnings.draw(sheet, 0, 1) == 5
    logger.warning("later")
    texts = [row.plain for row in sheet.fitting(9)]
    assert [text[9:18] for text in texts] == [f"trouble {number}" for number in range(4, 9)]
    assert texts[0].endswith(r"\x1b[2J [red]x next")


@pytest.mark.parametrize("plain", [True, False])
def test_log_lines_carry_no_control_sequences(plain: bool, terminal: Terminal, tmp_path: Path) -> None:
    place = tmp_path / "log" if plain else terminal.name
    with place.open("w") as file:
        console = Console(file=file, width=120)
        logs.configure(console)
        logging.getLogger("adc_edge.test").warning("refused %s", "a\x1b[2J\x07\u202e[red]name[/red]")
    text = place.read_text() if plain else ""
    wait_for(lambda: plain or "name" in terminal.text())
    text = text or terminal.text()
    assert r"refused a\x1b[2J\x07\u202e[red]name[/red]" in text
    assert "\x1b[2J" not in text
