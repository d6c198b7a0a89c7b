"""A history of values in bounded memory, drawn as a curve of block characters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from adc_edge.screen.sheet import RowSheet

MOST_POINTS = 512
TALL = 34  # lines of a terminal from which on a curve has several rows
_BLOCKS = " ▁▂▃▄▅▆▇█"
_KEEP = 0.9  # of the running mean at each value: the noise of steps would hide the trend
_VALUE = 8  # columns of the last value before a curve
_LEVELS = len(_BLOCKS) - 1  # of a row


class Curve:
    """Running means of all values of a run so far, in at most 2 · MOST_POINTS points: neighbours are merged."""

    def __init__(self) -> None:
        self._mean: float | None = None
        self._points: list[float] = []
        self._each = 1  # values that a point stands for
        self._sum, self._count = 0.0, 0  # of the point under way

    def add(self, value: float) -> None:
        """Add the next value; one that is not finite is left out."""
        if not math.isfinite(value):
            return
        self._mean = value if self._mean is None else _KEEP * self._mean + (1 - _KEEP) * value
        self._sum, self._count = self._sum + self._mean, self._count + 1
        if self._count < self._each:
            return
        self._points.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self._points) == 2 * MOST_POINTS:
            self._points = means(self._points, MOST_POINTS)
            self._each *= 2

    def values(self) -> list[float]:
        """Return the points, oldest first."""
        return [*self._points, *([self._sum / self._count] if self._count else [])]


def means(values: Sequence[float], most: int) -> list[float]:
    """Return ``values``, or the means of ``most`` stretches of about equal length if there are more."""
    count = len(values)
    if count <= most:
        return list(values)
    bounds = [number * count // most for number in range(most + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(bounds)]


def draw_curve(values: Sequence[float], width: int, rows: int = 1) -> list[str]:
    """Return ``rows`` lines of at most ``width`` characters, upper one first, that span lowest to highest value."""
    shown = means(values, width)
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    steps = rows * _LEVELS - 1
    levels = [1 + round(steps * (value - low) / (high - low)) if high > low else 1 for value in shown]
    below = [_LEVELS * (rows - 1 - row) for row in range(rows)]
    return ["".join(_BLOCKS[min(max(level - under, 0), _LEVELS)] for level in levels) for under in below]


def add_curve(
    sheet: RowSheet,
    rank: int,
    label: str,
    value: str,
    values: Sequence[float],
    rows: int,
    form: str,
    ends: Sequence[str] = (),
) -> None:
    """Add a curve behind its last value; its range and ``ends`` stand to the right of it."""
    ends = [f"{min(values):{form}} to {max(values):{form}}", *ends] if values else []
    room = sheet.room(_VALUE + sum(len(end) + 2 for end in ends))
    first, *others = draw_curve(values, max(room, 8), rows)
    sheet.add(rank, label, f"{value:<{_VALUE}}", (first, "cyan"), *((f"  {end}", "dim") for end in ends), between="")
    for other in others:
        sheet.add(50, " ", " " * _VALUE, (other, "cyan"), between="")
