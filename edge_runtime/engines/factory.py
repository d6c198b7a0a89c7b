"""Make engines and the trunk that trains, and check an engine before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adc_edge.defaults import ShimDevice
from adc_edge.edge_runtime.engines.base import Engine
from adc_edge.edge_runtime.engines.onnxruntime import OnnxEngine
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.edge_runtime.trunk.memory import keep_freed_memory
from adc_edge.machine.threads import thread_count
from adc_edge.method.ratio import Shape
from adc_edge.onnx.golden import check_golden
from adc_edge.storage.bundle import GOLDEN, TRUNK, Bundle, Compute

if TYPE_CHECKING:  # torch is imported only if the trunk trains or the engine is torch
    from adc_edge.edge_runtime.trunk.trainer import Shim

ENGINE = "engine"  # file in the run directory: the engine that `auto` has chosen
WHERE = "engine-where"  # file in the run directory: the engine that has computed


def make_shim(bundle: Bundle, settings: ServeSettings, device: ShimDevice = "cpu") -> Shim:
    """Return the trunk in PyTorch on ``device``; it learns unless the run freezes it."""
    import torch

    from adc_edge.edge_runtime.trunk.trainer import Shim

    if settings.trunk == "train":
        keep_freed_memory()
    torch.set_num_threads(thread_count(settings.threads))
    learning = settings.optimizer if settings.trunk == "train" else None
    return Shim(bundle.manifest.trunk, bundle.path / TRUNK, learning, settings.freeze_first, device)


def make_engine(
    name: str,
    bundle: Bundle,
    settings: ServeSettings,
    shape: Shape,
    graph: Path | None,
    shim: Shim | None,
) -> Engine:
    """Return an engine by name, to be entered.

    Args:
        name: onnxruntime, tensorrt or torch.
        bundle: verified.
        settings: the run's.
        shape: a micro-batch's.
        graph: ONNX Runtime's file, verified.
        shim: the torch engine's trunk.
    """
    if name == "torch":
        from adc_edge.edge_runtime.engines.torch import TorchEngine

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
        )
    assert graph is not None
    return OnnxEngine(graph, bundle.manifest.trunk, settings.threads, settings.freeze_first, settings.provider)


def check_provider(engine: Engine, bundle: Bundle, compute: Compute) -> None:
    """Check the golden pair if ONNX Runtime computes with another provider than the CPU; the weights are the bundle's.

    The CPU is the reference of the others. A TensorRT engine is tested when it is built.

    Raises:
        EngineError: the provider computes something else.
    """
    if isinstance(engine, OnnxEngine) and not engine.description.startswith("cpu") and GOLDEN in bundle.manifest.files:
        check_golden(bundle, engine, compute)
