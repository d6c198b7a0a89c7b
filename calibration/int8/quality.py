"""Measures of INT8 against FP32: noise of each tensor, ADC's choice, top-1 and speed."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx

from adc_edge.arrays import Array, Float32, Int64
from adc_edge.calibration.int8.graph import Linear
from adc_edge.method.compressed import CompressedBatch, drop_empty
from adc_edge.method.spec import TrunkSpec
from adc_edge.onnx.session import cpu_session
from adc_edge.storage.bundle import OUTPUTS

_ROUNDS, _WARM_UP = 9, 2


class Client:
    """A graph of trunk + ADC under ONNX Runtime on the CPU.

    Args:
        model: the graph, serialised.
        spec: the trunk's architecture.
    """

    def __init__(self, model: bytes, spec: TrunkSpec) -> None:
        self._session, self._spec = cpu_session(model), spec

    def run(self, outputs: Sequence[str], images: Float32, init_rows: Int64, slots: int) -> list[Array]:
        """Return some outputs for ``[B, C, H, W]``, k-means rows ``[T]`` and S patch tokens to keep."""
        feeds = {"images": images, "seeds": init_rows, "slots": np.zeros(slots, np.int64)}
        return self._session.run(list(outputs), feeds)  # type: ignore[no-any-return]

    def compress(self, images: Float32, init_rows: Int64, slots: int) -> CompressedBatch:
        """Return the compressed batch that a device would send."""
        return CompressedBatch(*drop_empty(*self.run(OUTPUTS, images, init_rows, slots)))

    def alone(self, outputs: Sequence[str], image: Float32) -> tuple[Int64, list[Array]]:
        """Return the places by score ``[N]`` of all tokens of one image ``[C, H, W]``, and some outputs."""
        tokens, *values = self.run(["tokens", *outputs], image[None], np.zeros(1, np.int64), self._spec.patches)
        return np.argsort(tokens[0]), values

    def full_output(self, images: Float32) -> Float32:
        """Return the trunk's output ``[B, N, D]``, with nothing merged or dropped."""
        found = (self.alone(["activations"], image) for image in images)
        return np.concatenate([activations[:, places] for places, (activations,) in found])


class Tap(NamedTuple):
    """A tensor that both graphs have."""

    label: str
    tensor: str
    by_score: bool = False  # its tokens are ordered by their scores, which differ between the graphs
    tokens: bool = False  # [B, n, D] with CLS first, whose noise is reported separately


def taps(model: onnx.ModelProto, chosen: Sequence[Linear], spec: TrunkSpec) -> list[Tap]:
    """Return the tensors to compare: outputs of quantised linears, hidden states, scores and activations."""
    values = {name for node in model.graph.node for name in node.output}
    last = f"blocks.{spec.depth - 1}."
    found = [Tap(each.name, each.output, by_score=each.name.startswith(last)) for each in chosen]
    hidden = [f"hidden_{block}" for block in range(1, spec.depth)]
    found += [Tap(name, name, tokens=True) for name in hidden if name in values]
    found += [Tap("scores", "scores")] if "scores" in values else []
    return [*found, Tap("activations", "activations", by_score=True, tokens=True)]


class Noise:
    """Signal and noise of a tensor, summed over images."""

    def __init__(self) -> None:
        self._signal = self._noise = 0.0

    def add(self, ours: Float32, theirs: Float32) -> None:
        """Add a tensor and its reference ``theirs``."""
        reference = theirs.astype(np.float64)
        self._signal += float((reference**2).sum())
        self._noise += float(((ours - reference) ** 2).sum())

    @property
    def sqnr_db(self) -> float:
        """Signal to quantisation noise ratio; infinite where nothing differs."""
        if self._noise == 0.0:
            return math.inf
        return 10 * math.log10(max(self._signal, sys.float_info.min) / self._noise)


def noise(ours: Client, theirs: Client, compared: Sequence[Tap], images: Float32) -> dict[str, float]:
    """Return the SQNR in dB of each tap, and of its CLS row, over images ``[B, C, H, W]``, worst first."""
    sums = {f"{tap.label}{row}": Noise() for tap in compared for row in ([""] + [", CLS"] * tap.tokens)}
    names = [tap.tensor for tap in compared]
    for image in images:
        pair = [client.alone(names, image) for client in (ours, theirs)]
        for index, tap in enumerate(compared):
            mine, other = (values[index][:, places] if tap.by_score else values[index] for places, values in pair)
            sums[tap.label].add(mine, other)
            if tap.tokens:
                sums[f"{tap.label}, CLS"].add(mine[:, 0], other[:, 0])
    return dict(sorted(((label, each.sqnr_db) for label, each in sums.items()), key=lambda item: item[1]))


class TopOne:
    """Counts of right classes, and of equal ones, from two runs of trunk + head."""

    def __init__(self, classes: int) -> None:
        self.images = self.right = self.right_int8 = self.same = 0
        self._chance = 1 / classes

    def add(self, labels: Int64, logits: Float32, logits_int8: Float32) -> None:
        """Count a batch: labels ``[B]`` and the logits ``[B, classes]`` of both runs."""
        float_class, int8_class = logits.argmax(axis=1), logits_int8.argmax(axis=1)
        self.images += len(labels)
        self.right += int((float_class == labels).sum())
        self.right_int8 += int((int8_class == labels).sum())
        self.same += int((float_class == int8_class).sum())

    @property
    def drop_points(self) -> float:
        """Drop of top-1 in INT8, in percentage points."""
        return 100 * (self.right - self.right_int8) / self.images

    @property
    def knows(self) -> bool:
        """True if the float model beats chance by three standard deviations."""
        spread = math.sqrt(self._chance * (1 - self._chance) / self.images)
        return self.right / self.images > self._chance + 3 * spread


def medians_ms(clients: Mapping[str, Client], images: Float32, init_rows: Int64, slots: int) -> dict[str, float]:
    """Return the median times of a forward pass; clients take turns, since machines are shared and noisy."""
    times: dict[str, list[float]] = {name: [] for name in clients}
    for turn in range(_WARM_UP + _ROUNDS):
        for name, client in clients.items():
            start = time.perf_counter()
            client.run(OUTPUTS, images, init_rows, slots)
            if turn >= _WARM_UP:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}
