"""Messages of a run: plain lines with time and level, JSON for machines, rich lines on a terminal."""

from __future__ import annotations

import io
import json
import logging
import re
import shlex
import subprocess
from collections.abc import Iterator

import pytest
from rich.console import Console
from rich.table import Table

from adc_edge import logs
from adc_edge.terminal import command_lines

logger = logging.getLogger("adc_edge.test")


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Whatever a test configures is undone."""
    root = logging.getLogger("adc_edge")
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before


def said(*, verbosity: int = 0, as_json: bool = False, terminal: bool = False) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80)
    logs.configure(console, verbosity, as_json)
    logger.debug("a detail")
    logger.info("device %r is done [after 3 steps]", "orin")
    logger.warning("no checkpoint")
    return file.getvalue().splitlines()


def test_elsewhere_each_line_has_time_level_and_text() -> None:
    first, second = said()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO    device 'orin' is done \[after 3 steps\]", first)
    assert second.endswith("WARNING no checkpoint")


def test_json_lines_parse_and_say_the_same() -> None:
    first, second = map(json.loads, said(as_json=True))
    assert first["message"] == "device 'orin' is done [after 3 steps]"
    assert (first["level"], second["level"]) == ("info", "warning")
    assert first["logger"] == "adc_edge.test"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", first["time"])


def test_a_terminal_shows_the_text_as_it_is() -> None:
    assert any("device 'orin' is done [after 3 steps]" in line for line in said(terminal=True))


@pytest.mark.parametrize(("verbosity", "expected"), [(-1, 1), (0, 2), (1, 3)])
def test_verbosity_chooses_how_much_is_said(verbosity: int, expected: int) -> None:
    assert len(said(verbosity=verbosity)) == expected


def test_configuring_again_replaces_the_handler() -> None:
    said()
    said()
    assert len(logging.getLogger("adc_edge").handlers) == 1


@pytest.fixture
def not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep half characters out of pytest's own report, which it could not send to another process."""
    monkeypatch.setattr(logging.getLogger("adc_edge"), "propagate", False)


@pytest.mark.usefixtures("not_captured")
@pytest.mark.parametrize("terminal", [False, True])
def test_characters_outside_the_encoding_are_escaped(terminal: bool, capfd: pytest.CaptureFixture[str]) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    logs.configure(Console(file=file, force_terminal=terminal, width=80))
    logger.info("resuming %s", "runs/\xe9\udcff")
    file.flush()
    assert b"resuming runs/\\xe9\\xff" in raw.getvalue()
    assert "Logging error" not in capfd.readouterr().err


@pytest.mark.usefixtures("not_captured")
def test_json_lines_are_ascii_whatever_they_say() -> None:
    file = io.StringIO()
    logs.configure(Console(file=file), as_json=True)
    logger.info("resuming %s", "runs/\xe9\udcff")
    assert file.getvalue().isascii()
    assert json.loads(file.getvalue())["message"] == "resuming runs/\xe9\udcff"


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(
    "text",
    [
        "eval     every 100 steps, at the end: 1000 images, 43.0 MB up to tcp://cloud.example:5700",
        "the trainer came back at step 12; sending it the steps up to 14, which is more than eighty columns",
    ],
)
def test_a_long_message_breaks_between_words_and_goes_on_beside_its_label(text: str, width: int) -> None:
    file = io.StringIO()
    logs.configure(Console(file=file, force_terminal=True, width=width, color_system=None))
    logger.info(text)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    assert " ".join(line[18:] for line in lines).split() == text.split()
    assert all(line[18:].startswith(" " * 9) == text.startswith("eval ") for line in lines[1:])


@pytest.mark.parametrize("width", [60, 80, 120, None])
def test_a_command_to_type_next_can_be_pasted_as_it_stands(width: int | None) -> None:
    command = (
        "adc-edge merge --run-device '/data/my runs -3/device' --run-trainer RUN_OF_THE_TRAINER -o model.safetensors"
    )
    lines = command_lines(command, width)
    assert all(len(line) <= (width or 1000) for line in lines)
    assert len(lines) == (1 if width in (120, None) else 2 if width == 80 else 3)
    pasted = "\n".join(lines).replace("adc-edge", "printf '%s|'", 1)
    shown = subprocess.run(["bash", "-c", pasted], capture_output=True, text=True, check=True).stdout
    assert shown.split("|")[:-1] == shlex.split(command)[1:]


def test_a_word_that_fits_only_without_its_label_stays_whole() -> None:
    address = "tcp://trainer.company.example:5700"
    assert logs.wrap_message(f"trainer  {address}", 40) == ["trainer", address]


def test_control_characters_of_others_reach_no_terminal_by_a_text_or_a_table() -> None:
    file = io.StringIO()
    console = logs.AnyConsole(file=file, width=80)
    table = Table(title="link to \x1b[2J")
    table.add_row("a\x9bb", "two\nlines")
    console.say("resent \x1b]0;title\x07\tby\nit")
    console.print(table)
    assert "\x1b" not in file.getvalue()
    assert "\x9b" not in file.getvalue()
    assert "resent \\x1b]0;title\\x07" in file.getvalue()
