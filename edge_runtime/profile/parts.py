"""Seconds and bytes of each part of the trunk in PyTorch, from hooks where one part ends and the next begins.

The parts are the embedding and blocks 1..split. The last block has no module of its own to hook: it ends with the call.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adc_edge.arrays import Float32, Int64
from adc_edge.method.compressed import CompressedBatch

if TYPE_CHECKING:  # a device with a frozen trunk has no torch
    from torch import Tensor

    from adc_edge.edge_runtime.trunk.trainer import Shim


class PassSeconds(NamedTuple):
    """Seconds of one pass by part: the embedding, then blocks 1..split."""

    recompute: list[float]
    backward: list[float]


class _Stamps:
    """Times at which parts end, forward and backward."""

    def __init__(self, shim: Shim) -> None:
        self._shim = shim
        self.forward: list[float] = []
        self.backward: list[float] = []

    def now(self) -> float:
        if self._shim.on_gpu:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def ended(self, module: Any, arguments: Any, output: Tensor) -> None:
        """Note that a part ends; its output's gradient is the end of the next part's backward."""
        self.forward.append(self.now())
        if output.requires_grad:
            output.register_hook(lambda gradient: self.backward.append(self.now()))  # type: ignore[no-untyped-call]


@contextmanager
def _stamped(shim: Shim) -> Iterator[_Stamps]:
    stamps, trunk = _Stamps(shim), shim.trunk
    hooks = [part.register_forward_hook(stamps.ended) for part in (trunk.norm_pre, *trunk.blocks[:-1])]
    try:
        yield stamps
    finally:
        for hook in hooks:
            hook.remove()


def forward_seconds(shim: Shim, images: Float32, init_rows: Int64, slots: int) -> list[float]:
    """Return the seconds of a forward without autograd, by part."""
    import torch

    with _stamped(shim) as stamps, torch.no_grad():
        start = stamps.now()
        shim.compress(images, init_rows, slots)
        end = stamps.now()
    shim.drop()
    return _differences(start, stamps.forward, end)


def pass_seconds(shim: Shim, images: Float32, sent: CompressedBatch) -> PassSeconds:
    """Return the seconds of a recomputation and its backward, by part. Gradients accumulate, as in a step."""
    gradient = np.full(sent.activations.shape, 1e-3, np.float32)
    with _stamped(shim) as stamps:
        start = stamps.now()
        shim.recompute(images, sent)
        middle = stamps.now()
        shim.backward(gradient)
        end = stamps.now()
    return PassSeconds(_differences(start, stamps.forward, middle), _differences(middle, stamps.backward, end)[::-1])


def graph_bytes(shim: Shim, images: Float32, sent: CompressedBatch) -> list[int]:
    """Return the bytes that autograd keeps for an image's backward, by part; weights and images are not counted."""
    from torch.autograd.graph import saved_tensors_hooks

    known = {p.untyped_storage().data_ptr() for p in shim.trunk.parameters()} | {images.ctypes.data}
    found = [0] * (1 + len(shim.trunk.blocks))

    with _stamped(shim) as stamps:

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                known.add(storage.data_ptr())
                found[len(stamps.forward)] += storage.nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            shim.recompute(images, sent)
    shim.drop()
    return [size // len(images) for size in found]


def median_pass(passes: Sequence[PassSeconds]) -> PassSeconds:
    """Return the median of each part's seconds."""
    return PassSeconds(
        *([statistics.median(part) for part in zip(*phase, strict=True)] for phase in zip(*passes, strict=True))
    )


def _differences(start: float, ends: Sequence[float], end: float) -> list[float]:
    return [float(seconds) for seconds in np.diff([start, *ends, end])]
