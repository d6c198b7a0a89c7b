"""The story of a run as events.jsonl tells it: starts and ends, outages, warnings, refusals."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from adc_edge.watch.reading.values import number, text, whole

_MOST_MARKS, _MOST_WARNINGS, _MOST_CODES = 200, 20, 100


class Mark(NamedTuple):
    """An outage, a change of settings or a resume; a place that is not known is None."""

    kind: Literal["outage", "plan", "resume"]
    step: int | None
    time: float | None  # Unix time
    seconds: float | None = None  # of an outage; None: it goes on
    text: str = ""
    session: str = ""


def plan_mark(values: Mapping[str, Any], xi: float | None) -> Mark:
    """Return the mark of a change of settings, which has led to ``xi``."""
    up, down = text(values, "precision", 20), text(values, "gradient_precision", 20)
    what = f"ξ {xi or 0:.3g}, {up}:{down}, M {whole(values, 'micro_batches')}"
    why = text(values, "why")
    return Mark("plan", whole(values, "step"), number(values, "time"), None, f"{what}; {why}" if why else what)


class LoggedWarning(NamedTuple):
    """A warning or an error of the log."""

    time: float
    level: str
    text: str


class Happened:
    """The events of a run; those about sessions change nothing here but outages and refusals."""

    def __init__(self) -> None:
        self.warnings: deque[LoggedWarning] = deque(maxlen=_MOST_WARNINGS)
        self.refusals: Counter[str] = Counter()  # by code
        self.waiting: dict[str, Any] = {}  # the last Waiting event while a device waits
        self.use: dict[str, Any] = {}  # a trainer's last Use event
        self._closed: deque[Mark] = deque(maxlen=_MOST_MARKS)
        self._open: dict[str, Mark] = {}  # outages that go on, by session; a device has none
        self._lasted = 0  # outages that are over, also those of which no mark is left
        self.version, self.starts, self.steps_planned = "", 0, 0
        self.complete = False

    @property
    def outages(self) -> int:
        """Outages that are over or go on."""
        return self._lasted + len(self._open)

    @property
    def marks(self) -> list[Mark]:
        """Outages and resumes in the order of their beginning."""
        return sorted([*self._closed, *self._open.values()], key=lambda mark: mark.time or 0.0)

    def take(self, kind: str, values: Mapping[str, Any]) -> None:
        """Take one event; an unknown one, as of a newer version, is passed over."""
        time = number(values, "time") or 0.0
        take = getattr(self, f"_{kind}", None) if kind in _KINDS else None
        if take is not None:
            take(time, values)

    def lose(self, session: str, time: float) -> None:
        """Open an outage of a session of a trainer, unless it goes on already."""
        self._open.setdefault(session, Mark("outage", None, time, None, "", session))
        if len(self._open) > _MOST_MARKS:
            del self._open[next(iter(self._open))]
            self._lasted += 1

    def _started(self, time: float, values: Mapping[str, Any]) -> None:
        self._close("", time)  # a device's; those of a trainer's sessions last until they join again
        if self.starts or whole(values, "step"):
            self._closed.append(Mark("resume", whole(values, "step"), time, None, _version_of(values)))
        self.starts += 1
        self.complete, self.waiting = False, {}
        self.version, self.steps_planned = text(values, "version", 40), whole(values, "steps")

    def _ended(self, time: float, values: Mapping[str, Any]) -> None:
        self.complete, self.waiting = values.get("complete") is True, {}

    def _warned(self, time: float, values: Mapping[str, Any]) -> None:
        self.warnings.append(LoggedWarning(time, text(values, "level", 20), text(values, "text")))

    def _waiting(self, time: float, values: Mapping[str, Any]) -> None:
        self.waiting = dict(values)
        self._open.setdefault("", Mark("outage", None, number(values, "since") or time))

    def _resumed(self, time: float, values: Mapping[str, Any]) -> None:
        self.waiting = {}
        seconds = number(values, "seconds") or 0.0
        self._open.setdefault("", Mark("outage", None, time - seconds))
        self._close("", time)

    def _joined(self, time: float, values: Mapping[str, Any]) -> None:
        self._close(text(values, "session", 64), time)

    def _away(self, time: float, values: Mapping[str, Any]) -> None:
        self.lose(text(values, "session", 64), time)

    def _done(self, time: float, values: Mapping[str, Any]) -> None:
        self._open.pop(text(values, "session", 64), None)

    def _rejected(self, time: float, values: Mapping[str, Any]) -> None:
        code = text(values, "code", 40)
        if code in self.refusals or len(self.refusals) < _MOST_CODES:
            self.refusals[code] += 1

    def _use(self, time: float, values: Mapping[str, Any]) -> None:
        self.use = dict(values)

    def _close(self, session: str, time: float) -> None:
        mark = self._open.pop(session, None)
        if mark is not None:
            self._lasted += 1
            self._closed.append(mark._replace(seconds=max(time - (mark.time or time), 0.0)))


_KINDS = set("started ended warned waiting resumed joined away done rejected use".split())


def _version_of(values: Mapping[str, Any]) -> str:
    version = text(values, "version", 40)
    return f"adc-edge {version}" if version else ""
