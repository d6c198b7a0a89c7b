"""The state of a run as its directory tells it: the one model for report, page, metrics, trackers and `runs`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from adc_edge.storage.run_dir import METRICS
from adc_edge.watch.reading.about import About, Role
from adc_edge.watch.reading.clock import RunClock
from adc_edge.watch.reading.directory import CheckpointHead, checkpoint_files, is_held, read_head
from adc_edge.watch.reading.event_tails import EventTails
from adc_edge.watch.reading.happened import Happened, LoggedWarning, Mark
from adc_edge.watch.reading.lines import RunLine as Line
from adc_edge.watch.reading.series import LINK_RATES, PHASE_NAMES, STEP_CURVES, TEST_CURVES, Series
from adc_edge.watch.reading.session import WatchedSession
from adc_edge.watch.reading.tail import Tail
from adc_edge.watch.reading.totals import Totals
from adc_edge.watch.reading.values import branch, number, text, whole

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
        self.series, self.tests = Series(STEP_CURVES), Series(TEST_CURVES)
        self.totals, self._spent = Totals(), 0
        self._plans: deque[Mark] = deque(maxlen=_MOST_MARKS)
        self._last_kind = ""
        self._stamp: tuple[Path, int] | None = None  # of the checkpoint that was read
        self._unreadable = False
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
        """Accuracy of the last evaluation, as a share."""
        return self.tests.last("accuracy")

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
        self._read_checkpoint()
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
        if kind in takes:
            takes[kind](values)
        self._last_kind = kind

    def _take_step(self, values: Mapping[str, Any]) -> None:
        about, trainer = self.about, self.role == "trainer"
        seconds = number(values, "seconds_cloud" if trainer else "seconds")
        self.clock.pass_line(values, seconds or 0.0)
        images = whole(values, "images") or about.images
        self.steps_done = max(self.steps_done, whole(values, "head_step")) if trainer else whole(values, "step") + 1
        self.totals.add("step", values, trainer)
        self.totals.images += images
        back = whole(values, "body_bytes_down") > 0 if trainer else not about.frozen
        self.totals.uncompressed += images * about.image_bytes * (2 if back else 1)
        prefix = "body_bytes" if trainer else "bytes"
        self._spent += whole(values, f"{prefix}_up") + whole(values, f"{prefix}_down")
        session = self._session_of(values) if trainer else self._own()
        session.take_step(values, self.clock.elapsed, images, about.tokens)
        phases = {phase: number(values, f"seconds_{phase}") for phase in PHASE_NAMES}
        for phase, took in (*phases.items(), ("step", seconds)):
            self.totals.add_seconds(phase, took or 0.0)
        told: dict[str, float | None] = {name: number(values, name) for name in ("loss", "accuracy", *LINK_RATES)}
        more = {"step": self.steps_done, "elapsed": self.clock.elapsed, "bytes": self._spent, "seconds": seconds}
        rtt = number(values, "rtt_ms") or number(values, "rtt_min_ms")
        self.series.add(told | more | {"rtt_ms": rtt, "xi": session.xi} | phases)

    def _take_evaluation(self, values: Mapping[str, Any]) -> None:
        self.clock.pass_line(values, 0.0)
        self.totals.add("evaluation", values)
        session = self._session_of(values) if self.role == "trainer" else self._own()
        session.take_evaluation(values)
        step = self.steps_done if self.role == "trainer" else whole(values, "step")
        place: dict[str, float | None] = {"step": step, "elapsed": self.clock.elapsed, "bytes": self._spent}
        self.tests.add(place | {name: number(values, name) for name in ("accuracy", "loss")})

    def _take_plan(self, values: Mapping[str, Any]) -> None:
        self._own().take_plan(values, self.about.images, self.about.tokens)
        up, down = text(values, "precision", 20), text(values, "gradient_precision", 20)
        what = f"ξ {self._own().xi or 0:.3g}, {up}:{down}, M {whole(values, 'micro_batches')}"
        why = text(values, "why")
        words = f"{what}; {why}" if why else what
        self._plans.append(Mark("plan", whole(values, "step"), number(values, "time"), None, words))

    def _own(self) -> WatchedSession:
        """Return a device's own session."""
        if self.session not in self.sessions:
            self.sessions = {self.session: next(iter(self.sessions.values()), WatchedSession(self.session))}
        own, about = self.sessions[self.session], self.about
        own.begin_with(self.session, about.settings, about.xi(), self.steps_planned)
        return own

    def _session_of(self, values: Mapping[str, Any]) -> WatchedSession:
        """Return a line's session. Before 0.9 lines named the device alone."""
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

    def _read_checkpoint(self) -> None:
        """Take what a checkpoint alone knows: a device's session and repeated bytes, a trainer's devices."""
        files = checkpoint_files(self.path)
        self._unreadable = bool(files)
        for place in files:
            head = None if place == self._stamp else read_head(place[0])
            if place != self._stamp and head is None:
                continue
            self._stamp, self._unreadable = place, False
            if head is not None:
                self._take_head(head)
            return

    def _take_head(self, head: CheckpointHead) -> None:
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
        if self.about.damaged or self._unreadable:
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
