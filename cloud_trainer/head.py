"""The head's training: soft-label cross-entropy, optimizer, evaluation. Knows nothing of sockets."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import save

from adc_edge.errors import ProtocolError
from adc_edge.learning import OptimizerSettings
from adc_edge.optim import Optimizer
from adc_edge.precision import Float32
from adc_edge.split import Head

_HEAD, _OPTIMIZER = "head.", "optimizer."


class Learned(NamedTuple):
    """What a step on the head gives: the loss, the gradient ``[T, k, D]`` if asked for, and its cost."""

    loss: float
    accuracy: float
    gradient: Float32 | None
    seconds: float


class Judged(NamedTuple):
    """What an evaluation gives."""

    correct: int
    loss_sum: float
    seconds: float


class HeadTraining:
    """A head that learns.

    Args:
        head: with its weights.
        optimizer: how it learns.
        device: ``cpu`` or ``cuda``.
        bf16: autocast to bfloat16 (CUDA).
        seed: of what is random in a step (dropout), which is a pure function of it and the step's number.
    """

    def __init__(
        self, head: Head, optimizer: OptimizerSettings, device: str = "cpu", bf16: bool = False, seed: int = 0
    ) -> None:
        self.device, self.bf16, self.seed = torch.device(device), bf16, seed
        self.head = head.to(self.device)
        self.optimizer = Optimizer(self.head, optimizer)
        self.steps = 0

    def learn(self, activations: Float32, soft: Float32, gradient: bool, planned_steps: int) -> Learned:
        """One optimizer step (paper, step 4).

        Args:
            activations: ``[T, k, D]``.
            soft: soft labels ``[T, C]``, rows summing to one.
            gradient: whether the device wants the gradient with respect to ``activations``.
            planned_steps: of the device's run, for the schedule.

        Raises:
            ProtocolError: code ``nan``: the loss or the gradient is not finite; the head stays as it was.
        """
        start = time.monotonic()
        self.head.train()
        torch.manual_seed((self.seed << 32) + self.steps)  # a step that is done again draws the same numbers
        z = torch.from_numpy(activations).to(self.device).requires_grad_(gradient)
        target = torch.from_numpy(soft).to(self.device)
        with self._autocast():
            logits = self.head(z)
            loss = F.cross_entropy(logits.float(), target)
        loss.backward()  # type: ignore[no-untyped-call]
        down = None if z.grad is None else z.grad.float().cpu().numpy()
        if not torch.isfinite(loss) or (down is not None and not np.isfinite(down).all()):
            self.head.zero_grad(set_to_none=True)
            raise ProtocolError(
                f"a loss of {loss.item()}",
                "a finite loss and gradient",
                "lower --lr or set --clip-norm on both sides",
                "nan",
            )
        self.optimizer.step(self.steps, planned_steps)
        self.steps += 1
        value = loss.item()
        accuracy = float(target.gather(1, logits.argmax(dim=1, keepdim=True)).mean())
        return Learned(value, accuracy, down, time.monotonic() - start)

    @torch.no_grad()
    def judge(self, activations: Float32, labels: npt.NDArray[np.int32]) -> Judged:
        """Count correct predictions and sum the loss on whole activations ``[B, N, D]``, labels ``[B]``."""
        start = time.monotonic()
        self.head.eval()
        target = torch.from_numpy(labels.astype(np.int64)).to(self.device)
        with self._autocast():
            logits = self.head(torch.from_numpy(activations).to(self.device)).float()
        correct = int((logits.argmax(dim=1) == target).sum())
        return Judged(correct, float(F.cross_entropy(logits, target, reduction="sum")), time.monotonic() - start)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Weights and optimizer state, for a checkpoint."""
        weights = {_HEAD + name: p.detach().cpu().numpy() for name, p in self.head.vit.state_dict().items()}
        return weights | {_OPTIMIZER + name: value for name, value in self.optimizer.arrays().items()}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]], steps: int) -> None:
        """Take back what ``arrays`` gave after ``steps`` steps."""
        weights = {n[len(_HEAD) :]: torch.from_numpy(np.array(v)) for n, v in arrays.items() if n.startswith(_HEAD)}
        self.head.vit.load_state_dict(weights)
        self.optimizer.restore({n[len(_OPTIMIZER) :]: v for n, v in arrays.items() if n.startswith(_OPTIMIZER)})
        self.steps = steps

    def safetensors(self) -> bytes:
        """The head as head.safetensors."""
        return save({name: p.contiguous().cpu() for name, p in self.head.vit.state_dict().items()})

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)
