"""A running mean over about the last 20 values, as the screens of device and trainer show it."""

from __future__ import annotations

_KEEP = 0.95


def running_mean(old: float | None, new: float) -> float:
    """Return the mean with ``new`` taken in; ``old`` is None before the first value."""
    return new if old is None else _KEEP * old + (1 - _KEEP) * new
