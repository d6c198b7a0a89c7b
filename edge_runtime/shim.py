"""The trunk's training on the device: recompute with autograd, backward, optimizer. Plain torch, no timm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from adc_edge.edge_runtime.engine import Int64, Sent, Weights, check_input, without_empty
from adc_edge.learning import OptimizerSettings
from adc_edge.optim import Optimizer
from adc_edge.precision import Float32
from adc_edge.spec import TrunkSpec
from adc_edge.trunk import Trunk

_TRUNK, _OPTIMIZER = "trunk.", "optimizer."


class Shim:
    """A trunk that learns from the gradients that come down.

    Args:
        spec: the trunk's architecture.
        weights: its trunk.safetensors.
        optimizer: how it learns; None for a frozen trunk (``--engine torch --trunk frozen``).
    """

    def __init__(self, spec: TrunkSpec, weights: Path, optimizer: OptimizerSettings | None) -> None:
        self.trunk = Trunk(spec)
        self.trunk.load_state_dict(load_file(weights))
        self.trunk.requires_grad_(optimizer is not None)
        self._optimizer = None if optimizer is None else Optimizer(self.trunk, optimizer)
        self._output: Tensor | None = None

    def compress(self, images: Float32, seeds: Int64, slots: int) -> Sent:
        """Trunk + ADC in PyTorch; with an optimizer, ``apply`` can follow at once."""
        check_input(self.trunk.spec, images, seeds, slots)
        empty = torch.zeros(slots, dtype=torch.int64)
        out = self.trunk.compress(torch.from_numpy(images), torch.from_numpy(seeds), empty)
        used = out.counts > 0
        self._output = out.activations[used]
        activations, *choice = (part.detach().numpy() for part in out)
        return without_empty(activations, *choice)

    def recompute(self, images: Float32, sent: Sent) -> None:
        """Make the activations again with autograd, for the choice that the engine made."""
        self._output = self.trunk.replay(
            torch.from_numpy(images), torch.from_numpy(sent.assignment), torch.from_numpy(sent.tokens)
        )

    def drift(self, sent: Sent) -> float:
        """Largest |engine - PyTorch| over the activations of this step."""
        assert self._output is not None, "recompute first"
        return float(np.abs(sent.activations - self._output.detach().numpy()).max())

    def apply(self, gradient: Float32, step: int, planned_steps: int) -> None:
        """Backpropagate a gradient ``[T, k, D]`` through mean and selection, and take one optimizer step."""
        assert self._output is not None, "recompute first"
        assert self._optimizer is not None, "the trunk is frozen"
        self._output.backward(torch.from_numpy(gradient))  # type: ignore[no-untyped-call]
        self._optimizer.step(step, planned_steps)
        self._output = None

    def weights(self) -> Weights:
        """Views of the parameters by timm name: they follow every later step without a copy."""
        return {name: p.detach().numpy() for name, p in self.trunk.named_parameters()}

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Weights and optimizer state, for a checkpoint."""
        assert self._optimizer is not None
        state = {_TRUNK + name: value for name, value in self.weights().items()}
        return state | {_OPTIMIZER + name: value for name, value in self._optimizer.arrays().items()}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take back what ``arrays`` gave."""
        assert self._optimizer is not None
        self.trunk.load_state_dict({n: torch.from_numpy(np.array(v)) for n, v in _under(_TRUNK, arrays).items()})
        self._optimizer.restore(_under(_OPTIMIZER, arrays))

    def safetensors(self) -> bytes:
        """The trunk as trunk.safetensors."""
        return save(self.trunk.state_dict())


class TorchEngine:
    """The shim's own forward as an engine: no second forward is needed, since its graph serves the backward."""

    name = "torch"
    keeps_graph = True

    def __init__(self, shim: Shim) -> None:
        self._shim = shim

    def __enter__(self) -> TorchEngine:
        """Nothing to load."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to let go."""

    def compress(self, images: Float32, seeds: Int64, slots: int) -> Sent:
        """As ``Shim.compress``."""
        return self._shim.compress(images, seeds, slots)

    @torch.no_grad()
    def whole(self, images: Float32) -> Float32:
        """The bare trunk."""
        z: Float32 = self._shim.trunk(torch.from_numpy(images)).numpy()
        return z

    def refresh(self, weights: Weights) -> None:
        """The shim's weights are this engine's."""


def _under(prefix: str, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}
