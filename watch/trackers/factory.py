"""Trackers by name, each one a sink of a run's lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adc_edge.errors import SettingError
from adc_edge.watch.trackers.hooks import TrackedRun, find_tracker
from adc_edge.watch.trackers.tensorboard import TensorBoardTracker
from adc_edge.watch.trackers.worker import OpenTracker, TrackerWorker

if TYPE_CHECKING:
    from adc_edge.watch.reading.state import Line

CLOSE_S = 6.0  # for all trackers together; the watching process ends after 8 s whatever they do


class _Closing:
    """The end of several trackers, which begins for all of them when the first one is closed."""

    def __init__(self) -> None:
        self.sinks: list[TrackerSink] = []
        self._deadline: float | None = None

    def deadline(self) -> float:
        """Let every tracker finish, and return until when to wait, in monotonic seconds."""
        if self._deadline is None:
            for sink in self.sinks:
                sink.end()
            self._deadline = time.monotonic() + CLOSE_S
        return self._deadline


class TrackerSink:
    """Lets one tracker follow runs, each in a thread that reads the run for itself.

    Args:
        name: what it is called in warnings.
        begin: begins a tracker's run.
        closing: shared by the sinks that end together.
    """

    def __init__(self, name: str, begin: Callable[[TrackedRun], OpenTracker], closing: _Closing) -> None:
        self._name, self._begin, self._closing = name, begin, closing
        closing.sinks.append(self)
        self._workers: dict[Path, TrackerWorker] = {}

    def take(self, lines: Sequence[Line]) -> None:
        """Tell which runs have new lines; never waits."""
        for path in {line.run.path for line in lines}:
            if path not in self._workers:
                self._workers[path] = TrackerWorker(self._name, path, self._begin)
            self._workers[path].wake()

    def end(self) -> None:
        """Let the tracker finish, without waiting for it."""
        for worker in self._workers.values():
            worker.end()

    def close(self) -> None:
        """Let the trackers finish, and wait for all of them together at most 6 s."""
        deadline = self._closing.deadline()
        for worker in self._workers.values():
            worker.join(deadline)


def make_trackers(names: Sequence[str], tensorboard: Path | None) -> list[TrackerSink]:
    """Return a sink for each tracker; nothing is imported that was not asked for.

    Args:
        names: ``wandb``, ``trackio`` or ``module:factory``; a name that comes twice counts once.
        tensorboard: directory for TensorBoard's files; a folder for each run is made in it.

    Raises:
        SettingError: a tracker cannot be imported, or the directory cannot be written to.
    """
    begins: dict[str, Callable[[TrackedRun], OpenTracker]] = {name: find_tracker(name) for name in names}
    if tensorboard is not None:
        begins["tensorboard"] = _tensorboard(tensorboard)
    closing = _Closing()
    return [TrackerSink(name, begin, closing) for name, begin in begins.items()]


def _tensorboard(directory: Path) -> Callable[[TrackedRun], OpenTracker]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".adc-edge"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SettingError(
            f"--tensorboard {directory}: {error.strerror}", "a directory to write to", "choose another"
        ) from None
    return lambda run: TensorBoardTracker(directory / run.name)
