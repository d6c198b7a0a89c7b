"""A run as plain values for the page. Texts from outside are cut, and their control characters are spelled."""

from __future__ import annotations

from typing import Any

from adc_edge.terminal import escaped, readable
from adc_edge.watch.reading.state import Series, WatchedRun, WatchedSession
from adc_edge.watch.reading.values import number

_LARGE = 1e6
_MOST_MARKS = 50
_LONGEST = 500  # characters of a text
_SESSION_VALUES = (
    *("step", "steps", "state", "loss", "accuracy", "test_accuracy", "xi", "up_mbit_s", "down_mbit_s", "rtt_ms"),
    *("micro_batches", "last_time", "steps_per_s"),
)
_SESSION_TEXTS = ("device", "key", "precision", "gradient_precision", "last_error")
_RUN_VALUES = ("role", "split", "state", "steps_done", "steps_planned", "accuracy", "torn")
_CENTRAL = ("accuracy", "loss", "images", "round", "step")
_MOST_TOLD, _LISTED = 50, 10  # devices, and classes of each, whose images are shown
_USE = (
    *("seconds", "seconds_head", "seconds_codec", "seconds_update"),
    *("memory_mb", "held_bytes", "connections", "time"),
)


def shown(text: object, most: int = _LONGEST) -> str:
    """Return a text of one line at most ``most`` characters long; what cannot be printed is spelled as \\xNN."""
    return escaped(readable(str(text)[:most]))


def rounded(value: Any) -> Any:
    """Return a number with 6 significant digits, or whole where it has more; anything else as it is."""
    if not isinstance(value, float):
        return value
    return round(value) if abs(value) >= _LARGE else float(f"{value:.6g}")


def picture_of_session(session: WatchedSession) -> dict[str, Any]:
    """Return a session's values by name."""
    numbers = {name: getattr(session, name) for name in _SESSION_VALUES}
    times = {"last_time": session.last_time}  # Unix seconds have more digits
    return (
        {name: rounded(value) for name, value in numbers.items()}
        | times
        | {name: shown(getattr(session, name)) for name in _SESSION_TEXTS}
    )


def picture_of_run(run: WatchedRun) -> dict[str, Any]:
    """Return a run's values by name, without sessions and curves."""
    totals, happened = run.totals, run.happened
    newest = sorted(run.marks, key=lambda mark: mark.time or 0.0)[-_MOST_MARKS:]
    times = [run.clock.last_time, *(session.last_time for session in run.sessions.values())]
    return {
        **{name: rounded(getattr(run, name)) for name in _RUN_VALUES},
        "name": shown(run.name),
        "model": shown(run.model),
        "elapsed": rounded(run.clock.elapsed),
        "origin": run.clock.origin,
        "last_time": max(times),
        "use": {name: value for name in _USE if (value := number(run.use, name)) is not None},
        "waiting": {name: number(happened.waiting, name) for name in ("since", "tries")} if happened.waiting else {},
        "warnings": [[time, shown(level, 20), shown(text)] for time, level, text in happened.warnings],
        "refusals": {shown(code, 40): count for code, count in happened.refusals.items()},
        "bytes": {way: totals.spent(way) for way in ("up", "down")},
        "seconds": {shown(phase, 40): rounded(seconds) for phase, seconds in totals.seconds.items()},
        "central": {name: value for name in _CENTRAL if (value := rounded(run.central.last(name))) is not None},
        "classes": _classes(run),
        "outages": run.outages,
        "repeated": totals.steps_repeated,
        "uncompressed": totals.uncompressed,
        "marks": [mark._asdict() | {"text": shown(mark.text, 200)} for mark in newest],
    }


def _classes(run: WatchedRun) -> list[dict[str, Any]]:
    """Return what the devices have told about their images of each class."""
    told = [(session, session.told) for session in run.sessions.values() if session.told is not None]
    return [
        {
            "device": shown(session.device or session.key, 64),
            "classes": found.classes,
            "of": found.of,
            "ratio": rounded(found.ratio),
            "images": [[shown(name, 64), count] for name, count in list(found.images.items())[:_LISTED]],
            "others": max(found.classes - _LISTED, 0),
        }
        for session, found in told[-_MOST_TOLD:]
    ]


class SentCurves:
    """Tells what of a series a page does not have yet."""

    def __init__(self) -> None:
        self._series: Series | None = None
        self._points = self._stride = 0
        self._names: set[str] = set()  # of the quantities that a page has
        self._last: dict[str, list[Any]] = {}  # the last point

    def news(self, series: Series) -> dict[str, Any] | None:
        """Return the points from index ``start`` on, which replace what a page has from there on; None: no news."""
        same = series is self._series and series.stride == self._stride and len(series) >= self._points
        if not same:
            self._names, self._last, self._points = set(), {}, 0
        start = max(self._points - 1, 0)  # the last point may have taken more lines
        columns = _columns(series, start, self._names)
        unchanged = same and len(series) == self._points and columns == self._last
        self._series, self._points, self._stride = series, len(series), series.stride
        self._names |= columns.keys()
        self._last = {name: values[-1:] for name, values in columns.items()}
        return None if unchanged else {"start": start, "columns": columns}


def columns_from(series: Series) -> dict[str, Any]:
    """Return the means of a whole series, as ``SentCurves.news`` does."""
    return {"start": 0, "columns": _columns(series, 0, set())}


def _columns(series: Series, start: int, names: set[str]) -> dict[str, list[Any]]:
    """Return the means from a point on, of the quantities ``names`` and of those that a point knows."""
    found = {name: [rounded(value) for value in series.mean(name, start)] for name in series.names}
    return {name: v for name, v in found.items() if name in names or any(value is not None for value in v)}
