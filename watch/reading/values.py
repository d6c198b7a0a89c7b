"""Values of a line or a file that another process wrote: nothing about their types is taken for granted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CENTRAL = "central"  # source of an evaluation on a trainer's own test images
_MOST = 2**62  # of whole numbers; a byte count is far below


def number(values: Mapping[str, Any], name: str) -> float | None:
    """Return a finite number; None if it is absent or something else."""
    value = values.get(name)
    if type(value) is int:  # no bool
        value = float(value) if abs(value) < _MOST else None
    return value if type(value) is float and math.isfinite(value) else None


def figure(values: Mapping[str, Any], name: str) -> float | None:
    """Return a number as it stands, NaN and infinities too; None if it is absent or something else."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def whole(values: Mapping[str, Any], name: str) -> int:
    """Return a whole number of at least 0; 0 if it is absent or something else."""
    return max(int(number(values, name) or 0), 0)


def point(
    values: Mapping[str, Any], names: Iterable[str], step: float | None, elapsed: float | None, spent: float
) -> dict[str, float | None]:
    """Return the point of a line in curves: its numbers ``names``, and its place, after ``spent`` bytes."""
    return {**{name: number(values, name) for name in names}, "step": step, "elapsed": elapsed, "bytes": spent}


def text(values: Mapping[str, Any], name: str, most: int = 500) -> str:
    """Return a text, cut at ``most`` characters; empty if it is absent or something else."""
    value = values.get(name)
    return value[:most] if isinstance(value, str) else ""


def branch(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a mapping within a mapping; empty if it is absent or something else."""
    value = values.get(name)
    return value if isinstance(value, dict) else {}


def flat(values: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with names such as ``optimizer.lr``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{within}{name}.")
        else:
            found[f"{within}{name}"] = value
    return found


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if there is no such file or it holds something else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
