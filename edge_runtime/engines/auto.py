"""Choose between ONNX Runtime and PyTorch by measuring which makes the shorter step on this device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adc_edge.arrays import Float32, Int64
from adc_edge.edge_runtime.engines.onnxruntime import OnnxEngine
from adc_edge.edge_runtime.settings import StepSettings
from adc_edge.planning.schedule import Costs, step_seconds

if TYPE_CHECKING:
    from adc_edge.edge_runtime.trunk.trainer import Shim

_ROUNDS = 3


class LinkSeconds(NamedTuple):
    """Times of a micro-batch on the link, in seconds."""

    rtt: float
    up: float
    down: float


class EngineChoice(NamedTuple):
    """The engine chosen, and the measured costs and predicted step of both, in seconds."""

    engine: str
    onnxruntime: Costs
    torch: Costs
    step_onnxruntime: float
    step_torch: float
    device: str = "cpu"  # of PyTorch

    def __str__(self) -> str:
        """Return the choice in a few words: ``auto: 115 ms a step, onnxruntime 146 ms``."""
        steps = {"onnxruntime": self.step_onnxruntime, "torch": self.step_torch}
        chosen = steps.pop(self.engine)
        ((other, seconds),) = steps.items()
        return f"auto: {1e3 * chosen:.0f} ms a step, {other} {1e3 * seconds:.0f} ms"

    @property
    def details(self) -> str:
        """The measured times, for the log of details."""
        engine, torch = self.onnxruntime, self.torch
        return (
            f"engine auto: a micro-batch takes ONNX Runtime {1e3 * engine.forward:.0f} ms (and "
            f"{1e3 * engine.recompute:.0f} ms to recompute), PyTorch on {self.device} {1e3 * torch.forward:.0f} ms, "
            f"the backward {1e3 * torch.backward:.0f} ms, the link {1e3 * engine.up:.0f} ms up and "
            f"{1e3 * engine.down:.0f} ms down; the time of a step is without the cloud's"
        )


def choose(
    engine: OnnxEngine, shim: Shim, images: Float32, init_rows: Int64, slots: int, link: LinkSeconds, cut: StepSettings
) -> EngineChoice:
    """Run one micro-batch several times with both engines, and compare the predicted steps.

    Args:
        engine: entered, with the shim's weights.
        shim: trains the trunk; its weights stay as they are.
        images: a micro-batch, ``[B, C, H, W]``.
        init_rows: rows that start k-means, ``[T]``.
        slots: S, patch tokens to keep.
        link: measured times.
        cut: micro-batches and window of a step.
    """
    sent = engine.compress(images, init_rows, slots)
    zero = np.zeros_like(sent.activations)

    def seconds(work: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
        times = []
        for _ in range(_ROUNDS):
            before()
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
            shim.drop()  # never two graphs at once
        return statistics.median(times)

    forward = seconds(lambda: engine.compress(images, init_rows, slots))
    recompute = seconds(lambda: shim.recompute(images, sent))
    with_graph = seconds(lambda: shim.compress(images, init_rows, slots))
    backward = seconds(lambda: shim.backward(zero), before=lambda: shim.recompute(images, sent))
    ours = Costs(forward, recompute, backward, link.up, 0.0, link.down)
    theirs = Costs(with_graph, 0.0, backward, link.up, 0.0, link.down)
    steps = [step_seconds(costs, link.rtt, cut.micro_batches, cut.window) for costs in (ours, theirs)]
    return EngineChoice(
        "onnxruntime" if steps[0] <= steps[1] else "torch", ours, theirs, steps[0], steps[1], shim.device.type
    )
