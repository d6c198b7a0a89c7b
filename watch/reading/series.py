"""A curve of bounded length: neighbours are merged once there are too many, and keep their mean and their range."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

from adc_edge.planning.bottleneck import PHASES

PHASE_NAMES = tuple(phase for phases in PHASES.values() for phase in phases)
LINK_RATES = ("up_mbit_s", "down_mbit_s")
PLACES = ("step", "elapsed", "bytes")  # what a curve can be drawn against
STEP_CURVES = (*PLACES, "loss", "accuracy", "seconds", *LINK_RATES, "rtt_ms", "xi", *PHASE_NAMES)
TEST_CURVES = (*PLACES, "accuracy", "loss")
CENTRAL_CURVES = (*TEST_CURVES, "images", "round")  # of a trainer's own test images
LIMIT = 2000  # points of a series


_Point = tuple[int, float, float, float]  # number of lines that know the quantity, their sum, the least, the largest
_NOTHING: _Point = (0, 0.0, math.inf, -math.inf)


class Series:
    """Quantities along a run, one point a line until there are more than ``limit`` of them.

    Args:
        names: names of the quantities.
        limit: points at most; then each two neighbours become one.
    """

    def __init__(self, names: Sequence[str], limit: int = LIMIT) -> None:
        self.names, self._limit = tuple(names), max(limit, 2)
        self._points: dict[str, list[_Point]] = {name: [] for name in names}
        self._stride, self._held = 1, 0  # lines of a point, and those that the last point has

    @property
    def stride(self) -> int:
        """The number of lines that one point has."""
        return self._stride

    def __len__(self) -> int:
        return len(self._points[self.names[0]])

    @property
    def merged(self) -> bool:
        """Whether a point stands for several lines."""
        return self._stride > 1

    def add(self, values: Mapping[str, float | None]) -> None:
        """Add a line; what it does not know is None or absent."""
        new = self._held in (0, self._stride)
        if new and len(self) == self._limit:
            self._merge_pairs()
            new = self._held == self._stride
        self._held = 1 if new else self._held + 1
        for name, points in self._points.items():
            value = values.get(name)
            if new:
                points.append(_NOTHING if value is None else (1, value, value, value))
            elif value is not None:
                points[-1] = _merged(points[-1], (1, value, value, value))

    def mean(self, name: str, start: int = 0) -> list[float | None]:
        """Return the mean of a quantity at each point from ``start`` on; None where nothing is known."""
        return [total / lines if lines else None for lines, total, _, _ in self._points[name][start:]]

    def low(self, name: str) -> list[float | None]:
        """Return the smallest value at each point."""
        return [low if lines else None for lines, _, low, _ in self._points[name]]

    def high(self, name: str) -> list[float | None]:
        """Return the largest value at each point."""
        return [high if lines else None for lines, _, _, high in self._points[name]]

    def last(self, name: str) -> float | None:
        """Return the mean at the last point that knows the quantity."""
        return next((total / lines for lines, total, _, _ in reversed(self._points[name]) if lines), None)

    def known(self, name: str) -> bool:
        """Return whether any point knows the quantity."""
        return any(point[0] for point in self._points[name])

    def thinned(self, limit: int) -> Series:
        """Return the same curves with at most ``limit`` points."""
        thin = Series(self.names, limit)
        size = -(-len(self) // thin._limit) or 1
        for name, points in self._points.items():
            thin._points[name] = [_joined(points[start : start + size]) for start in range(0, len(points), size)]
        thin._stride = thin._held = self._stride * size
        return thin

    def _merge_pairs(self) -> None:
        odd = len(self) % 2
        for name, points in self._points.items():
            self._points[name] = [_joined(points[start : start + 2]) for start in range(0, len(points), 2)]
        self._stride *= 2
        self._held += 0 if odd else self._stride // 2


def _merged(one: _Point, other: _Point) -> _Point:
    return one[0] + other[0], one[1] + other[1], min(one[2], other[2]), max(one[3], other[3])


def _joined(points: Sequence[_Point]) -> _Point:
    return functools.reduce(_merged, points)
