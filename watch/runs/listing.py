"""The runs below a directory, and the values that a table shows of each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adc_edge.errors import SettingError
from adc_edge.watch.reading.directory import is_run_directory
from adc_edge.watch.reading.state import WatchedRun

_MOST_DIRECTORIES = 100_000
_SKIPPED = {"journal", "node_modules", "__pycache__"}


def run_rows(directory: Path, depth: int) -> list[dict[str, Any]]:
    """Return the values of each run in a directory and so many levels below it, in the order of their paths.

    One run at a time is in memory.

    Raises:
        SettingError: there is no such directory, or it cannot be read.
    """
    try:
        os.scandir(directory).close()
    except OSError as error:
        raise SettingError(
            f"{directory}: {error.strerror}", "a directory with runs in or below it", "check the path"
        ) from None
    return [row_values(WatchedRun(path).read_all(), directory) for path in sorted(_walk(directory, depth))]


def _walk(top: Path, depth: int) -> Iterator[Path]:
    """Yield directories of runs. Each directory is entered once, so that links in a circle end."""
    seen: set[tuple[int, int]] = set()
    waiting = [(top, depth)]
    while waiting and len(seen) < _MOST_DIRECTORIES:
        path, left = waiting.pop()
        try:
            about = path.stat()
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            if is_run_directory(path):
                yield path
                continue
            below = [Path(entry.path) for entry in os.scandir(path) if entry.is_dir()] if left else []
        except OSError:  # gone by now, or not for us
            continue
        waiting += [
            (child, left - 1) for child in below if not child.name.startswith(".") and child.name not in _SKIPPED
        ]


def row_values(run: WatchedRun, top: Path) -> dict[str, Any]:
    """Return what a table shows of a run, as plain values; None where it is not known."""
    own = next(iter(run.sessions.values()), None) if run.role == "device" else None
    try:
        name = str(run.path.relative_to(top))
    except ValueError:
        name = str(run.path)
    return {
        "run": run.name if name == "." else name,
        "side": run.role or None,
        "model": run.model or None,
        "split": run.split or None,
        "xi": own.xi if own else None,
        "precision": (own.precision or None) if own else None,
        "gradient_precision": (own.gradient_precision or None) if own else None,
        "sessions": len(run.sessions) if run.role == "trainer" else None,
        "steps": run.steps_done,
        "steps_planned": run.steps_planned or None,
        "accuracy": run.accuracy,
        "bytes_up": sum(run.totals.spent("up").values()),
        "bytes_down": sum(run.totals.spent("down").values()),
        "state": run.state,
        "last_time": run.clock.last_time or None,
        "version": run.version or None,
    }
