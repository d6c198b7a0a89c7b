"""A run as plain values for the charts of `charts.js`: thinned curves, and what happened at which place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adc_edge.watch.reading.series import LINK_RATES, PHASE_NAMES, PLACES, Series
from adc_edge.watch.reading.session import WatchedSession
from adc_edge.watch.reading.state import Mark, WatchedRun
from adc_edge.watch.reading.totals import SPENDINGS

POINTS, FEW_POINTS = 200, 100  # of a curve: in the charts of all runs, and in those of one run
_DRAWN_MARKS = 50  # of a run: the newest
_RANGED = ("loss", "accuracy")  # with the least and the largest value of what one point stands for
_LINK = (*LINK_RATES, "rtt_ms")
_DIGITS = {"step": 7, "elapsed": 6, "bytes": 6}

Column = list[float | None]


class MarkPlace(NamedTuple):
    """Where in a run something happened; None: not known."""

    step: float | None
    elapsed: float | None
    bytes: float | None


def run_values(run: WatchedRun, label: str, *, points: int = POINTS, few: int = FEW_POINTS) -> dict[str, Any]:
    """Return a run for `charts.js`: numbers, texts, lists and mappings of them.

    Args:
        run: the run.
        label: its name in the charts.
        points: points of a curve that all runs share a chart for.
        few: points of a curve that has a chart for each run.
    """
    totals = run.totals
    return {
        "label": label,
        "role": run.role,
        "state": run.state,
        "curves": _columns(run.series, (*PLACES, *_RANGED), points),
        "tests": _columns(run.central if len(run.central) else run.tests, (*PLACES, "accuracy", "loss"), points),
        "phases": _columns(run.series, ("step", *PHASE_NAMES), few) if run.role == "device" else {},
        "link": _link(run.series, few),
        "marks": [_mark_values(mark, place) for place, mark in placed_marks(run)[-_DRAWN_MARKS:]],
        "bytes": {kind: totals.spent("up")[kind] + totals.spent("down")[kind] for kind in SPENDINGS},
        "uncompressed": totals.uncompressed,
    }


def session_values(session: WatchedSession, label: str, *, points: int = POINTS) -> dict[str, Any]:
    """Return a trainer's session for `charts.js`, with the curves that a trainer knows of it."""
    curves = _columns(session.series, (*PLACES, *_RANGED), points)
    return {"label": label, "role": "session", "state": session.state, "curves": curves}


def placed_marks(run: WatchedRun) -> list[tuple[MarkPlace, Mark]]:
    """Return what happened in a run and where, in the order of time; what has none known comes last."""
    steps, times, spent = (run.series.mean(name) for name in PLACES)
    step_at, time_at, bytes_at = _Along(times, steps), _Along(steps, times), _Along(steps, spent)
    placed = []
    for mark in run.marks:
        step, elapsed = mark.step, None
        if mark.time is not None and run.clock.origin is not None:
            elapsed = max(mark.time - run.clock.origin, 0.0)
        found = step_at(elapsed) if step is None else step
        step = None if found is None else int(found)
        elapsed = time_at(step) if elapsed is None else elapsed
        placed.append((MarkPlace(step, elapsed, bytes_at(step)), mark))
    placed.sort(key=lambda pair: (pair[0].elapsed is None, pair[0].elapsed or 0.0, pair[0].step or 0.0))
    return placed


def _mark_values(mark: Mark, place: MarkPlace) -> dict[str, Any]:
    values = {name: _rounded(value, _DIGITS[name]) for name, value in place._asdict().items()}
    return {"kind": mark.kind, **values, "seconds": _rounded(mark.seconds, 4)}


class _Along:
    """A quantity of a run where another one, which never falls, has a value.

    Args:
        known: the other one at each point.
        wanted: the quantity at each point.
    """

    def __init__(self, known: Sequence[float | None], wanted: Sequence[float | None]) -> None:
        pairs = [(x, y) for x, y in zip(known, wanted, strict=True) if x is not None and y is not None]
        self._xs, self._ys = [x for x, _ in pairs], [y for _, y in pairs]

    def __call__(self, value: float | None) -> float | None:
        xs, ys = self._xs, self._ys
        if value is None or not xs:
            return None
        if value < xs[0] and xs[0] > 0:  # both begin at 0
            return float(ys[0] * value / xs[0])
        return float(np.interp(value, xs, ys))


def _link(series: Series, points: int) -> dict[str, Column]:
    if not any(series.known(name) for name in _LINK):
        return {}
    return _columns(series, ("step", "elapsed", *_LINK), points)


def _columns(series: Series, names: Iterable[str], points: int) -> dict[str, Column]:
    """Return the known ones of some columns; a ranged one has ``_low`` and ``_high`` beside it if lines were merged."""
    thin = series.thinned(points)
    found: dict[str, Column] = {}
    for name in names:
        if not thin.known(name):
            continue
        found[name] = _rounded_all(thin.mean(name), _DIGITS.get(name, 4))
        if name in _RANGED and thin.merged:
            found |= {f"{name}_low": _rounded_all(thin.low(name), 3), f"{name}_high": _rounded_all(thin.high(name), 3)}
    return {name: column for name, column in found.items() if name in PLACES or any(column)}


def _rounded_all(column: Column, digits: int) -> Column:
    return [_rounded(value, digits) for value in column]


def _rounded(value: float | None, digits: int) -> float | None:
    if value is None:
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() else short


def joined(runs: Mapping[str, WatchedRun]) -> list[tuple[str, str, str]]:
    """Return the sessions of trainers' runs: trainer's label, key, and label of the device's run; "" where none is."""
    devices = {run.session: label for label, run in runs.items() if run.role == "device" and run.session}
    trainers = [(label, run) for label, run in runs.items() if run.role == "trainer"]
    return [(label, key, devices.get(key, "")) for label, run in trainers for key in run.sessions]
