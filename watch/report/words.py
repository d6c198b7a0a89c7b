"""Numbers in words for people: bytes, times, shares."""

from __future__ import annotations

from datetime import datetime, timezone

NOT_KNOWN = "not known"
_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def size_text(size: float) -> str:
    """Return a number of bytes with a unit."""
    for unit, value in _UNITS:
        if size >= value:
            return f"{size / value:.3g} {unit}" if size < 999.5 * value else f"{size / value:.0f} {unit}"
    return f"{size:.0f} B"


def time_text(seconds: float | None) -> str:
    """Return a time with a unit."""
    if seconds is None:
        return NOT_KNOWN
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def share_text(value: float | None, digits: int = 3) -> str:
    """Return a share in percent."""
    return NOT_KNOWN if value is None else f"{100 * value:.{digits}g} %"


def number_text(value: float | None) -> str:
    """Return a number with four digits."""
    return NOT_KNOWN if value is None else f"{value:.4g}"


def moment_text(time: float | None) -> str:
    """Return a Unix time in UTC."""
    if time is None:
        return NOT_KNOWN
    try:
        return datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):  # written by another program
        return NOT_KNOWN
