"""One device's session as lines of metrics and events tell it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from adc_edge.watch.reading.series import TEST_CURVES, Series
from adc_edge.watch.reading.values import branch, number, text, whole

SessionState = Literal["connected", "away", "finished", "refused"]
_LINK = ("up_mbit_s", "down_mbit_s", "rtt_ms")
_RATE_S = 20.0
_LIMIT = 500  # points of a session's curves
_CLASSES, _NAME = 100, 64  # of an event, and characters of a name


class ToldImages(NamedTuple):
    """The training images of a device by class, as it has told its trainer."""

    images: dict[str, int]  # of at most 100 classes, the one with the most first
    classes: int  # that have images
    of: int  # outputs of the head; 0: not known
    rest: int  # images of the classes that are not listed

    @property
    def ratio(self) -> float | None:
        """The largest class in the smallest one; None if that is not known."""
        counts = list(self.images.values())
        return max(counts) / min(counts) if counts and self.classes == len(counts) else None


class WatchedSession:
    """A session; None and 0 mean not known.

    Args:
        key: 16 hexadecimal digits; of a run before 0.9 its device's name.
    """

    def __init__(self, key: str) -> None:
        self.key, self.device = key, ""
        self.step = self.steps = self.images = self.bytes_up = self.bytes_down = 0
        self.state: SessionState = "away"
        self._told = False  # events tell the state; before 0.10 steps alone do
        self.loss: float | None = None
        self.accuracy: float | None = None
        self.test_accuracy: float | None = None
        self.test_loss: float | None = None
        self.xi: float | None = None
        self.precision, self.gradient_precision, self.micro_batches = "", "", 0
        self.up_mbit_s: float | None = None
        self.down_mbit_s: float | None = None
        self.rtt_ms: float | None = None
        self.told: ToldImages | None = None  # a device of 0.10 tells none
        self.last_error, self.last_time = "", 0.0  # Unix time of the last line
        self.changed = 0.0  # Unix time of the last change of state
        self.begin()

    def begin(self) -> None:
        """Forget what the steps told: they are told again from the first one."""
        self.step = self.images = self.bytes_up = self.bytes_down = 0
        self.series = Series((*TEST_CURVES, *_LINK), _LIMIT)
        self._times: deque[float] = deque(maxlen=1000)

    @property
    def steps_per_s(self) -> float | None:
        """Steps a second over the last 20 s of lines; None before the second step."""
        if len(self._times) < 2 or self._times[-1] <= self._times[0]:
            return None
        return (len(self._times) - 1) / (self._times[-1] - self._times[0])

    def begin_with(self, key: str, settings: Mapping[str, Any], xi: float | None, steps: int) -> None:
        """Take a device's own settings, where nothing newer is known."""
        self.key, self.device, self.steps = key, text(settings, "name", 64), steps
        self.xi = xi if self.xi is None else self.xi
        self.precision = self.precision or _first_epochs(settings, "precision")
        if settings.get("trunk") != "frozen":
            self.gradient_precision = self.gradient_precision or _first_epochs(settings, "gradient_precision")

    def take_event(self, kind: str, values: Mapping[str, Any], time: float) -> None:
        """Take an event of a trainer that names this session."""
        if kind == "joined":
            self.steps = whole(values, "steps") or self.steps
            self.step = whole(values, "step") or self.step
            self.state = "connected"
        elif kind == "away" and self.state == "connected":
            self.state = "away"
        elif kind == "toldclasses":
            self._take_images(values)
        elif kind == "done":
            self.state = "finished"
        elif kind == "rejected":
            self.last_error = text(values, "text")
            self.state = self.state if self.state in ("connected", "finished") else "refused"
        self._told = self._told or kind in ("joined", "away", "done")
        self.changed, self.last_time = time, max(self.last_time, time)

    def _take_images(self, values: Mapping[str, Any]) -> None:
        listed = branch(values, "images")
        counts = {name[:_NAME]: whole(listed, name) for name in list(listed)[:_CLASSES]}
        found = {name: count for name, count in counts.items() if count}
        self.told = ToldImages(found, whole(values, "classes"), whole(values, "of"), whole(values, "rest"))

    def lose(self, time: float) -> None:
        """Note that the trainer's process has ended without a word."""
        self.state, self.changed = "away", time

    def take_record(self, record: Mapping[str, Any]) -> None:
        """Take what a trainer's checkpoint knows."""
        self.step = max(self.step, whole(record, "applied"))
        if record.get("finished") is True:
            self.state = "finished"

    def take_step(self, values: Mapping[str, Any], elapsed: float | None, images: int, tokens: int) -> None:
        """Take one step's line.

        Args:
            values: the line.
            elapsed: seconds since the run began.
            images: images of the step.
            tokens: tokens of an image.
        """
        self.step, self.images = whole(values, "step") + 1, self.images + images
        self._take_bytes(values)
        self.loss, self.accuracy = number(values, "loss"), number(values, "accuracy")
        self._take_settings(values, images * tokens)
        self.up_mbit_s = number(values, "up_mbit_s") or self.up_mbit_s
        self.down_mbit_s = number(values, "down_mbit_s") or self.down_mbit_s
        self.rtt_ms = number(values, "rtt_ms") or number(values, "rtt_min_ms") or self.rtt_ms
        spent = float(self.bytes_up + self.bytes_down)
        curves = {"step": self.step, "elapsed": elapsed, "bytes": spent, "loss": self.loss, "accuracy": self.accuracy}
        self.series.add(curves | {name: number(values, name) for name in _LINK})
        self._take_time(number(values, "time"))

    def take_trunk(self, values: Mapping[str, Any]) -> None:
        """Take the line of an exchange that has made the trunk the fleet's."""
        self._take_bytes(values)
        self.last_time = max(self.last_time, number(values, "time") or 0.0)

    def take_evaluation(self, values: Mapping[str, Any]) -> None:
        """Take an evaluation's line."""
        self.test_accuracy, self.test_loss = number(values, "accuracy"), number(values, "loss")
        self.last_time = max(self.last_time, number(values, "time") or 0.0)

    def take_plan(self, values: Mapping[str, Any], images: int, tokens: int) -> None:
        """Take a change of settings, whose clusters are those of one micro-batch."""
        parts = whole(values, "micro_batches") or 1
        self.xi = None
        self._take_settings({**values, "clusters": whole(values, "clusters") * parts}, images * tokens)

    def _take_bytes(self, values: Mapping[str, Any]) -> None:
        self.bytes_up += whole(values, "bytes_up") or whole(values, "body_bytes_up")
        self.bytes_down += whole(values, "bytes_down") or whole(values, "body_bytes_down")

    def _take_settings(self, values: Mapping[str, Any], tokens: int) -> None:
        """Take precisions, M and ξ; ``tokens`` are those of the whole batch."""
        self.precision = text(values, "precision", 20) or self.precision
        self.gradient_precision = text(values, "gradient_precision", 20) or self.gradient_precision
        self.micro_batches = whole(values, "micro_batches") or self.micro_batches
        told, sent = number(values, "xi"), whole(values, "clusters") * whole(values, "kept")
        if told is None and sent and tokens:
            told = sent / tokens
        self.xi = self.xi if told is None else told

    def _take_time(self, time: float | None) -> None:
        if time is None:
            return
        self.last_time = max(self.last_time, time)
        if not self._told and time > self.changed and self.state in ("away", "refused"):
            self.state = "connected"
        self._times.append(time)
        while self._times and self._times[0] < time - _RATE_S:
            self._times.popleft()


def _first_epochs(settings: Mapping[str, Any], name: str) -> str:
    """Return a precision of a device's settings, the first one of a list by epoch."""
    return text(settings, name, 20).partition(",")[0]
