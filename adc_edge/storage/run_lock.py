"""The lock of a run directory, as others see it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

LOCK = "lock"  # a file that a process has locked while it uses the directory


def is_held(path: Path) -> bool:
    """Return whether a process is at work in a run directory. The lock is neither made nor kept.

    The look itself is a shared lock, for a moment: others who look meanwhile do not take it for a process at work.
    """
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
