"""A thread that reads a run for its tracker, which may be slow, fail or hang."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from adc_edge.watch.reading.identity import run_identity
from adc_edge.watch.reading.state import Line, WatchedRun
from adc_edge.watch.trackers.hooks import TrackedRun
from adc_edge.watch.trackers.rows import RowMaker, TrackedRow

_RETRY_S = 30.0  # after a tracker could not begin
_SAY_EVERY_S = 60.0

logger = logging.getLogger(__name__)


class OpenTracker(Protocol):
    """A tracker's run that takes rows."""

    next_step: int  # rows of earlier steps are in it already

    def log(self, row: TrackedRow) -> None:
        """Take one row."""

    def finish(self) -> None:
        """Take nothing more."""


class TrackerWorker:
    """Hands the rows of a run to a tracker, in a thread of its own that reads the run's files at the tracker's pace.

    So a slow tracker lags and loses nothing, and nobody waits for it. A fault is logged as a warning, at most once a
    minute, and costs the row that met it.

    Args:
        name: what the tracker is called in warnings.
        path: the run's directory.
        begin: begins the tracker's run; called in the thread, again after 30 s if it raises. Another run that comes
            to lie in the directory is another run of the tracker.
    """

    def __init__(self, name: str, path: Path, begin: Callable[[TrackedRun], OpenTracker]) -> None:
        self._name, self._begin = name, begin
        self._run, self._identity, self._rows = WatchedRun(path), "", RowMaker()
        self._tracker: OpenTracker | None = None
        self._changed = threading.Condition()
        self._news = self._closing = False
        self._failed = 0
        self._said: dict[str, float] = {}
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Tell that there is something to read. Never waits."""
        with self._changed:
            self._news = True
            self._changed.notify()

    def end(self) -> None:
        """Let the thread end once it has logged what there is to read."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def join(self, deadline: float) -> None:
        """Wait for the thread's end until ``deadline`` (monotonic seconds), and say what was not logged."""
        self._thread.join(max(deadline - time.monotonic(), 0.0))
        if self._thread.is_alive():
            logger.warning("tracker %s: it did not end in time; the last steps were not logged", self._name)
        if self._failed:
            logger.warning("tracker %s: %d steps failed in all", self._name, self._failed)

    def _work(self) -> None:
        last = False
        while not last:
            with self._changed:
                self._changed.wait_for(lambda: self._news or self._closing)
                self._news, last = False, self._closing
            while (lines := self._run.refresh()) or self._run.behind:
                for line in lines:
                    if not self._take(line):
                        return
        self._finish()

    def _take(self, line: Line) -> bool:
        """Log the row that a line completes; False: the watching ended before the tracker could begin."""
        if (self._tracker is None or line.anew or line.kind == "started") and not self._follow():
            return False
        for row in self._rows.take(line):
            self._log(row)
        if line.kind == "ended":
            self._log_rest()
        return True

    def _follow(self) -> bool:
        """Begin a run of the tracker where another run lies in the directory; False: that never worked."""
        identity = run_identity(self._run.path)
        if self._tracker is not None and identity != self._identity:
            self._finish()
            self._rows = RowMaker()
        self._identity = identity
        if self._tracker is None:
            self._tracker = self._opened(_described_run(self._run, identity))
        return self._tracker is not None

    def _opened(self, run: TrackedRun) -> OpenTracker | None:
        """Begin the tracker's run; None if the watching ended before that worked."""
        while True:
            try:
                return self._begin(run)
            except (Exception, SystemExit) as error:
                self._say("begin", f"it cannot begin, the next try is in {_RETRY_S:g} s: {_described(error)}")
            with self._changed:
                if self._changed.wait_for(lambda: self._closing, _RETRY_S):
                    return None

    def _log(self, row: TrackedRow) -> None:
        if self._tracker is None or row.step < self._tracker.next_step:
            return
        try:
            self._tracker.log(row)
        except (Exception, SystemExit) as error:
            self._failed += 1
            self._say("log", f"log failed: {_described(error)}")

    def _log_rest(self) -> None:
        for row in self._rows.rest():
            self._log(row)

    def _finish(self) -> None:
        self._log_rest()
        if self._tracker is not None:
            try:
                self._tracker.finish()
            except (Exception, SystemExit) as error:
                self._say("finish", f"finish failed: {_described(error)}")
        self._tracker = None

    def _say(self, kind: str, text: str) -> None:
        now = time.monotonic()
        if now - self._said.get(kind, -_SAY_EVERY_S) >= _SAY_EVERY_S:
            self._said[kind] = now
            logger.warning("tracker %s: %s", self._name, text)


def _described_run(run: WatchedRun, identity: str) -> TrackedRun:
    """Return what trackers are told of a run. Its name suits as a file's name and as an id of wandb."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", run.path.resolve().name).strip("-.")[:50] or "run"
    about = {"role": run.role, "model": run.model, "split": run.split}
    return TrackedRun(f"{name}-{identity}", {**run.settings, **about})


def _described(error: BaseException) -> str:
    """Return an error in one line of at most 200 characters."""
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return "".join(c if c.isprintable() else "?" for c in words[:200])
