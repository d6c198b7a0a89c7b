"""The description of the machine that computes, for the record."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from adc_edge import __version__
from adc_edge.machine.processor import processor_name

_PACKAGES = ("torch", "onnxruntime", "numpy")


def describe_machine(**more: Any) -> dict[str, Any]:
    """Return versions, processor and system, with ``more`` (threads, device, …), as plain values for JSON.

    The last bits of a run's numbers depend on them.
    """
    return {
        "adc-edge": __version__,
        "python": platform.python_version(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        **{name: found for name in _PACKAGES if (found := installed_version(name))},
        **more,
    }


def installed_version(package: str) -> str | None:
    """Return the version of a distribution, or None if it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
