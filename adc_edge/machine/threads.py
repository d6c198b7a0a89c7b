"""The number of threads that each library has, decided in one place so that never more can run than there are cores.

In a process one thing computes at a time: the engine, then the shim, then the optimizer. So torch and ONNX Runtime each
have all cores. NumPy, which computes the codec, has one: its matrices are small, and a thread that waits for another
one on a busy core costs far more than the second thread gains. Images are decoded beside all that, at a lower priority.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from contextlib import suppress
from pathlib import Path

_YIELDING = 10  # a niceness: with it a thread has a tenth of a busy core
_CGROUP = Path("proc/self/cgroup")


def usable_cores(root: Path = Path("/")) -> int:
    """Return the cores that this process may use: those of its affinity, within the quota of its control group.

    Args:
        root: where /proc and /sys are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota(root))))


def divide_cores(threads: int) -> int:
    """Give NumPy's linear algebra one thread, and return the number for torch and ONNX Runtime.

    Args:
        threads: as the user has set it; 0: all usable cores.
    """
    limit_blas()
    return threads or usable_cores()


@functools.cache  # once, because the search for libraries takes a millisecond
def limit_blas() -> None:
    """Limit NumPy's linear algebra to one thread, in the whole process and for good.

    OpenBLAS has no limit for a part of a program, and after the main thread has set one, other threads cannot. With one
    thread a message's bytes do not depend on the number of cores.
    """
    import threadpoolctl  # `doctor` runs where it is missing

    for library in threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers:
        # torch has a BLAS of its own on ARM, for products that gain from every core.
        if not any(part.startswith("torch") for part in Path(library.filepath).parts):
            library.set_num_threads(1)


def give_way() -> None:
    """Lower the priority of the calling thread, where the system has priorities for threads."""
    with suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _YIELDING)


def _quota(root: Path) -> float:
    """The cores that the control groups of this process allow, its own and those above."""
    try:
        lines = (root / _CGROUP).read_text().splitlines()
    except OSError:
        return math.inf
    allowed = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        base = root / "sys/fs/cgroup" / ("" if not controllers else "cpu")
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = base / path.lstrip("/")
        for place in (group, *group.parents):
            allowed = min(allowed, _group_quota(place))
            if place == base:
                break
    return allowed


def _group_quota(group: Path) -> float:
    with suppress(OSError, ValueError):
        if (group / "cpu.max").is_file():  # version 2: "max 100000" or "150000 100000"
            quota, period = (group / "cpu.max").read_text().split()
        else:  # version 1, where -1 is no limit
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if quota != "max" and int(quota) > 0:
            return int(quota) / int(period)
    return math.inf
