"""Where log messages go: rich lines on a terminal, plain lines with time and level elsewhere, JSON for machines.

On a terminal a long message goes on in further lines, broken between words. A message that begins with a label, such as
``data     digits``, goes on to the right of it. Every module logs through ``logging.getLogger(__name__)``. A command
calls ``configure``; as a library adc-edge adds no handler.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import textwrap
from datetime import datetime, timezone
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.text import Text

from adc_edge.terminal import LAYOUT, command_lines, escaped, prepare, silence, spell, take_any_text

_PLAIN = "%(asctime)s %(levelname)-7s %(message)s"
_COLUMNS_BEFORE = {"terminal": 18, "plain": 28}  # time and level
_LABEL = re.compile(r"[a-z0-9]+ {2,}")


class AnyConsole(Console):
    """A console for standard output in any encoding: texts are spelled in it before columns are measured.

    A reader that has gone is no error: a run goes on, and its files are written.
    """

    def __init__(self, **options: Any) -> None:
        prepare()
        super().__init__(**options)

    @property
    def options(self) -> ConsoleOptions:
        """The options of UTF-8: lines of tables are spelled like other characters, with the same widths."""
        options = super().options
        options.encoding = "utf-8"
        return options

    def render_str(self, text: str, **options: Any) -> Text:
        """Spell a text without its control characters, then render it."""
        return super().render_str(spell(escaped(text, LAYOUT), self.encoding), **options)

    def say(self, text: str) -> None:
        """Print a text as it is, without markup, and without line breaks of its own: commands, names of files."""
        self.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def say_wrapped(self, text: str, indent: int) -> None:
        """Print a text in lines that fit, broken between words; all but the first begin at column ``indent``."""
        self.say("\n".join(_filled(text, self.width, " " * indent)))

    def say_next(self, *commands: str) -> None:
        """Print the commands to type next, in lines that a shell takes as one where the terminal is narrow."""
        self.say("\nnext:")
        for command in commands:
            self.say_command(command)

    def say_command(self, command: str, begin: str = "  ") -> None:
        """Print a command behind ``begin``, on a terminal in as many lines as fit."""
        self.say("\n".join(command_lines(command, self.width if self.is_terminal else None, begin)))

    def on_broken_pipe(self) -> None:
        """Go on without output."""
        silence(self.file)


class _JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII: time (UTC), level, logger, message."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        return json.dumps(line)


class _PlainFormatter(logging.Formatter):
    """Lines of text, without control characters that a name or a peer's message brought along."""

    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record), LAYOUT)


class _TerminalHandler(RichHandler):
    """Breaks long messages between words, before rich breaks them anywhere. A terminal that has gone ends no run."""

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], OSError):
            silence(self.console.file)
        else:
            super().handleError(record)

    def render_message(self, record: logging.LogRecord, message: str) -> ConsoleRenderable:
        """Return the message in lines that fit beside time and level."""
        room = self.console.width - _COLUMNS_BEFORE["terminal"]
        return super().render_message(record, "\n".join(wrap_message(escaped(message, LAYOUT), room)))


class _StreamHandler(logging.StreamHandler[Any]):
    """Writes lines until the reader of the output has gone or its disk is full. The run goes on without them."""

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], OSError):
            silence(self.stream)
        else:
            super().handleError(record)


def wrap_message(message: str, room: int) -> list[str]:
    """Return ``message`` in lines of at most ``room`` columns, broken between words; a longer word stays whole."""
    label = _LABEL.match(message)
    longest = max(map(len, message.split()), default=0)
    indent = " " * (label.end() if label and label.end() + longest <= room else 0)
    return [part for line in message.splitlines() for part in _filled(line, room, indent)]


def _filled(text: str, room: int, indent: str) -> list[str]:
    return textwrap.wrap(text, room, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def plain_room(console: Console) -> int | None:
    """Return the columns that a plain message has beside time and level; None where there is no terminal to fill.

    The output of a command that is piped into another is often still read on the terminal.
    """
    if _logs_json():
        return None
    seen = "COLUMNS" in os.environ or any(map(os.isatty, range(3)))
    return console.width - _COLUMNS_BEFORE["plain"] if seen else None


def wants_lines() -> bool:
    """Return whether the log is of JSON lines, or of warnings and errors alone: then nothing else is shown."""
    logger = logging.getLogger("adc_edge")
    return _logs_json() or (bool(logger.handlers) and logger.getEffectiveLevel() > logging.INFO)


def _logs_json() -> bool:
    return any(isinstance(handler.formatter, _JsonFormatter) for handler in logging.getLogger("adc_edge").handlers)


def configure(console: Console, verbosity: int = 0, as_json: bool = False) -> None:
    """Send the messages of adc-edge to ``console``.

    Args:
        console: the terminal or stream that the command prints on.
        verbosity: below 0 warnings and errors alone, 0 also what happens to a run, above 0 also details.
        as_json: JSON lines instead of text.
    """
    take_any_text(console.file)
    logger = logging.getLogger("adc_edge")
    for old in logger.handlers[:]:
        logger.removeHandler(old)
    logger.addHandler(_handler(console, as_json))
    logger.setLevel(logging.WARNING if verbosity < 0 else logging.DEBUG if verbosity else logging.INFO)


def _handler(console: Console, as_json: bool) -> logging.Handler:
    if console.is_terminal and not as_json:
        return _TerminalHandler(
            console=console, show_path=False, highlighter=NullHighlighter(), log_time_format="%H:%M:%S"
        )
    handler = _StreamHandler(console.file)
    handler.setFormatter(_JsonFormatter() if as_json else _PlainFormatter(_PLAIN, "%Y-%m-%d %H:%M:%S"))
    return handler
