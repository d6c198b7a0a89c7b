"""Count a run's new lines under bounded labels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_args

from prometheus_client import Counter

from adc_edge.defaults import COMMON_MODES
from adc_edge.planning.bottleneck import PHASES
from adc_edge.watch.metrics.instruments import Instruments
from adc_edge.watch.metrics.labels import MOST_DEVICES, OTHER, BoundedNames, label_text
from adc_edge.watch.reading.lines import WAYS, spent_bytes
from adc_edge.watch.reading.values import number, text, whole
from adc_edge.wire.messages import RefusalCode

if TYPE_CHECKING:
    from adc_edge.watch.reading.state import WatchedRun

_DEVICE_PHASES = ("wait", *(phase for phases in PHASES.values() for phase in phases))
_TRAINER_PHASES = ("head", "codec", "update")
_LEVELS = ("warning", "error", "critical")
_MOST_SESSIONS = 4096  # whose last step's time is remembered


class LineCounter:
    """The counters of one run.

    Args:
        run: tells role and devices.
        name: label of the run.
        instruments: hold the counters.
    """

    def __init__(self, run: WatchedRun, name: str, instruments: Instruments) -> None:
        self._run, self._name, self._count = run, label_text(name), instruments
        self._devices = BoundedNames(MOST_DEVICES)
        self._codes, self._levels = BoundedNames(len(get_args(RefusalCode)) + 8), BoundedNames(8)
        self._moments: OrderedDict[str, float] = OrderedDict()  # Unix time of each session's last step
        self._begun: set[tuple[str, ...]] = set()
        self._kinds: dict[str, Callable[[Mapping[str, Any]], None]] = {
            "evaluation": self._evaluation,
            "average": self._average,
            "trunk": self._add_bytes,
            "started": lambda values: self._count.starts.labels(*self.labels).inc(),
            "warned": lambda values: self._one(self._count.warnings, self._levels, text(values, "level").lower()),
            "rejected": lambda values: self._one(self._count.refusals, self._codes, text(values, "code")),
            "resumed": self._resumed,
            "away": lambda values: self._count.outages.labels(*self.labels, self.device_of(values)).inc(),
            "use": self._use,
        }

    @property
    def labels(self) -> tuple[str, str]:
        """The values of ``role`` and ``run``."""
        return self._run.role or "unknown", self._name

    def admit(self, values: Mapping[str, Any]) -> str:
        """Return the label of a line's device, as ``device_of`` does; a new device takes one of its own."""
        name = self._name_of(values)
        return self._devices.label(name) if name else ""

    def device_of(self, values: Mapping[str, Any]) -> str:
        """Return the label of a line's device; empty for a device's own run that was given no name."""
        name = self._name_of(values)
        return self._devices.known(name) if name else ""

    def _name_of(self, values: Mapping[str, Any]) -> str:
        session = self._run.sessions.get(text(values, "session") or self._run.session)
        return text(values, "device") or (session.device if session else "")

    def begin(self, device: str | None = None) -> None:
        """Let the counters of a run, or of one of its devices, start at 0: a rate cannot see the first sample."""
        key = self.labels if device is None else (*self.labels, device)
        if key not in self._begun:
            self._begun.add(key)
            if device is None:
                self._begin_run()
            else:
                self._begin_device(key)

    def _begin_run(self) -> None:
        role, count = self.labels[0], self._count
        phases = {"device": (*_DEVICE_PHASES, "trunk"), "trainer": (*_TRAINER_PHASES, OTHER)}.get(role, ())
        for phase in phases:
            count.phase.labels(*self.labels, phase)
        for level in _LEVELS:
            count.warnings.labels(*self.labels, self._levels.label(level))
        count.starts.labels(*self.labels)
        if role == "device":
            count.waited.labels(*self.labels)
        for code in get_args(RefusalCode) if role == "trainer" else ():
            count.refusals.labels(*self.labels, self._codes.label(code))

    def _begin_device(self, labels: tuple[str, ...]) -> None:
        count = self._count
        for counter in (count.steps, count.repeated, count.images, count.outages, count.evaluations):
            counter.labels(*labels)
        for kind in self._spendings():
            for way in WAYS:
                count.bytes.labels(*labels, way, kind)

    def _spendings(self) -> tuple[str, ...]:
        """The kinds of bytes that this run can tell of."""
        if self._run.role == "device":
            return "training", "evaluation", "trunk", "repeated"
        mode = str(self._run.settings.get("mode", ""))
        return "training", *(("trunk",) if mode.startswith(COMMON_MODES) else ()), "repeated"

    def add(self, kind: str, values: Mapping[str, Any]) -> None:
        """Count a new line of another kind than a step."""
        if kind in self._kinds:
            self._kinds[kind](values)

    def add_step(self, values: Mapping[str, Any], repeated: bool) -> None:
        """Count a step; a ``repeated`` one by its bytes and seconds alone."""
        labels = (*self.labels, self.device_of(values))
        self._add_bytes(values, repeated)
        for phase in _DEVICE_PHASES:
            self._add_seconds(phase, number(values, f"seconds_{phase}") if "seconds" in values else None)
        if repeated:
            self._count.repeated.labels(*labels).inc()
            return
        self._count.steps.labels(*labels).inc()
        self._count.images.labels(*labels).inc(whole(values, "images"))
        seconds = number(values, "seconds") if "seconds" in values else self._since_last(values)
        if seconds is not None:
            self._count.step_seconds.labels(*labels).observe(seconds)
        head = number(values, "seconds_cloud")
        if head is not None:
            self._count.head_seconds.labels(*labels).observe(head)

    def _since_last(self, values: Mapping[str, Any]) -> float | None:
        """Return the seconds since the step before of this session, None for the first one."""
        session, now = text(values, "session") or text(values, "device"), number(values, "time")
        if now is None:
            return None
        before = self._moments.pop(session, None)
        self._moments[session] = now
        if len(self._moments) > _MOST_SESSIONS:
            self._moments.popitem(last=False)
        return None if before is None else max(now - before, 0.0)

    def _evaluation(self, values: Mapping[str, Any]) -> None:
        self._count.evaluations.labels(*self.labels, self.device_of(values)).inc()
        self._add_bytes(values)

    def _average(self, values: Mapping[str, Any]) -> None:
        if self._run.role == "device":  # a trainer tells each device's exchange in a line of its own
            self._add_bytes(values)
            self._add_seconds("trunk", number(values, "seconds"))

    def _resumed(self, values: Mapping[str, Any]) -> None:
        self._count.outages.labels(*self.labels, self.device_of(values)).inc()
        self._count.waited.labels(*self.labels).inc(max(number(values, "seconds") or 0, 0))

    def _use(self, values: Mapping[str, Any]) -> None:
        rest = number(values, "seconds") or 0.0
        for phase in _TRAINER_PHASES:
            seconds = number(values, f"seconds_{phase}") or 0.0
            self._add_seconds(phase, seconds)
            rest -= seconds
        self._add_seconds(OTHER, rest)

    def _add_bytes(self, values: Mapping[str, Any], repeated: bool = False) -> None:
        spent = spent_bytes(values, self._run.role == "trainer")
        if spent is None:
            return
        labels = (*self.labels, self.device_of(values))
        for way, size in zip(WAYS, (spent.up, spent.down), strict=True):
            if size:
                self._count.bytes.labels(*labels, way, "repeated" if repeated else spent.spending).inc(size)

    def _add_seconds(self, phase: str, seconds: float | None) -> None:
        if seconds is not None and seconds > 0:
            self._count.phase.labels(*self.labels, phase).inc(seconds)

    def _one(self, counter: Counter, names: BoundedNames, name: str) -> None:
        counter.labels(*self.labels, names.label(name or OTHER)).inc()
