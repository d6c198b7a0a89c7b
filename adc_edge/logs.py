"""Where log messages go: rich lines on a terminal, plain lines with time and level elsewhere, JSON for machines.

Every module logs through ``logging.getLogger(__name__)``. A command calls ``configure``; as a library adc-edge adds no
handler.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.text import Text

from adc_edge.terminal import prepare, silence, spell, take_any_text

_PLAIN = "%(asctime)s %(levelname)-7s %(message)s"


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
        """Spell a text, then render it."""
        return super().render_str(spell(text, self.encoding), **options)

    def say(self, text: str) -> None:
        """Print a text as it is, without markup, and without line breaks of its own: commands, names of files."""
        self.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """Go on without output."""
        silence(self.file)


class _JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII: time (UTC), level, logger, message."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        return json.dumps(line)


class _StreamHandler(logging.StreamHandler[Any]):
    """Writes lines until the reader of the output has gone or its disk is full. The run goes on without them."""

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], OSError):
            silence(self.stream)
        else:
            super().handleError(record)


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
        return RichHandler(console=console, show_path=False, highlighter=NullHighlighter(), log_time_format="%H:%M:%S")
    handler = _StreamHandler(console.file)
    handler.setFormatter(_JsonFormatter() if as_json else logging.Formatter(_PLAIN, "%Y-%m-%d %H:%M:%S"))
    return handler
