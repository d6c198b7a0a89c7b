"""The time that a device waits for its trainer, as events of the run."""

from __future__ import annotations

import time
from collections.abc import Callable

from adc_edge.storage.events import Resumed, Waiting
from adc_edge.storage.run_dir import RunDir

_EVERY_S = 5.0  # most often that further tries are recorded


class TrainerWaits:
    """Records when the trainer does not answer: at once, at further tries, and when it is there again.

    Args:
        run_dir: takes the events.
        show: told True when the link is lost and False when the trainer is back.
    """

    def __init__(self, run_dir: RunDir, show: Callable[[bool], None] = lambda lost: None) -> None:
        self._run_dir, self._show = run_dir, show
        self._since: tuple[float, float] | None = None  # Unix and monotonic time; None: the trainer answers
        self._told = 0.0  # monotonic time of the last event

    def outage(self, lost: bool) -> None:
        """Note that the link is lost, or that the session goes on."""
        if lost:
            self._wait(0)
        else:
            self._end()
        self._show(lost)

    def tried(self, failed: int) -> None:
        """Note that so many tries to reach the trainer have failed; 0: it answers."""
        if failed:
            self._wait(failed)
        else:
            self._end()

    def _wait(self, tries: int) -> None:
        now = time.monotonic()
        if self._since is None:
            self._since = time.time(), now
        elif now - self._told < _EVERY_S:
            return
        self._told = now
        self._run_dir.event(Waiting(since=self._since[0], tries=tries))

    def _end(self) -> None:
        if self._since is None:
            return
        self._run_dir.event(Resumed(seconds=round(time.monotonic() - self._since[1], 3)))
        self._since = None
