"""The interface of engines, and checks that they share. An engine is cheap to build; entering it loads the model."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from adc_edge.arrays import Float32, Int64, Weights
from adc_edge.errors import SettingError
from adc_edge.method.compressed import CompressedBatch, Compressor, drop_empty
from adc_edge.method.spec import TrunkSpec
from adc_edge.storage.bundle import OUTPUTS

if TYPE_CHECKING:  # a device with a frozen trunk has no torch
    from torch import Tensor


class Engine(Compressor, Protocol):
    """Trunk + ADC with weights that can be replaced."""

    name: str
    description: str  # processor, provider and precision that it runs with, for people; known once it is entered
    keeps_graph: bool  # its forward is the shim's own, with autograd: nothing is left to recompute
    reads_gpu: bool  # it computes on a GPU and takes weights there by address; known once it is entered

    def __enter__(self) -> Engine:
        """Load the model."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the model."""

    def full_output(self, images: Float32) -> Float32:
        """Return the trunk's output ``[B, N, D]`` for evaluation, nothing merged or dropped."""

    def refresh(self, weights: Weights) -> None:
        """Use these weights, by timm name, from the next call on."""

    def refresh_on_gpu(self, weights: Mapping[str, Tensor]) -> None:
        """Use these weights, which lie on the GPU, from the next call on; only with ``reads_gpu``."""


class GraphEngine:
    """The base of engines that run one of the bundle's graphs: it makes a batch of the graph's outputs.

    Args:
        spec: the trunk's architecture.
        freeze_first: K blocks that do not learn; with K > 0 ``CompressedBatch.hidden`` holds what leaves block K.

    Raises:
        SettingError: K leaves no block to train.
    """

    keeps_graph = False

    def __init__(self, spec: TrunkSpec, freeze_first: int) -> None:
        check_freeze_first(spec, freeze_first)
        self._spec = spec
        self._hidden = [f"hidden_{freeze_first}"] if freeze_first else []

    def compress(self, images: Float32, init_rows: Int64, slots: int) -> CompressedBatch:
        """Run the graph; raises SettingError on inputs that do not fit it."""
        outputs = self._run(OUTPUTS + self._hidden, images, init_rows, slots)
        sent = CompressedBatch(*drop_empty(*outputs[: len(OUTPUTS)]))
        return sent._replace(hidden=outputs[-1]) if self._hidden else sent

    def full_output(self, images: Float32) -> Float32:
        """Return the trunk's output by ADC itself: a cluster for each image, all tokens kept, put back in order."""
        everyone = np.arange(len(images), dtype=np.int64)
        sent = CompressedBatch(*drop_empty(*self._run(OUTPUTS, images, everyone, self._spec.patches)))
        if not np.array_equal(sent.assignment, everyone):  # images alike to the last bit of their attention
            return np.concatenate([self.full_output(images[i : i + 1]) for i in everyone])
        z = np.empty_like(sent.activations)
        np.put_along_axis(z, sent.tokens[:, :, None], sent.activations, axis=1)
        return z

    def _run(self, outputs: list[str], images: Float32, init_rows: Int64, slots: int) -> list[Any]:
        """Return these outputs of the graph."""
        raise NotImplementedError


def check_freeze_first(spec: TrunkSpec, blocks: int) -> None:
    """Raise SettingError unless freezing the first ``blocks`` leaves one to train."""
    if not 0 <= blocks < spec.depth:
        raise SettingError(
            f"--freeze-first {blocks} of {spec.depth} blocks",
            f"0 to {spec.depth - 1}",
            "freeze fewer; to freeze the whole trunk use --trunk frozen",
        )


def check_input(spec: TrunkSpec, images: Float32, init_rows: Int64, slots: int) -> None:
    """Check dtypes and shapes before a kernel does, showing both sides.

    Raises:
        SettingError: inputs that the bundle does not take.
    """
    shape = (images.shape[0], spec.channels, *spec.image_size)
    faults = []
    if images.dtype != np.float32 or images.shape != shape:
        faults.append(_fault("images", images, "float32", ["B", *shape[1:]]))
    if init_rows.dtype != np.int64 or init_rows.ndim != 1 or not 1 <= len(init_rows) <= len(images):
        faults.append(_fault("seeds", init_rows, "int64", [f"1 to {len(images)}"]))
    elif len(np.unique(init_rows)) != len(init_rows) or init_rows.min() < 0 or init_rows.max() >= len(images):
        faults.append(f"seeds {init_rows.tolist()}: expected distinct rows of the batch")
    if not 1 <= slots <= spec.patches:
        faults.append(f"{slots} slots: expected 1 to {spec.patches}")
    if faults:
        raise SettingError(
            "; ".join(faults), "inputs as the bundle's manifest describes", "prepare them by its preprocessing"
        )


def _fault(name: str, value: npt.NDArray[Any], dtype: str, shape: list[Any]) -> str:
    return f"{name} {value.dtype} {list(value.shape)}: expected {dtype} {shape}"
