"""Files of a run directory beside its lines: its checkpoints, and the head of the newest."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

from adc_edge.storage.bundle import CLIENT
from adc_edge.storage.checkpoint import checkpoint_name, checkpoint_steps
from adc_edge.storage.run_dir import METRICS
from adc_edge.storage.run_settings import SETTINGS

_MOST_BYTES = 2**24  # of a checkpoint's head


class CheckpointHead(NamedTuple):
    """The step and the meta data of a checkpoint, read without its tensors."""

    step: int
    meta: dict[str, Any]


def is_run_directory(path: Path) -> bool:
    """Return whether a directory holds a run, be it a damaged one."""
    return not (path / CLIENT).exists() and ((path / SETTINGS).is_file() or (path / METRICS).is_file())


class CheckpointHeads:
    """The heads of a run's checkpoints, each of which is read once.

    Args:
        path: run directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: tuple[Path, int] | None = None  # file and time of the one that was read last
        self.damaged = False  # there are checkpoints, and none can be read

    def news(self) -> CheckpointHead | None:
        """Return the head of the newest checkpoint that can be read; None if it was returned before."""
        files = _checkpoint_files(self._path)
        for place in files:
            head = None if place == self._read else _read_head(place[0])
            if place == self._read or head is not None:
                self._read, self.damaged = place, False
                return head
        self.damaged = bool(files)
        return None


def _checkpoint_files(path: Path) -> list[tuple[Path, int]]:
    """Return the files of checkpoints with their times of writing in ns, the newest step first."""
    found = []
    for step in sorted(checkpoint_steps(path), reverse=True):
        file = path / checkpoint_name(step)
        with contextlib.suppress(OSError):  # gone by now
            found.append((file, file.stat().st_mtime_ns))
    return found


def _read_head(file: Path) -> CheckpointHead | None:
    """Return the head of a checkpoint; None if it is damaged, or gone by now."""
    try:
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            about = json.loads(stream.read(size))["__metadata__"] if size <= _MOST_BYTES else {}
        meta = json.loads(about["meta"])
        return CheckpointHead(int(about["step"]), meta) if isinstance(meta, dict) else None
    except (OSError, ValueError, KeyError, TypeError, struct.error, RecursionError):
        return None
