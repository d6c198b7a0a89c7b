"""Lines of a run as rows: the values of one step and of the evaluation after it, for a tracker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from adc_edge.watch.metrics.labels import MOST_DEVICES, OTHER, BoundedNames
from adc_edge.watch.reading.lines import METRIC_KINDS, spent_bytes
from adc_edge.watch.reading.values import CENTRAL, figure, number, text, whole

if TYPE_CHECKING:
    from adc_edge.watch.reading.state import Line

_RENAMED = {"rtt_min_ms": "rtt_ms", "body_bytes_up": "bytes_up", "body_bytes_down": "bytes_down"}
_LEFT_OUT = {"kind", "time", "step", "head_step", "session", "device", "drift"}


class TrackedRow(NamedTuple):
    """The values that a tracker logs for one step."""

    step: int  # steps done: on a trainer those of its head, of all devices
    bytes_so_far: int  # up and down, with evaluations and changes of the trunk
    time: float  # Unix time
    values: dict[str, float]


class RowMaker:
    """Makes the rows of one run.

    A row is complete when the next step begins, since an evaluation comes between. A step that comes again, as after
    a kill, makes no second row.
    """

    def __init__(self) -> None:
        self._devices = BoundedNames(MOST_DEVICES)
        self._bytes, self._last = 0, 0
        self._row: TrackedRow | None = None

    def take(self, line: Line) -> Iterator[TrackedRow]:
        """Return the rows that ``line`` completes: none or one."""
        if line.anew and line.kind in METRIC_KINDS:
            self._bytes = 0
        spent = spent_bytes(line.values, line.run.role == "trainer")
        self._bytes += spent.both if spent else 0
        if spent and spent.spending == "trunk" and self._row is not None:  # what the steps so far have cost
            self._row = self._row._replace(bytes_so_far=self._bytes)
        if line.kind not in ("step", "evaluation"):
            return
        if line.values.get("source") == CENTRAL:
            self._evaluated_centrally(line)
            return
        if line.kind == "evaluation":
            self._evaluated(line)
            return
        step = whole(line.values, "head_step") or whole(line.values, "step") + 1
        if step <= self._last:
            return
        yield from self.rest()
        self._last = step
        self._row = TrackedRow(step, self._bytes, number(line.values, "time") or 0.0, self._named(line, ""))

    def rest(self) -> Iterator[TrackedRow]:
        """Return the row that still waits for an evaluation, if there is one."""
        if self._row is not None:
            yield self._row
            self._row = None

    def _evaluated(self, line: Line) -> None:
        of_trainer = "session" in line.values
        step = whole(line.values, "head_step") or self._last if of_trainer else whole(line.values, "step")
        if self._row is not None and step == self._row.step:
            self._row.values.update(self._named(line, "test_"))
            self._row = self._row._replace(bytes_so_far=self._bytes)
        elif step > self._last:  # an evaluation before the first step, or of steps whose lines are lost
            self._last = step
            self._row = TrackedRow(step, self._bytes, number(line.values, "time") or 0.0, self._named(line, "test_"))

    def _evaluated_centrally(self, line: Line) -> None:
        """Add it to the newest step: it is over some steps after the one whose head it has judged."""
        if self._row is not None:
            names = ("accuracy", "loss", "head_step", "round")
            found = {f"central_{name}": figure(line.values, name) for name in names}
            self._row.values.update({name: value for name, value in found.items() if value is not None})

    def _named(self, line: Line, prefix: str) -> dict[str, float]:
        """Return the numbers of a line by name; those of one of several devices also name it."""
        values = line.values
        chosen = ("accuracy", "loss") if prefix else [name for name in values if name not in _LEFT_OUT]
        found = {f"{prefix}{_RENAMED.get(name, name)}": figure(values, name) for name in chosen if name in values}
        kept = {name: value for name, value in found.items() if value is not None}
        device = text(values, "device")
        if not device:
            return kept
        label = self._devices.label(device).replace("/", "_")
        own = {} if label == OTHER else {f"device/{label}/{name}": value for name, value in kept.items()}
        return kept | own
