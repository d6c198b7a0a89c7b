"""The devices and the head of a trainer as its metrics and events tell, in bounded memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal

from adc_edge.screen.curve import Curve
from adc_edge.screen.running_mean import running_mean
from adc_edge.storage.events import Away, CentralEvaluation, Done, Event, Joined, Rejected, Use

_MOST_ROWS = 256
_UNDRAWN = 8192  # lines that the screen may be late
_PACE_S = 20.0  # over which steps a second are counted

State = Literal["connected", "away", "finished", "refused"]
FleetLine = Event | Mapping[str, Any]  # an event, or the values of a metric


class DeviceRow:
    """One session of a device; ``seen``: monotonic time of its last sign of life, None: not since this start."""

    def __init__(self, name: str, state: State, seen: float | None) -> None:
        self.name, self.state, self.seen = name, state, seen
        self.paused = False  # by `adc-edge fleet`
        self.step = self.steps = 0  # applied and planned
        self.loss: float | None = None
        self.accuracy: float | None = None
        self.test: float | None = None
        self.ratio: tuple[int, int, int] | None = None  # images, clusters, kept tokens
        self.precisions: tuple[str, ...] = ()
        self.up_mbit_s: float | None = None
        self.down_mbit_s: float | None = None
        self.rtt_ms: float | None = None
        self.pace = RecentPace()

    def stepped(self, values: Mapping[str, Any], now: float) -> None:
        """Take the metrics of a step."""
        self.step, self.seen = values["step"] + 1, now
        self.loss = running_mean(self.loss, values["loss"])
        self.accuracy = running_mean(self.accuracy, values["accuracy"])
        self.ratio = values["images"], values["clusters"], values["kept"]
        self.precisions = tuple(name for name in (values["precision"], values["gradient_precision"]) if name)
        self.up_mbit_s = values["up_mbit_s"] or self.up_mbit_s  # not every message tells it
        self.down_mbit_s, self.rtt_ms = values["down_mbit_s"], values["rtt_ms"]
        self.pace.add(now)


class RecentPace:
    """Steps a second over the last 20 seconds."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=1024)

    def add(self, now: float) -> None:
        """Count a step."""
        self._times.append(now)

    def per_second(self, now: float) -> float:
        """Return the rate; 0 before the second step."""
        times = self._times
        while times and now - times[0] > _PACE_S:
            times.popleft()
        return (len(times) - 1) / (now - times[0]) if len(times) > 1 else 0.0


class Fleet:
    """All devices, and the head. ``take`` is for the trainer's threads, the rest for the screen's."""

    def __init__(self) -> None:
        self._lines: deque[tuple[float, FleetLine]] = deque(maxlen=_UNDRAWN)
        self.rows: dict[str, DeviceRow] = {}
        self.is_paused: Callable[[str], bool] = lambda session: False
        self.refused = 0
        self.use: Use | None = None
        self.used_at = 0.0
        self.head_step = 0
        self.loss, self.accuracy, self.pace = Curve(), Curve(), RecentPace()
        self.last_loss: float | None = None
        self.last_accuracy: float | None = None
        self.central: CentralEvaluation | None = None  # the last one

    def take(self, line: FleetLine) -> None:
        """Keep a line until the screen is drawn; it takes a microsecond."""
        self._lines.append((time.monotonic(), line))

    def seed(self, session: str, name: str, step: int, finished: bool) -> None:
        """Add a session that an earlier process of this trainer has served."""
        row = self._row(session, name, "finished" if finished else "away", None)
        row.step = step

    def update(self) -> None:
        """Take in the lines that were kept."""
        while self._lines:
            now, line = self._lines.popleft()
            if not isinstance(line, Event):
                self._metric(line, now)
            elif isinstance(line, Use):
                self.use, self.used_at = line, now
            elif isinstance(line, CentralEvaluation):
                self.central = line
            else:
                self._event(line, now)
        for session, row in self.rows.items():
            row.paused = self.is_paused(session)

    def counts(self) -> dict[State, int]:
        """Return the number of devices in each state."""
        states: tuple[State, ...] = ("connected", "away", "finished", "refused")
        return {state: sum(row.state == state for row in self.rows.values()) for state in states}

    def _event(self, event: Event, now: float) -> None:
        if isinstance(event, Joined):
            row = self._row(event.session, event.device, "connected", now)
            row.step, row.steps = event.step, event.steps
        elif isinstance(event, Away | Done) and event.session in self.rows:
            row = self.rows[event.session]
            row.state, row.seen = "away" if isinstance(event, Away) else "finished", now
        elif isinstance(event, Rejected):
            self.refused += 1
            if event.session and event.session not in self.rows:
                self._row(event.session, event.device, "refused", now)

    def _metric(self, values: Mapping[str, Any], now: float) -> None:
        row = self.rows.get(values.get("session", ""))
        if row is not None and values["kind"] == "evaluation":
            row.test, row.seen = values["accuracy"], now
        elif values["kind"] == "step":
            self.head_step = values["head_step"]
            self.last_loss = running_mean(self.last_loss, values["loss"])
            self.last_accuracy = running_mean(self.last_accuracy, values["accuracy"])
            self.loss.add(values["loss"])
            self.accuracy.add(values["accuracy"])
            self.pace.add(now)
            if row is not None:
                row.stepped(values, now)

    def _row(self, session: str, name: str, state: State, seen: float | None) -> DeviceRow:
        row = self.rows.get(session)
        if row is None:
            row = self.rows[session] = DeviceRow(name, state, seen)
            if len(self.rows) > _MOST_ROWS:
                gone = min(self.rows, key=lambda key: (self.rows[key].state == "connected", self.rows[key].seen or 0.0))
                del self.rows[gone]
        row.name, row.state, row.seen = name, state, seen
        return row
