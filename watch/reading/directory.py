"""Files of a run directory beside its lines: the lock, and the head of the newest checkpoint."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

from adc_edge.storage.bundle import CLIENT
from adc_edge.storage.checkpoint import checkpoint_name, checkpoint_steps
from adc_edge.storage.run_dir import LOCK, METRICS
from adc_edge.storage.run_settings import SETTINGS

_MOST_BYTES = 2**24  # of a checkpoint's head


class CheckpointHead(NamedTuple):
    """The step and the meta data of a checkpoint, read without its tensors."""

    step: int
    meta: dict[str, Any]


def is_run_directory(path: Path) -> bool:
    """Return whether a directory holds a run, be it a damaged one."""
    return not (path / CLIENT).exists() and ((path / SETTINGS).is_file() or (path / METRICS).is_file())


def is_held(path: Path) -> bool:
    """Return whether a process is at work in a run directory. The lock is neither made nor kept."""
    try:
        handle = os.open(path / LOCK, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(handle)
    return False


def checkpoint_files(path: Path) -> list[tuple[Path, int]]:
    """Return the files of checkpoints with their times of writing in ns, the newest step first."""
    found = []
    for step in sorted(checkpoint_steps(path), reverse=True):
        file = path / checkpoint_name(step)
        with contextlib.suppress(OSError):  # gone by now
            found.append((file, file.stat().st_mtime_ns))
    return found


def read_head(file: Path) -> CheckpointHead | None:
    """Return the head of a checkpoint; None if it is damaged, or gone by now."""
    try:
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            about = json.loads(stream.read(size))["__metadata__"] if size <= _MOST_BYTES else {}
        meta = json.loads(about["meta"])
        return CheckpointHead(int(about["step"]), meta) if isinstance(meta, dict) else None
    except (OSError, ValueError, KeyError, TypeError, struct.error, RecursionError):
        return None
