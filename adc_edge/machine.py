"""What the last bits of a run's numbers depend on: told for the record, and its threads limited."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import threadpoolctl

from adc_edge import __version__

_PACKAGES = ("torch", "onnxruntime", "numpy")
_VNNI = {"avx_vnni", "avx512_vnni"}


def describe_machine(**more: Any) -> dict[str, Any]:
    """Versions, processor and system, with ``more`` (threads, device, …); plain values for JSON."""
    return {
        "adc-edge": __version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        **{name: found for name in _PACKAGES if (found := _version(name))},
        **more,
    }


def limit_threads(threads: int) -> None:
    """Let NumPy's linear algebra, which finds principal components, have so many threads; 0: as many as it likes.

    Left alone it takes every core in every process.
    """
    if threads:
        threadpoolctl.threadpool_limits(threads, user_api="blas")


def int8_saturates() -> bool:
    """Return whether ONNX Runtime's fused 8-bit products saturate: x86 without VNNI adds two products in 16 bits."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_x86 and not _VNNI & set(_cpuinfo("flags").split())


def _processor() -> str:
    """The model as Linux tells it (x86: its name; ARM: none, so the architecture)."""
    return _cpuinfo("model name") or platform.machine()


def _cpuinfo(name: str) -> str:
    """Return the first value of this name in Linux's /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
