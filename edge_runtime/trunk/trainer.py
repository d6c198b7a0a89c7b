"""Training of the trunk on the device: recompute with autograd, backward, optimizer. Plain torch, no timm."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load, save
from torch import Tensor

from adc_edge.arrays import Float32, Int64, Weights
from adc_edge.defaults import ShimDevice
from adc_edge.edge_runtime.engines.base import check_freeze_first, check_input
from adc_edge.method.compressed import CompressedBatch, drop_empty
from adc_edge.method.spec import TrunkSpec
from adc_edge.method.trunk import Trunk
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.optimizer.torch_optimizer import Optimizer
from adc_edge.storage.halves import TRUNK_PREFIX

_OPTIMIZER = "optimizer."


class Shim:
    """A trunk that learns from the trainer's gradients.

    A step may have several micro-batches in flight: the output of each waits here, in order, until its gradient
    arrives. Gradients accumulate until ``update``.

    Args:
        spec: the trunk's architecture.
        weights: the trunk.safetensors of the bundle.
        optimizer: settings of the optimizer; None for a frozen trunk (``--engine torch --trunk frozen``).
        freeze_first: K; the embedding and blocks 1..K do not learn.
        device: where everything is computed; arrays in host memory come in and go out.

    Raises:
        SettingError: K leaves no block to train.
    """

    def __init__(
        self,
        spec: TrunkSpec,
        weights: Path,
        optimizer: OptimizerSettings | None,
        freeze_first: int = 0,
        device: ShimDevice = "cpu",
    ) -> None:
        check_freeze_first(spec, freeze_first)
        self.device = torch.device(device)
        if self.on_gpu:
            torch.backends.cudnn.allow_tf32 = False  # in TF32 the scores of a batch cluster otherwise
        with self.device:
            self.trunk = Trunk(spec)
        self.trunk.load_state_dict(load(weights.read_bytes()))
        learning = self.trunk.blocks[freeze_first:] if freeze_first else self.trunk
        self.trunk.requires_grad_(False)
        learning.requires_grad_(optimizer is not None)
        self._frozen_blocks = freeze_first
        self._optimizer = None if optimizer is None else Optimizer(self.trunk, optimizer)
        self.learns = optimizer is not None  # False also once a trunk that has learned is frozen
        self._waiting: deque[Tensor] = deque()  # [T, k, D] each, with their graphs

    @property
    def on_gpu(self) -> bool:
        """Whether its tensors lie in a GPU's memory."""
        return self.device.type == "cuda"

    @property
    def waiting(self) -> int:
        """Number of outputs whose gradient has not arrived yet."""
        return len(self._waiting)

    def compress(self, images: Float32, init_rows: Int64, slots: int) -> CompressedBatch:
        """Compute trunk + ADC in PyTorch; if it ``learns``, the output waits for ``backward``."""
        check_input(self.trunk.spec, images, init_rows, slots)
        empty = torch.zeros(slots, dtype=torch.int64, device=self.device)
        with torch.set_grad_enabled(self.learns):
            out = self.trunk.compress(self._here(images), self._here(init_rows), empty)
        if self.learns:
            self._waiting.append(out.activations[out.counts > 0])
        activations, *choice = (part.detach().cpu().numpy() for part in out)
        return CompressedBatch(*drop_empty(activations, *choice))

    @torch.no_grad()
    def full_output(self, images: Float32) -> Float32:
        """Return the output of the bare trunk, ``[B, N, D]``."""
        z: Float32 = self.trunk(self._here(images)).cpu().numpy()
        return z

    def recompute(self, images: Float32, sent: CompressedBatch) -> None:
        """Recompute the activations with autograd, for the engine's choice of clusters and tokens; they wait likewise.

        Frozen blocks are not recomputed where the engine gave their output.
        """
        x, start = (images, 0) if sent.hidden is None else (sent.hidden, self._frozen_blocks)
        choice = self._here(sent.assignment), self._here(sent.tokens)
        self._waiting.append(self.trunk.replay(self._here(x), *choice, start=start))
        self._settle()

    def drift(self, sent: CompressedBatch) -> float:
        """Largest |engine - PyTorch| over the activations of the oldest waiting output."""
        assert self._waiting, "recompute first"
        return float(np.abs(sent.activations - self._waiting[0].detach().cpu().numpy()).max())

    def backward(self, gradient: Float32) -> None:
        """Backpropagate the oldest waiting output's gradient ``[T, k, D]``, and accumulate."""
        assert self._waiting, "recompute first"
        self._waiting.popleft().backward(self._here(gradient))  # type: ignore[no-untyped-call]
        self._settle()

    def update(self, step: int, planned_steps: int) -> None:
        """Do one optimizer step with the accumulated gradients, and clear them."""
        assert self._optimizer is not None, "the trunk is frozen"
        assert not self._waiting, "outputs still wait for their gradients"
        self._optimizer.step(step, planned_steps)
        self._settle()

    def drop(self) -> None:
        """Give a step up: drop waiting outputs and accumulated gradients."""
        self._waiting.clear()
        self.trunk.zero_grad(set_to_none=True)

    def weights(self) -> Weights:
        """The parameters by timm name: on the CPU views, which follow every later step; of a GPU copies."""
        return {name: p.cpu().numpy() for name, p in self.tensors().items()}

    def tensors(self) -> dict[str, Tensor]:
        """The parameters by timm name, where they lie."""
        return {name: p.detach() for name, p in self.trunk.named_parameters()}

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Weights and optimizer state, for a checkpoint."""
        assert self._optimizer is not None
        state = {TRUNK_PREFIX + name: value for name, value in self.weights().items()}
        return state | {_OPTIMIZER + name: value for name, value in self._optimizer.arrays().items()}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Restore the arrays of a checkpoint."""
        assert self._optimizer is not None
        self.load(_under(TRUNK_PREFIX, arrays))
        self._optimizer.restore(_under(_OPTIMIZER, arrays))

    def load(self, weights: Weights) -> None:
        """Set every parameter, by timm name; the optimizer's state stays as it is."""
        self.trunk.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})

    def safetensors(self) -> bytes:
        """The content of trunk.safetensors."""
        return save(self.trunk.state_dict())

    def _here(self, array: npt.NDArray[Any]) -> Tensor:
        """The array on this device; on the CPU the same memory."""
        return torch.from_numpy(array).to(self.device)

    def _settle(self) -> None:
        """Wait for the GPU, so that each phase of a step is charged with its own time."""
        if self.on_gpu:
            torch.cuda.synchronize()


def _under(prefix: str, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}
