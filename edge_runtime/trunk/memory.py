"""What malloc does with large tensors."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for its next step; False where malloc is not glibc's.

    By itself glibc gives large tensors back to the kernel, which then maps and clears every page anew in each step:
    `benchmarks/shim.py` measures what that costs, and what keeping them does to peak memory. To be called before the
    first large allocation.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl's, say
        return False
    trimmed = mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mapped = mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, 2**25)  # some take no more
    return bool(trimmed and mapped)
