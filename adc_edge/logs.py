"""Where log messages go: rich lines on a terminal, plain lines with time and level elsewhere, JSON for machines.

Every module logs through ``logging.getLogger(__name__)``. A command calls ``configure``; as a library adc-edge adds no
handler.
"""

from __future__ import annotations

import io
import json
import logging
from datetime import datetime, timezone

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler

_PLAIN = "%(asctime)s %(levelname)-7s %(message)s"


class _JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII: time (UTC), level, logger, message."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        return json.dumps(line)


def configure(console: Console, verbosity: int = 0, as_json: bool = False) -> None:
    """Send the messages of adc-edge to ``console``.

    Args:
        console: the terminal or stream that the command prints on.
        verbosity: below 0 warnings and errors alone, 0 also what happens to a run, above 0 also details.
        as_json: JSON lines instead of text.
    """
    if isinstance(console.file, io.TextIOWrapper):
        console.file.reconfigure(errors="backslashreplace")  # characters that its encoding lacks raise no error
    logger = logging.getLogger("adc_edge")
    for old in logger.handlers[:]:
        logger.removeHandler(old)
    logger.addHandler(_handler(console, as_json))
    logger.setLevel(logging.WARNING if verbosity < 0 else logging.DEBUG if verbosity else logging.INFO)


def _handler(console: Console, as_json: bool) -> logging.Handler:
    if console.is_terminal and not as_json:
        return RichHandler(console=console, show_path=False, highlighter=NullHighlighter(), log_time_format="%H:%M:%S")
    handler = logging.StreamHandler(console.file)
    handler.setFormatter(_JsonFormatter() if as_json else logging.Formatter(_PLAIN, "%Y-%m-%d %H:%M:%S"))
    return handler
