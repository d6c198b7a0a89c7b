"""Trunk + ADC under PyTorch: the forward of the trunk that trains."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from torch import Tensor

from adc_edge.arrays import Float32, Int64, Weights
from adc_edge.edge_runtime.trunk.trainer import Shim
from adc_edge.method.compressed import CompressedBatch


class TorchEngine:
    """The shim's own forward as an engine. Its graph serves the backward, so nothing is computed twice."""

    name = "torch"
    keeps_graph = True
    reads_gpu = False

    def __init__(self, shim: Shim) -> None:
        self._shim = shim
        self.description = shim.device.type

    def __enter__(self) -> TorchEngine:
        """Return the engine; there is nothing to load."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing."""

    def compress(self, images: Float32, init_rows: Int64, slots: int) -> CompressedBatch:
        """Run ``Shim.compress``."""
        return self._shim.compress(images, init_rows, slots)

    def full_output(self, images: Float32) -> Float32:
        """Return the output of the bare trunk."""
        return self._shim.full_output(images)

    def refresh(self, weights: Weights) -> None:
        """Do nothing: the shim's weights are this engine's."""

    def refresh_on_gpu(self, weights: Mapping[str, Tensor]) -> None:
        """Do nothing, as ``refresh``."""
