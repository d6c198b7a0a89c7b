"""The number of threads that each library has, decided in one place so that never more can run than there are cores.

In a process one thing computes at a time: the engine, then the shim, then the optimizer. So torch and ONNX Runtime each
have all cores. NumPy, which computes the codec, has one: its matrices are small, and a thread that waits for another
one on a busy core costs far more than the second thread gains. Images are decoded beside all that, at a lower priority.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

_YIELDING = 10  # a step of niceness, after which a thread has a tenth of a busy core
_LOWEST = 19  # priority: the largest niceness
_NUMPYS = ("numpy.libs", ".dylibs")  # folders of the libraries that come with its wheels
_CGROUP = Path("proc/self/cgroup")


def usable_cores(root: Path = Path("/")) -> int:
    """Return the cores that this process may use.

    They are the physical ones of its affinity, within the quota of its control group and OMP_NUM_THREADS.

    Args:
        root: where /proc and /sys are.
    """
    told = os.environ.get("OMP_NUM_THREADS", "")
    most = int(told) if told.isdecimal() and int(told) else math.inf
    return max(1, math.ceil(min(_physical_cores(root), _quota(root), most)))


def divide_cores(threads: int) -> int:
    """Give NumPy's linear algebra one thread, and return the number for torch and ONNX Runtime.

    Args:
        threads: as the user has set it; 0: all usable cores.
    """
    limit_blas()
    return thread_count(threads)


def thread_count(threads: int) -> int:
    """Return the number of threads that the user has set, or that of the usable cores if it is 0."""
    return threads or usable_cores()


@functools.cache  # once, because the search for libraries takes a millisecond
def limit_blas() -> None:
    """Limit NumPy's linear algebra to one thread, in the whole process and for good.

    OpenBLAS has no limit for a part of a program, and after the main thread has set one, other threads cannot. With one
    thread a message's bytes do not depend on the number of cores.
    """
    import threadpoolctl  # `doctor` runs where it is missing

    torch_is_here = importlib.util.find_spec("torch") is not None
    for library in threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers:
        # Another library than that of NumPy's wheel may be torch's too, whose products gain from every core.
        if Path(library.filepath).parent.name in _NUMPYS or not torch_is_here:
            library.set_num_threads(1)


def give_way() -> None:
    """Lower the priority of the calling thread below its process on Linux; elsewhere all threads have one."""
    if sys.platform == "linux":
        with suppress(OSError):
            thread = threading.get_native_id()
            niceness = os.getpriority(os.PRIO_PROCESS, thread) + _YIELDING
            os.setpriority(os.PRIO_PROCESS, thread, min(niceness, _LOWEST))


def _physical_cores(root: Path) -> int:
    """The cores of this process's affinity; two hardware threads of a core are one."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        try:
            cores.add(siblings.read_text(errors="replace").strip())
        except OSError:
            cores.add(f"cpu {cpu}")
    return len(cores)


def _quota(root: Path) -> float:
    """The cores that the control groups of this process allow, its own and those above."""
    try:
        lines = (root / _CGROUP).read_text(errors="replace").splitlines()
    except OSError:
        return math.inf
    allowed = math.inf
    for line in (line for line in lines if line.count(":") > 1):
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
