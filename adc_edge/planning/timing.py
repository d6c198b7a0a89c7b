"""Medians of measured times, and lines through them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from adc_edge.planning.profile import Line

_K = TypeVar("_K", bound=Hashable)
_R = TypeVar("_R")


def timed(
    cases: Mapping[_K, Callable[[], object]], rounds: int, budget_s: float
) -> Generator[None, None, dict[_K, float]]:
    """Time each case, in rounds, and return the median seconds of each. Yields after each run.

    The first round warms up. It counts only if the budget allows no other one.

    Args:
        cases: the work by name.
        rounds: most rounds that count.
        budget_s: seconds after which no further round begins.
    """
    times: dict[_K, list[float]] = {name: [] for name in cases}
    begin = time.perf_counter()
    for turn in range(1 + rounds):
        if turn and time.perf_counter() - begin > budget_s:
            break
        for name, work in cases.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
            yield
    return {name: statistics.median(values[1:] or values) for name, values in times.items()}


def finished(work: Generator[None, None, _R]) -> _R:
    """Run a generator to its end, and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: _R = end.value
            return result


def fit(columns: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Return the coefficients >= 0 of ``columns`` that are nearest to ``seconds``, by relative error.

    Args:
        columns: one sequence for each coefficient, as long as ``seconds``.
        seconds: measured times, above 0.
    """
    targets = np.maximum(np.asarray(seconds, np.float64), 1e-9)
    table = np.asarray(columns, np.float64).T / targets[:, None]
    used = list(range(table.shape[1]))
    found = np.zeros(table.shape[1])
    while used:
        solution = np.linalg.lstsq(table[:, used], np.ones(len(targets)), rcond=None)[0]
        if solution.min() >= 0.0:
            found[used] = solution
            break
        used.pop(int(solution.argmin()))
    return [float(value) for value in found]


def line(points: Mapping[float, float]) -> Line:
    """Return the line through measured seconds by count; neither of its parts is negative."""
    if len(points) == 1:
        ((count, seconds),) = points.items()
        return Line(0.0, seconds / count)
    return Line(*fit([[1.0] * len(points), list(points)], list(points.values())))
