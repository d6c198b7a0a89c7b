"""One run's account: which of its lines count, and the newest values for the gauges."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adc_edge.watch.metrics.counting import LineCounter
from adc_edge.watch.metrics.instruments import Instruments
from adc_edge.watch.metrics.once import SeenLines
from adc_edge.watch.reading.identity import run_identity
from adc_edge.watch.reading.lines import METRIC_KINDS
from adc_edge.watch.reading.values import CENTRAL, figure, whole

if TYPE_CHECKING:
    from adc_edge.watch.reading.state import Line, WatchedRun

_ADMITTED = ("joined", "step", "evaluation", "trunk")  # lines of devices that work with the trainer
_SMOOTHED = 20  # steps


class RunBook:
    """The account of one run.

    Args:
        run: what its directory tells.
        name: label of the run.
        instruments: count its lines.
    """

    def __init__(self, run: WatchedRun, name: str, instruments: Instruments) -> None:
        self.run, self.counter = run, LineCounter(run, name, instruments)
        self.newest: dict[str, tuple[float, float]] = {}  # loss and accuracy of each device's last step
        self.head_step = 0
        self._recent: deque[tuple[float, float]] = deque(maxlen=_SMOOTHED)  # of any device
        self._metrics, self._events = SeenLines(), SeenLines()
        self._identity = run_identity(run.path)

    def take(self, line: Line) -> None:
        """Take one line."""
        self.counter.begin()
        is_metric = line.kind in METRIC_KINDS
        if line.anew or line.kind == "started":
            self._look_for_another_run()
        if line.values.get("source") == CENTRAL:  # no device's; a gauge shows it
            return
        if line.kind in _ADMITTED or (line.kind == "started" and self.run.role == "device"):
            self.counter.begin(self.counter.admit(line.values))
        novelty = (self._metrics if is_metric else self._events).judge(line.values, line.anew)
        if line.kind == "step":
            self._take_step(line.values)
            if novelty != "history":
                self.counter.add_step(line.values, novelty == "repeated")
        elif novelty == "new":
            self.counter.add(line.kind, line.values)

    def smoothed(self) -> tuple[float, float] | None:
        """Return mean loss and accuracy of the last 20 steps of any device; None before the first one."""
        recent = list(self._recent)
        if not recent:
            return None
        loss, accuracy = (sum(column) / len(recent) for column in zip(*recent, strict=True))
        return loss, accuracy

    def _take_step(self, values: Mapping[str, Any]) -> None:
        device = self.counter.device_of(values)
        loss, accuracy = figure(values, "loss"), figure(values, "accuracy")
        figures = math.nan if loss is None else loss, math.nan if accuracy is None else accuracy
        self.newest[device] = figures
        self._recent.append(figures)
        self.head_step = whole(values, "head_step") or self.head_step

    def _look_for_another_run(self) -> None:
        identity = run_identity(self.run.path)
        if identity == self._identity:
            return
        self._identity, self.head_step = identity, 0
        self._metrics.begin_again()
        self.newest.clear()
        self._recent.clear()
