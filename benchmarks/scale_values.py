"""Measured seconds: played again, ranked, and added up by what they are spent for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

Parts = Mapping[str, float]  # seconds by what they are spent for


class Series:
    """Seconds as they were measured one after another, played from a random place on, again and again.

    The order is kept, because a machine's slow moments come together.
    """

    def __init__(self, values: Sequence[float], random: Random) -> None:
        self._values, self._next = list(values), random.randrange(len(values))

    def __call__(self) -> float:
        self._next = (self._next + 1) % len(self._values)
        return self._values[self._next]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def add(total: dict[str, float], parts: Parts) -> None:
    """Add seconds to a total."""
    for part, seconds in parts.items():
        total[part] = total.get(part, 0.0) + seconds
