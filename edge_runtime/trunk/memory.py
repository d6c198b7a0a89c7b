"""The behaviour of malloc for large tensors."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for its next step; False where malloc is not glibc's.

    By default glibc returns large tensors to the kernel, which then maps and clears every page again in each step.
    `benchmarks/shim.py` measures that cost, and the effect on peak memory. Call this before the first large allocation.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # as with musl
        return False
    trimmed = mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mapped = mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, 2**25)  # some versions take no more
    return bool(trimmed and mapped)
