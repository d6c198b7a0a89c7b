"""A table in sections whose cells are text, and numbers as text: accuracies and shares in %, bytes in MB."""

from __future__ import annotations

import math
from typing import NamedTuple

NONE = "–"
CLAIM = "claim"


class Section(NamedTuple):
    """Rows under one title; every cell is text."""

    title: str
    rows: list[tuple[str, ...]]


class Sheet(NamedTuple):
    """A table in sections."""

    title: str
    kind: str  # of the sections' titles: group or budget
    columns: tuple[str, ...]
    words: int  # number of leading columns that hold text
    sections: list[Section]
    caption: str
    optional: tuple[str, ...] = ()  # columns that a narrow terminal does without, the first one first


def percent(share: float, digits: int = 1) -> str:
    """A share as percent."""
    return NONE if math.isnan(share) else f"{100 * share:.{digits}f}"


def share_text(share: float) -> str:
    """A share as percent with three significant digits."""
    return f"{100 * share:.3g}"


def megabytes(size: float) -> str:
    """Bytes as megabytes with three significant digits."""
    value = size / 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def with_spread(value: float, spread: float) -> str:
    """Return text as ``77.3 ± 0.4``, the spread only if it is known."""
    return percent(value) + ("" if math.isnan(spread) else f" ± {percent(spread)}")
