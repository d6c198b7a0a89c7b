"""The progress of all runs, and the time left by what was computed so far."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_logger = logging.getLogger(__name__)

Report = Callable[[float, bool], None]
"""Takes the growth of the share of a run that is done, and whether it was computed now (or by an earlier command)."""
_FIRST_STEPS, _FIRST_S = 5, 3.0  # before a time left is told
_WIDE = 70  # columns for the bar and the time that has passed


def growths(report: Report) -> Callable[[float], None]:
    """Turn calls with the share of a run that is done into calls with its growth; the first one tells the start."""
    before: float | None = None

    def progress(share: float) -> None:
        nonlocal before
        share = min(share, 1.0)
        report(share - (before or 0.0), before is not None)
        before = share

    return progress


class Pace:
    """The time left: the time that the work so far took, for each share of it that remains.

    Args:
        total: all runs.
        clock: seconds of a clock that never goes back.
    """

    def __init__(self, total: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done, self.steps = total, 0.0, 0
        self._computed, self._clock, self._start = 0.0, clock, clock()

    def add(self, growth: float, computed: bool) -> None:
        """Count a step, or what an earlier command has done of a run."""
        if not self.steps and not computed:
            self._start = self._clock()  # the model of the first run is loaded
        self.done += growth
        if computed:
            self._computed += growth
            self.steps += 1

    def left_s(self) -> float | None:
        """Seconds left; None before the first steps."""
        passed = self._clock() - self._start
        if self.steps < _FIRST_STEPS or passed < _FIRST_S or self._computed <= 0:
            return None
        return passed * max(0.0, self.total - self.done) / self._computed


class StudyDisplay:
    """A bar with the time left on a terminal, and one log line with the time left after the first steps.

    Args:
        console: where it is shown.
        runs: number of runs.
    """

    def __init__(self, console: Console, runs: int) -> None:
        wide = console.width >= _WIDE
        self._progress = Progress(
            TextColumn("runs"),
            *([BarColumn()] if wide else []),
            TextColumn("{task.completed:.1f} of {task.total:.0f}"),
            *([TimeElapsedColumn()] if wide else []),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._pace, self._runs, self._told = Pace(float(runs)), runs, False
        self._task = self._progress.add_task("", total=float(runs), left="")

    def __enter__(self) -> StudyDisplay:
        """Start the bar."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the bar, and leave it on the screen."""
        self._progress.stop()

    def report(self, growth: float, computed: bool) -> None:
        """Count a step of any run."""
        self._pace.add(growth, computed)
        left = self._pace.left_s()
        if left is not None and not self._told:
            self._told = True
            noun = "run" if self._runs == 1 else "runs"
            _logger.info("about %s for %d %s, by the first %d steps", spelt(left), self._runs, noun, self._pace.steps)
        self._progress.update(
            self._task, completed=self._pace.done, left="" if left is None else f"about {spelt(left)} left"
        )

    def complete(self) -> None:
        """Show that all runs have ended, also those that failed."""
        self._progress.update(self._task, completed=float(self._runs), left="")


def spelt(seconds: float) -> str:
    """Return a time as a person says it: ``40 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
