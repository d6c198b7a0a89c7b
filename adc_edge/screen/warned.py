"""The last warnings of a run, for its screen."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import NamedTuple

from adc_edge.screen.sheet import RowSheet

_KEPT = 5


class _Warned(NamedTuple):
    """A message of the log."""

    text: str
    error: bool
    at: str  # time of day


class LastWarnings(logging.Handler):
    """Keeps the last warnings and errors that adc-edge logs while it is entered."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._last: deque[_Warned] = deque(maxlen=_KEPT)

    def __enter__(self) -> LastWarnings:
        """Begin to listen."""
        logging.getLogger("adc_edge").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        logging.getLogger("adc_edge").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        self._last.append(_Warned(record.getMessage(), record.levelno >= logging.ERROR, at))

    def draw(self, sheet: RowSheet, newest_rank: int, older_rank: int) -> int:
        """Add a row for each, oldest first; return how many there are."""
        last = list(self._last)
        for number, warned in enumerate(last, 1):
            rank = newest_rank if number == len(last) else older_rank
            text = " ".join(warned.text.split())
            sheet.add(rank, "", (f"{warned.at} {text}", "red" if warned.error else "yellow"))
        return len(last)
