"""The watching process: reads what is new in the runs, and hands it to whatever shows it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from adc_edge.errors import SettingError
from adc_edge.storage.events import EVENTS_FILE
from adc_edge.storage.run_dir import METRICS
from adc_edge.storage.run_settings import SETTINGS
from adc_edge.watch.reading.state import Line, WatchedRun

logger = logging.getLogger(__name__)
REFRESH_S = 0.5
_MANY = 1000  # lines of one refresh
_LAST_REFRESHES = 10  # at the end, while there are new lines


class Sink(Protocol):
    """Something that shows the runs."""

    def take(self, lines: list[Line]) -> None:
        """Take the lines that are new, at every refresh; none if there are none."""

    def close(self) -> None:
        """Finish: no line will come."""


class Watcher:
    """Follows runs. One thread reads them and calls the sinks, so that the event loop is free to answer.

    Args:
        runs: the runs, which only that thread may use while ``follow`` runs.
    """

    def __init__(self, runs: Sequence[WatchedRun]) -> None:
        self._runs, self._sinks = list(runs), list[Sink]()
        self.thread = ThreadPoolExecutor(1, "watch")

    def add(self, *sinks: Sink) -> None:
        """Add sinks, before ``follow`` begins."""
        self._sinks += sinks

    async def follow(self, stop: asyncio.Event) -> None:
        """Refresh until ``stop`` is set, then until nothing is new."""
        loop = asyncio.get_running_loop()
        while not stop.is_set():
            many = await loop.run_in_executor(self.thread, self.refresh) > _MANY
            if many or any(run.behind for run in self._runs):
                continue  # there is a past to read
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), REFRESH_S)
        await loop.run_in_executor(self.thread, self._refresh_last)

    def refresh(self) -> int:
        """Read what is new, hand it on, and return the number of lines.

        A run that cannot be read, and a sink that fails, is left out from then on.
        """
        lines = [line for run in list(self._runs) for line in self._read(run)]
        for sink in list(self._sinks):
            try:
                sink.take(lines)
            except Exception:
                logger.exception("%s failed and is left out", type(sink).__name__)
                self._sinks.remove(sink)
        return len(lines)

    def _read(self, run: WatchedRun) -> list[Line]:
        try:
            return run.refresh()
        except Exception:
            logger.exception("%s cannot be read and is left out", run.path)
            self._runs.remove(run)
            return []

    def _refresh_last(self) -> None:
        for _ in range(_LAST_REFRESHES):
            if not self.refresh():
                break

    def close(self) -> None:
        """Close the sinks, in the watching thread; trackers may take seconds."""
        for sink in self._sinks:
            try:
                sink.close()
            except Exception:
                logger.exception("%s did not end well", type(sink).__name__)


def check_run(path: Path) -> Path:
    """Return the directory if it holds a run. Otherwise raise SettingError."""
    if not any((path / name).exists() for name in (SETTINGS, METRICS, EVENTS_FILE)):
        found = "a file" if path.is_file() else "no run" if path.is_dir() else "not there"
        raise SettingError(
            f"--run {path}: {found}",
            "a directory of `serve --run` or `trainer --run`",
            "check the path; a run that has no directory is watched by the options of its own command, such as --web",
        )
    return path


def stop_event(child: bool) -> asyncio.Event:
    """Return an event of the running loop that SIGTERM and Ctrl-C set, in a child its parent's end (`child.py`)."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGHUP,) if child else (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
