"""The time of a step by phase. With micro-batches the phases of the two sides and the link overlap."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from adc_edge.edge_runtime.tally import StepRecord
from adc_edge.wire.messages import Gradient


class Stopwatch:
    """Times one step, and collects the figures in the answers to its micro-batches."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._spent = dict.fromkeys(
            ("data", "forward", "encode", "send", "recompute", "wait", "decode", "backward"), 0.0
        )
        self._departed = self._arrived = 0.0
        self._losses: list[float] = []
        self._accuracies: list[float] = []
        self._cloud = self._cloud_codec = self._cloud_wait = 0.0
        self._drift: float | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a phase."""
        start = time.monotonic()
        yield
        self._spent[name] += time.monotonic() - start

    def departed(self) -> None:
        """Note that a message leaves; the first one counts."""
        self._departed = self._departed or time.monotonic()

    def answered(self, gradient: Gradient, arrived: float) -> None:
        """Note an answer, whose last byte came at ``arrived`` by the monotonic clock."""
        self._arrived = max(self._arrived, self._departed, arrived)
        self._losses.append(gradient.loss)
        self._accuracies.append(gradient.accuracy)
        self._cloud += gradient.seconds_cloud
        self._cloud_codec += gradient.seconds_codec or 0.0
        self._cloud_wait += gradient.share.waited_or_expected_s if gradient.share else 0.0

    def drift(self, value: float | None) -> None:
        """Note the largest difference between engine and PyTorch in a micro-batch, if it was measured."""
        if value is not None:
            self._drift = max(value, self._drift or 0.0)

    def record(self, step: int, bytes_up: int, bytes_down: int) -> StepRecord:
        """The record of the step."""
        away = max(0.0, self._arrived - self._departed - self._cloud - self._cloud_codec)
        waited = min(self._cloud_wait, away)
        return StepRecord(
            step=step,
            loss=sum(self._losses) / len(self._losses),
            accuracy=sum(self._accuracies) / len(self._accuracies),
            bytes_up=bytes_up,
            bytes_down=bytes_down,
            seconds=time.monotonic() - self._start,
            seconds_link=away - waited,
            seconds_cloud=self._cloud,
            seconds_cloud_wait=waited,
            seconds_cloud_codec=self._cloud_codec,
            drift=self._drift,
            **{f"seconds_{name}": spent for name, spent in self._spent.items()},
        )
