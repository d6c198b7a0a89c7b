"""Which engine runs the trunk: by name, or whichever makes the shorter step here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adc_edge.arrays import Float32, Int64
from adc_edge.edge_runtime.engines.base import Engine
from adc_edge.edge_runtime.engines.onnxruntime import OnnxEngine
from adc_edge.edge_runtime.loop import StepSettings
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.edge_runtime.trunk.memory import keep_freed_memory
from adc_edge.method.ratio import Shape
from adc_edge.onnx.golden import check_golden
from adc_edge.planning.schedule import Costs, step_seconds
from adc_edge.storage.bundle import GOLDEN, TRUNK, Bundle, Compute

if TYPE_CHECKING:  # torch is imported only if the trunk trains or the engine is torch
    from adc_edge.edge_runtime.trunk.trainer import Shim

ENGINE = "engine"  # file in the run directory: what `auto` has chosen
WHERE = "engine-where"  # another: what has computed
_ROUNDS = 3


class LinkSeconds(NamedTuple):
    """What a micro-batch meets on its way, in seconds."""

    rtt: float
    up: float
    down: float


class EngineChoice(NamedTuple):
    """Both schedules, measured here; seconds."""

    engine: str
    onnxruntime: Costs
    torch: Costs
    step_onnxruntime: float
    step_torch: float

    def __str__(self) -> str:
        """In words, for the log."""
        engine, torch = self.onnxruntime, self.torch
        return (
            f"engine auto: {self.engine}. A micro-batch takes ONNX Runtime {1e3 * engine.forward:.0f} ms (and "
            f"{1e3 * engine.recompute:.0f} ms to recompute), PyTorch {1e3 * torch.forward:.0f} ms, the backward "
            f"{1e3 * torch.backward:.0f} ms, the link {1e3 * engine.up:.0f} ms up and {1e3 * engine.down:.0f} ms down; "
            f"a step would take {1e3 * self.step_onnxruntime:.0f} v {1e3 * self.step_torch:.0f} ms, the cloud apart"
        )


def make_shim(bundle: Bundle, settings: ServeSettings) -> Shim:
    """The trunk in PyTorch; it learns unless the run freezes it."""
    import torch

    from adc_edge.edge_runtime.trunk.trainer import Shim

    if settings.trunk == "train":
        keep_freed_memory()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    learning = settings.optimizer if settings.trunk == "train" else None
    return Shim(bundle.manifest.trunk, bundle.path / TRUNK, learning, settings.freeze_first)


def make_engine(
    name: str,
    bundle: Bundle,
    settings: ServeSettings,
    shape: Shape,
    graph: Path | None,
    shim: Shim | None,
    say: Callable[[str], None] = lambda text: None,
) -> Engine:
    """An engine by name, to be entered.

    Args:
        name: onnxruntime, tensorrt or torch.
        bundle: verified.
        settings: of the run.
        shape: of a micro-batch.
        graph: for ONNX Runtime, verified.
        shim: the torch engine's trunk.
        say: told of what takes long.
    """
    if name == "torch":
        from adc_edge.edge_runtime.trunk.trainer import TorchEngine

        assert shim is not None
        return TorchEngine(shim)
    if name == "tensorrt":
        from adc_edge.edge_runtime.engines.tensorrt.engine import TensorRtEngine

        return TensorRtEngine(
            bundle,
            shape.images,
            (shape.clusters, shape.kept - bundle.manifest.prefix),
            settings.computes,
            trains=settings.trunk == "train",
            freeze_first=settings.freeze_first,
            directory=settings.engine_cache,
            say=say,
        )
    assert graph is not None
    return OnnxEngine(graph, bundle.manifest.trunk, settings.threads, settings.freeze_first, settings.provider)


def check_provider(engine: Engine, bundle: Bundle, compute: Compute) -> None:
    """Hold ONNX Runtime to the golden pair where another provider than the CPU computes; the weights are the bundle's.

    The CPU is what others are compared with, TensorRT's own engine is tested when it is built.

    Raises:
        EngineError: the provider computes something else.
    """
    if isinstance(engine, OnnxEngine) and not engine.description.startswith("cpu") and GOLDEN in bundle.manifest.files:
        check_golden(bundle, engine, compute)


def choose(
    engine: OnnxEngine, shim: Shim, images: Float32, init_rows: Int64, slots: int, link: LinkSeconds, cut: StepSettings
) -> EngineChoice:
    """Run one micro-batch both ways, a few times, and compare the steps that would come of it.

    Args:
        engine: entered, with the shim's weights.
        shim: trains the trunk; its weights stay as they are.
        images: a micro-batch, ``[B, C, H, W]``.
        init_rows: rows that start k-means, ``[T]``.
        slots: S, patch tokens to keep.
        link: measured.
        cut: how a step is cut.
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
    return EngineChoice("onnxruntime" if steps[0] <= steps[1] else "torch", ours, theirs, *steps)
