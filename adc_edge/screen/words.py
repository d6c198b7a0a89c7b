"""Figures in words for people: times, rates, and lists that fit a number of columns."""

from __future__ import annotations

_LIMITLESS_MBIT_S = 10_000  # above, as on loopback, the kernel's figure only means that the link is no limit


def roughly(seconds: float) -> str:
    """Return a time with two digits: ``85 ms``, ``1.3 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    units = (("ms", 1e-3, 0.9995), ("s", 1.0, 99.5), ("min", 60.0, 5970.0), ("h", 3600.0, 172800.0))
    unit, length = next(((unit, length) for unit, length, most in units if seconds < most), ("days", 86400.0))
    value = seconds / length
    return f"{value:.1f} {unit}" if value < 9.95 and unit != "ms" else f"{value:.0f} {unit}"


def rate_in_words(mbit_s: float | None, at_least: bool = False) -> str:
    """Return Mbit/s as text; ``at_least`` if the link may be faster."""
    if mbit_s is None:
        return "?"
    if mbit_s > _LIMITLESS_MBIT_S:
        return f"> {_LIMITLESS_MBIT_S}"
    return f"{'≥ ' if at_least else ''}{mbit_s:.1f}"


def fitted(parts: list[str], room: int | None, keep: int = 0) -> str:
    """Join ``parts``, without the last ones if they need more than ``room`` columns; the first ``keep`` stay."""
    shown = list(parts)
    while room is not None and len(shown) > keep and len("  ".join(shown)) > room:
        shown.pop()
    return "  ".join(shown)
