"""Seconds since a run began, also of runs whose lines do not tell the time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adc_edge.watch.reading.values import number


class RunClock:
    """Time along a run.

    Args:
        guess: without times, add up the seconds of the steps. A trainer's do not tell how long it waited.
    """

    def __init__(self, guess: bool) -> None:
        self._guess = guess
        self.origin: float | None = None  # Unix time at which ``elapsed`` is 0
        self.elapsed: float | None = 0.0  # seconds; None: not known
        self.last_time = 0.0  # Unix time of the last line

    def pass_line(self, values: Mapping[str, Any], seconds: float) -> None:
        """Go on to a line, which took so many seconds."""
        time = number(values, "time")
        if time is not None:
            self.last_time = time
            if self.origin is None:
                self.origin = time - seconds - (self.elapsed or 0.0)
            self.elapsed = max(time - self.origin, self.elapsed or 0.0)
        else:
            self.elapsed = (self.elapsed or 0.0) + seconds if self._guess else None
