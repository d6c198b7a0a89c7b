"""The cost of a run so far (steps, bytes at the socket, seconds by phase), and its report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET

from adc_edge.edge_runtime.fleet.record import TakenAverage
from adc_edge.method.ratio import Shape
from adc_edge.planning.bottleneck import PHASES, busiest
from adc_edge.screen.running_mean import running_mean
from adc_edge.wire.messages import Evaluated

SAMPLES = 1000


class StepRecord(msgspec.Struct, frozen=True):
    """One step. Times are in seconds; bytes are those that the kernel counted since the step before."""

    step: int
    loss: float
    accuracy: float
    bytes_up: int
    bytes_down: int
    seconds: float
    seconds_data: float
    seconds_forward: float
    seconds_send: float  # to send messages and write the journal
    seconds_recompute: float
    seconds_link: float  # from the first message's departure to the last answer's arrival, less the trainer's
    seconds_cloud: float  # forward and backward there
    seconds_wait: float  # the part of link and cloud (with codec and wait there) that this device waited for
    seconds_backward: float
    drift: float | None = None
    seconds_encode: float = 0.0  # activations -> bytes, apart from forward
    seconds_decode: float = 0.0  # bytes -> gradients
    seconds_cloud_codec: float = 0.0  # the same on the trainer, apart from seconds_cloud
    seconds_cloud_wait: float = 0.0  # while the trainer worked for its other devices


_SUMMED = [name for name in StepRecord.__struct_fields__ if name.startswith(("bytes_", "seconds"))]


class Evaluation(msgspec.Struct, frozen=True, omit_defaults=True):
    """An evaluation on the test split, with nothing merged or dropped."""

    step: int
    images: int
    accuracy: float
    loss: float
    mixed: bool = False  # not of one head, or not of these images: the device came back without what it had
    precision: str = ""  # of what was sent; 0.7 did not say

    def gains_on(self, best: Evaluation | None) -> bool:
        """Whether it is better than ``best``: more accurate, or at the same accuracy with a lower loss."""
        if self.mixed or not self.images:
            return False
        return best is None or (self.accuracy, -self.loss) > (best.accuracy, -best.loss)


def summed(step: int, answers: Iterable[Evaluated], sizes: Iterable[int], precision: str = "") -> Evaluation:
    """Return the evaluation whose parts, of so many images each, were answered so."""
    images = correct = 0
    loss, mixed = 0.0, False
    for answer, size in zip(answers, sizes, strict=True):
        images, correct, loss = images + answer.images, correct + answer.correct, loss + answer.loss_sum
        mixed |= answer.head_step is not UNSET
        mixed |= answer.images != size  # of a process before, which cut the test images into other parts
    share = (correct / images, loss / images) if images else (math.nan, math.nan)
    return Evaluation(step, images, *share, mixed, precision)


def best_of(evaluations: Iterable[Evaluation]) -> tuple[Evaluation | None, int]:
    """Return the best evaluation, None if there is none, and the number of those after it."""
    best, since = None, 0
    for evaluation in evaluations:
        gain = evaluation.gains_on(best)
        best, since = (evaluation, 0) if gain else (best, since + (not evaluation.mixed))
    return best, since


class Tally(msgspec.Struct):
    """Sums over a run; a checkpoint keeps them."""

    steps: int = 0
    images: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    bytes_evaluation_up: int = 0
    bytes_evaluation_down: int = 0
    bytes_trunk_up: int = 0  # of the averages
    bytes_trunk_down: int = 0
    bytes_probe_up: int = 0  # with which the link was measured before the first step
    bytes_probe_down: int = 0
    seconds: float = 0.0
    seconds_data: float = 0.0
    seconds_forward: float = 0.0
    seconds_send: float = 0.0
    seconds_recompute: float = 0.0
    seconds_link: float = 0.0
    seconds_cloud: float = 0.0
    seconds_cloud_codec: float = 0.0
    seconds_cloud_wait: float = 0.0
    seconds_wait: float = 0.0
    seconds_encode: float = 0.0
    seconds_decode: float = 0.0
    seconds_backward: float = 0.0
    seconds_evaluation: float = 0.0
    seconds_trunk: float = 0.0  # of the averages, with the wait for other devices
    averages: int = 0
    averages_left_out: int = 0  # that have nothing of this trunk's change
    loss: float | None = None  # running mean over about the last 20 steps
    loss_first: float | None = None
    accuracy_train: float | None = None
    drift: float | None = None  # largest |engine - PyTorch| that was measured
    outages: int = 0
    steps_repeated: int = 0  # repeated after this process was killed
    bytes_repeated_up: int = 0  # bytes that an undisturbed run would not have needed, with evaluations
    bytes_repeated_down: int = 0
    rtt_min_ms: float | None = None
    rtt_samples_ms: list[float] = msgspec.field(default_factory=list)
    up_samples_mbit_s: list[float] = msgspec.field(default_factory=list)
    down_samples_mbit_s: list[float] = msgspec.field(default_factory=list)
    evaluations: list[Evaluation] = msgspec.field(default_factory=list)
    best: Evaluation | None = None  # the one whose halves are kept

    def add(self, record: StepRecord, images: int) -> None:
        """Count one step."""
        self.steps += 1
        self.images += images
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(record, name))
        self.loss_first = record.loss if self.loss_first is None else self.loss_first
        self.loss = running_mean(self.loss, record.loss)
        self.accuracy_train = running_mean(self.accuracy_train, record.accuracy)
        if record.drift is not None:
            self.drift = max(record.drift, self.drift or 0.0)

    def average(self, taken: TakenAverage) -> None:
        """Count an average."""
        self.averages += 1
        self.averages_left_out += bool(taken.answer.left_out)
        self.bytes_trunk_up += taken.bytes_up
        self.bytes_trunk_down += taken.bytes_down
        self.seconds_trunk += taken.seconds

    def add_bytes(self, bytes_up: int, bytes_down: int, part: Literal["", "evaluation_", "trunk_"] = "") -> None:
        """Count bytes beside those of whole steps and averages: of a part that was given up, and its connection."""
        for way, size in (("up", bytes_up), ("down", bytes_down)):
            name = f"bytes_{part}{way}"
            setattr(self, name, getattr(self, name) + size)

    def probe(self, bytes_up: int, bytes_down: int) -> None:
        """Count bytes that measured the link, apart from those of training."""
        self.bytes_probe_up += bytes_up
        self.bytes_probe_down += bytes_down

    def repeat(self, lost: Iterable[Mapping[str, Any]]) -> None:
        """Count steps and evaluations that were lost with a killed process, whose bytes were sent."""
        for line in lost:
            if line.get("kind") == "average":  # it is taken from the record again, and counted then
                continue
            step = line.get("kind") == "step"
            self.steps_repeated += step
            for way in ("up", "down"):
                size = int(line.get(f"bytes_{way}", 0))
                name = f"bytes_{way}" if step else f"bytes_evaluation_{way}"
                setattr(self, name, getattr(self, name) + size)
                setattr(self, f"bytes_repeated_{way}", getattr(self, f"bytes_repeated_{way}") + size)

    def link(
        self, rtt_ms: float, up_mbit_s: float | None, down_mbit_s: float | None, rtt_min_ms: float | None = None
    ) -> None:
        """Keep the last SAMPLES figures of the link, of each step; None: a step told no rate."""
        if rtt_min_ms:
            self.rtt_min_ms = min(rtt_min_ms, self.rtt_min_ms or rtt_min_ms)
        values = (
            (self.rtt_samples_ms, rtt_ms),
            (self.up_samples_mbit_s, up_mbit_s),
            (self.down_samples_mbit_s, down_mbit_s),
        )
        for samples, value in values:
            if value is not None:
                samples.append(value)
                del samples[:-SAMPLES]

    def uncompressed_bytes(self, image_bytes: int, frozen: bool, frozen_from: int | None = None) -> int:
        """The bytes of all activations in fp32, and of the gradients of those images with which the trunk has learned.

        Args:
            image_bytes: size of one image's activations.
            frozen: the trunk never learns.
            frozen_from: step from which on it does not learn any more.
        """
        share = 0.0 if frozen else 1.0 if frozen_from is None else min(1.0, frozen_from / max(1, self.steps))
        return image_bytes * (self.images + round(share * self.images))

    def report(self, shape: Shape, dim: int, frozen: bool, **more: Any) -> dict[str, Any]:
        """The report as one JSON object, with the bytes of uncompressed fp32 activations (and gradients) to compare."""
        values = {name: value for name, value in msgspec.to_builtins(self).items() if "_samples_" not in name}
        for name, share in (("rtt_ms", 50), ("rtt_p95_ms", 95), ("rtt_p99_ms", 99)):
            values[name] = _percentile(self.rtt_samples_ms, share)
        for way, samples in (("up", self.up_samples_mbit_s), ("down", self.down_samples_mbit_s)):
            values[f"{way}_mbit_s"], values[f"{way}_p10_mbit_s"] = (_percentile(samples, share) for share in (50, 10))
        values["accuracy"] = self.evaluations[-1].accuracy if self.evaluations else None
        values["xi"] = shape.xi
        values["peak_memory_mb"] = peak_memory_mb()
        for way in ("up", "down"):
            parts = (values[f"bytes_{part}{way}"] for part in ("", "evaluation_", "trunk_", "probe_"))
            values[f"bytes_total_{way}"] = sum(parts)
        values["bytes_uncompressed_fp32"] = self.uncompressed_bytes(
            shape.tokens * dim * 4, frozen, more.get("frozen_from")
        )
        measured = {phase: values[f"seconds_{phase}"] for phases in PHASES.values() for phase in phases}
        found = busiest(measured, self.seconds, more.get("micro_batches", 1))
        values["busiest"] = None if found is None else found._asdict()
        return values | more


def peak_memory_mb() -> float | None:
    """Peak memory of this process in MB; None where the system does not tell (Linux does).

    ``ru_maxrss`` would not do: it survives exec, so it may be the peak of the process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), None)


def _percentile(samples: list[float], share: float) -> float | None:
    return float(np.percentile(samples, share)) if samples else None
