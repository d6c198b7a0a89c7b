"""The state of a run as its directory tells it: the one model for report, page, metrics, trackers and `runs`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from adc_edge.storage.run_dir import METRICS
from adc_edge.storage.run_lock import is_held
from adc_edge.watch.reading.about import About, Role
from adc_edge.watch.reading.clock import RunClock
from adc_edge.watch.reading.directory import CheckpointHead, CheckpointHeads
from adc_edge.watch.reading.event_tails import EventTails
from adc_edge.watch.reading.happened import Happened, LoggedWarning, Mark, plan_mark
from adc_edge.watch.reading.lines import RunLine as Line
from adc_edge.watch.reading.series import CENTRAL_CURVES, LINK_RATES, PHASE_NAMES, STEP_CURVES, TEST_CURVES, Series
from adc_edge.watch.reading.session import WatchedSession
from adc_edge.watch.reading.tail import Tail
from adc_edge.watch.reading.totals import Totals
from adc_edge.watch.reading.values import CENTRAL, branch, number, point, text, whole

__all__ = ["Line", "Mark", "Series", "WatchedRun", "WatchedSession"]

WatchedState = Literal["running", "waiting", "finished", "interrupted", "damaged"]
_MOST_SESSIONS, _MOST_MARKS = 1000, 200


class WatchedRun:
    """A run of a device or a trainer, read without its process noticing.

    Memory is bounded whatever the run's length. ``refresh`` first, then read the attributes.

    Args:
        path: the run's directory; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.resolve().name
        self.about, self.happened = About(path), Happened()
        self.state: WatchedState = "interrupted"
        self.session = ""  # a device's own: 16 hexadecimal digits, once a checkpoint tells
        self.sessions: dict[str, WatchedSession] = {}  # by their 16 digits; a device's run has its own alone
        self._metrics, self._events = Tail(path / METRICS), EventTails(path)
        self._anew = set[Tail | EventTails]()  # whose next line is the first one of a new file
        self._begin()

    def _begin(self) -> None:
        """Forget the metrics: they begin anew."""
        self.steps_done = 0
        self.clock = RunClock(guess=self.role == "device")
        self.series, self.tests, self.central = Series(STEP_CURVES), Series(TEST_CURVES), Series(CENTRAL_CURVES)
        self.totals, self._spent = Totals(), 0
        self._plans: deque[Mark] = deque(maxlen=_MOST_MARKS)
        self._last_kind = ""
        self._checkpoints = CheckpointHeads(self.path)
        for session in self.sessions.values():
            session.begin()

    @property
    def role(self) -> Role:
        """The side that the run is of; empty if its settings cannot be read."""
        return self.about.role

    @property
    def model(self) -> str:
        """The bundle's model by its timm name."""
        return self.about.model

    @property
    def split(self) -> int:
        """The number of the trunk's blocks."""
        return self.about.split

    @property
    def version(self) -> str:
        """The version of adc-edge that last worked on the run."""
        return self.happened.version or self.about.version

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as a flat mapping, with names such as ``optimizer.lr`` and ``machine.cores``."""
        return self.about.settings

    @property
    def steps_planned(self) -> int:
        """Steps of the whole run; 0: not known, or without end."""
        return self.happened.steps_planned or self.about.steps_planned

    @property
    def warnings(self) -> deque[LoggedWarning]:
        """The last 20 warnings of the log."""
        return self.happened.warnings

    @property
    def use(self) -> dict[str, Any]:
        """A trainer's last Use event; empty before it."""
        return self.happened.use

    @property
    def marks(self) -> list[Mark]:
        """Changes of settings, then outages and resumes."""
        return [*self._plans, *self.happened.marks]

    @property
    def outages(self) -> int:
        """Outages so far: checkpoints lag behind events, and an older run has checkpoints alone."""
        return max(self.happened.outages, self.totals.outages)

    @property
    def accuracy(self) -> float | None:
        """Accuracy of the last evaluation, as a share; of a trainer's own test images if it has some."""
        own = self.central.last("accuracy")
        return self.tests.last("accuracy") if own is None else own

    @property
    def torn(self) -> int:
        """Lines that cannot be read, as a kill or a full disk leaves them."""
        return self._metrics.torn + self._events.torn

    @property
    def behind(self) -> bool:
        """Whether there may be more than the last ``refresh`` read, whatever it returned."""
        return self._metrics.behind or self._events.behind

    def refresh(self) -> list[Line]:
        """Read what is new and return its lines, at most 4 MB of each file: call it while it is ``behind``."""
        self.about.refresh()
        if self.role == "device":
            self._own()
        lines = self._follow(self._events, self._forget_events, self._take_event)
        lines += self._follow(self._metrics, self._begin, self._take_metric)
        if (head := self._checkpoints.news()) is not None:
            self._take_head(head)
        self.state = self._find_state()
        return lines

    def read_all(self) -> WatchedRun:
        """Read everything that is there, and return self."""
        while self.refresh() or self.behind:
            pass
        return self

    def _follow(
        self, tail: Tail | EventTails, forget: Callable[[], None], take: Callable[[str, Mapping[str, Any]], None]
    ) -> list[Line]:
        found, anew = tail.read()
        if anew:
            forget()
            self._anew.add(tail)
        lines = []
        for values in found:
            kind = text(values, "kind", 40)
            take(kind, values)
            lines.append(Line(self, kind, values, tail in self._anew))
            self._anew.discard(tail)
        return lines

    def _forget_events(self) -> None:
        self.happened = Happened()
        if self.role == "trainer":
            self.sessions.clear()

    def _take_event(self, kind: str, values: Mapping[str, Any]) -> None:
        self.happened.take(kind, values)
        time = number(values, "time") or 0.0
        if kind == "started" and self.role == "trainer":
            self._lose_sessions(time)
        if self.role != "device" and (key := text(values, "session", 64)):
            self._session(key, text(values, "device", 64)).take_event(kind, values, time)

    def _lose_sessions(self, time: float) -> None:
        """A killed trainer writes no Away: whoever is still connected when the next one starts was lost."""
        for session in (known for known in self.sessions.values() if known.state == "connected"):
            session.lose(time)
            self.happened.lose(session.key, time)

    def _take_metric(self, kind: str, values: Mapping[str, Any]) -> None:
        takes = {"step": self._take_step, "evaluation": self._take_evaluation, "plan": self._take_plan}
        takes["trunk" if self.role == "trainer" else "average"] = self._take_trunk
        if kind in takes:
            takes[kind](values)
        self._last_kind = kind

    def _take_step(self, values: Mapping[str, Any]) -> None:
        about, trainer = self.about, self.role == "trainer"
        seconds = number(values, "seconds_cloud" if trainer else "seconds")
        self.clock.pass_line(values, seconds or 0.0)
        images = whole(values, "images") or about.images
        self.steps_done = max(self.steps_done, whole(values, "head_step")) if trainer else whole(values, "step") + 1
        self._spent += self.totals.add(values, trainer)
        self.totals.images += images
        learns = not about.frozen and values.get("gradient_precision", "") is not None  # None: frozen on the way
        back = whole(values, "body_bytes_down") > 0 if trainer else learns
        self.totals.uncompressed += images * about.image_bytes * (2 if back else 1)
        session = self._session_of(values)
        session.take_step(values, self.clock.elapsed, images, about.tokens)
        phases = {phase: number(values, f"seconds_{phase}") for phase in PHASE_NAMES}
        self.totals.add_seconds({**phases, "step": seconds})
        rtt = number(values, "rtt_ms") or number(values, "rtt_min_ms")
        told = self._point(values, ("loss", "accuracy", *LINK_RATES), self.steps_done)
        self.series.add(told | {"seconds": seconds, "rtt_ms": rtt, "xi": session.xi} | phases)

    def _take_evaluation(self, values: Mapping[str, Any]) -> None:
        self.clock.pass_line(values, 0.0)
        if text(values, "source", 20) == CENTRAL:
            self.central.add(self._point(values, CENTRAL_CURVES, number(values, "head_step")))
            return
        self.totals.add(values)
        self._session_of(values).take_evaluation(values)
        step = self.steps_done if self.role == "trainer" else whole(values, "step")
        self.tests.add(self._point(values, TEST_CURVES, step))

    def _take_trunk(self, values: Mapping[str, Any]) -> None:
        self.clock.pass_line(values, 0.0)
        self._spent += self.totals.add(values, self.role == "trainer")
        self._session_of(values).take_trunk(values)

    def _point(self, values: Mapping[str, Any], names: Iterable[str], step: float | None) -> dict[str, float | None]:
        return point(values, names, step, self.clock.elapsed, self._spent)

    def _take_plan(self, values: Mapping[str, Any]) -> None:
        self._own().take_plan(values, self.about.images, self.about.tokens)
        self._plans.append(plan_mark(values, self._own().xi))

    def _own(self) -> WatchedSession:
        """Return a device's own session."""
        if self.session not in self.sessions:
            self.sessions = {self.session: next(iter(self.sessions.values()), WatchedSession(self.session))}
        own, about = self.sessions[self.session], self.about
        own.begin_with(self.session, about.settings, about.xi(), self.steps_planned)
        return own

    def _session_of(self, values: Mapping[str, Any]) -> WatchedSession:
        """Return a line's session. Before 0.9 a trainer's lines named the device alone."""
        if self.role != "trainer":
            return self._own()
        key, device = text(values, "session", 64), text(values, "device", 64)
        if not key:
            key = next((known for known, session in self.sessions.items() if session.device == device), device)
        return self._session(key, device)

    def _session(self, key: str, device: str) -> WatchedSession:
        found = self.sessions.get(key)
        if found is None:
            found = self.sessions[key] = WatchedSession(key)
            if len(self.sessions) > _MOST_SESSIONS:
                over = (k for k, s in self.sessions.items() if s.state in ("finished", "refused"))
                del self.sessions[next(over, next(iter(self.sessions)))]
        found.device = device or found.device
        return found

    def _take_head(self, head: CheckpointHead) -> None:
        """Take what a checkpoint alone knows: a device's session and repeated bytes, a trainer's devices."""
        session = head.meta.get("session")
        if self.role == "device" and isinstance(session, int):
            self.session = f"{session:016x}"
            self._own()
        self.totals.take_checkpoint(head)
        for key, record in branch(head.meta, "sessions").items():
            if key.isdecimal() and isinstance(record, dict):
                self._know(f"{int(key):016x}", record)

    def _know(self, key: str, record: Mapping[str, Any]) -> None:
        device = text(record, "device", 64)
        if device in self.sessions and key not in self.sessions:  # lines before 0.9 named it so
            self.sessions[key] = self.sessions.pop(device)
            self.sessions[key].key = key
        self._session(key, device).take_record(record)

    def _find_state(self) -> WatchedState:
        if is_held(self.path):
            self._end_sessions("away" if self.happened.waiting else "connected")
            return "waiting" if self.happened.waiting else "running"
        if self.about.damaged or self._checkpoints.damaged:
            return "damaged"
        finished = self._is_finished()
        self._end_sessions("finished" if finished and self.role == "device" else "away")
        return "finished" if finished else "interrupted"

    def _end_sessions(self, state: Literal["connected", "away", "finished"]) -> None:
        """A device's session is as the run is; a trainer's are not connected once its process has ended."""
        for session in self.sessions.values():
            if self.role == "device" or (state != "connected" and session.state == "connected"):
                session.state = state

    def _is_finished(self) -> bool:
        if self.happened.starts:
            return self.happened.complete
        if self.role == "trainer":
            return {session.state for session in self.sessions.values()} == {"finished"}
        if self.steps_planned:
            return self.steps_done >= self.steps_planned
        return self._last_kind == "evaluation" and (self.path / "trunk.safetensors").exists()
