"""Training of the head: soft-label cross-entropy, optimizer, evaluation. Knows nothing of sockets."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from adc_edge.arrays import Float32
from adc_edge.cloud_trainer.accumulator import StepAccumulator
from adc_edge.errors import ProtocolError
from adc_edge.method.split import Head
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.optimizer.torch_optimizer import Optimizer
from adc_edge.storage.halves import HEAD_PREFIX

_OPTIMIZER = "optimizer."


class Learned(NamedTuple):
    """Result of one micro-batch: loss, accuracy, the gradient ``[T, k, D]`` if asked for, and the time it took."""

    loss: float
    accuracy: float
    gradient: Tensor | None  # on the head's device
    seconds: float


class Judged(NamedTuple):
    """Result of an evaluation message."""

    correct: int
    loss_sum: float
    seconds: float


class HeadTraining:
    """A head and its optimizer.

    Args:
        head: the head with its weights.
        optimizer: settings of the optimizer.
        device: ``cpu`` or ``cuda``.
        bf16: autocast to bfloat16 (CUDA).
        seed: random seed for dropout; each step draws from (seed, step).
        compiled: run the head through torch.compile; parts that it cannot compile run as they are.
    """

    def __init__(
        self,
        head: Head,
        optimizer: OptimizerSettings,
        device: str = "cpu",
        bf16: bool = False,
        seed: int = 0,
        compiled: bool = False,
    ) -> None:
        self.device, self.bf16, self.seed = torch.device(device), bf16, seed
        self.head = head.to(self.device)
        self.optimizer = Optimizer(self.head, optimizer)
        self.compiled, self._forward = compiled, _compiled(self.head) if compiled else self.head
        self.parameters = [p for p in self.head.parameters() if p.requires_grad]
        self.steps = 0

    @property
    def outputs(self) -> int:
        """Number of the head's outputs."""
        return int(self.head.vit.num_classes)

    def learn(self, activations: Tensor, soft: Float32, gradient: bool, step: StepAccumulator) -> Learned:
        """Forward and backward of one micro-batch (paper, step 4); ``update`` follows the last of a step.

        Args:
            activations: float32 ``[T, k, D]``, on the head's device.
            soft: soft labels ``[T, C]``, rows summing to one.
            gradient: whether the device wants the gradient of the step's loss, the mean over its micro-batches, with
                respect to ``activations``.
            step: sums over the micro-batches before; this one is added.

        Raises:
            ProtocolError: code ``nan``: the loss or the gradient is not finite; head and ``step`` stay as they were.
        """
        start = time.monotonic()
        self.head.train()
        self.start_generators(step.learned)
        z = activations.detach().requires_grad_(gradient)
        target = self.here(soft)
        with self.autocast():
            logits = self._forward(z)
            loss = F.cross_entropy(logits.float(), target)
        wanted = self.parameters + ([z] if gradient else [])
        gradients = torch.autograd.grad(loss * step.share, wanted, allow_unused=True)
        value = loss.item()
        finite = not gradient or math.isfinite(gradients[-1].sum(dtype=torch.float64).item())  # no sum overflows there
        if not math.isfinite(value) or not finite:
            raise not_finite(value)
        accuracy = float(target.gather(1, logits.argmax(dim=1, keepdim=True)).mean())
        step.add(gradients[: len(self.parameters)], value, accuracy)
        return Learned(value, accuracy, gradients[-1] if gradient else None, time.monotonic() - start)

    def update(self, step: StepAccumulator, planned_steps: int) -> None:
        """Do the optimizer's step with the gradients of all micro-batches, and count the step.

        Args:
            step: sums over all micro-batches of the step. Without gradients it is only counted: they are with another
                step of the same pass.
            planned_steps: length of the head's training over all devices, for the schedule; 0: not known.
        """
        if step.gradients:
            for parameter, total in zip(self.parameters, step.gradients, strict=True):
                parameter.grad = total
            self.optimizer.step(self.steps, planned_steps)
        self.steps += 1

    @torch.no_grad()
    def logits(self, activations: Tensor) -> Tensor:
        """Return float32 logits ``[T, C]`` for activations ``[T, k, D]`` on the head's device; nothing is learned."""
        self.head.eval()
        with self.autocast():
            found: Tensor = self.head(activations).float()
        return found

    @torch.no_grad()
    def judge(self, activations: Tensor, labels: npt.NDArray[np.int32]) -> Judged:
        """Count correct predictions and sum the loss on whole activations ``[B, N, D]`` on the head's device."""
        start = time.monotonic()
        target = torch.from_numpy(labels.astype(np.int64)).to(self.device)
        logits = self.logits(activations)
        correct = int((logits.argmax(dim=1) == target).sum())
        return Judged(correct, float(F.cross_entropy(logits, target, reduction="sum")), time.monotonic() - start)

    def eager(self) -> HeadTraining:
        """Return a view of the same head without torch.compile, which would compile for each shape that is tried."""
        view = copy.copy(self)
        view.compiled, view._forward = False, self.head
        return view

    def fixed_copy(self) -> HeadTraining:
        """Return a view of a copy of the head, which no step changes; it is there to judge."""
        view = self.eager()
        view.head = copy.deepcopy(self.head)
        return view

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Weights and optimizer state, for a checkpoint."""
        weights = {HEAD_PREFIX + name: p.detach().cpu().numpy() for name, p in self.head.vit.state_dict().items()}
        return weights | {_OPTIMIZER + name: value for name, value in self.optimizer.arrays().items()}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]], steps: int) -> None:
        """Restore weights and optimizer state that ``arrays`` gave after ``steps`` steps."""
        weights = {
            n[len(HEAD_PREFIX) :]: torch.from_numpy(np.array(v)) for n, v in arrays.items() if n.startswith(HEAD_PREFIX)
        }
        self.head.vit.load_state_dict(weights)
        self.optimizer.restore({n[len(_OPTIMIZER) :]: v for n, v in arrays.items() if n.startswith(_OPTIMIZER)})
        self.steps = steps

    def safetensors(self) -> bytes:
        """The bytes of head.safetensors."""
        return save({name: p.contiguous().cpu() for name, p in self.head.vit.state_dict().items()})

    def start_generators(self, micro_batch: int) -> None:
        """Seed the random numbers of a micro-batch: one that is repeated draws the same."""
        seed = self._seed(micro_batch)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed formats a traceback where no GPU is in use
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _seed(self, micro_batch: int) -> int:
        words = np.random.SeedSequence([self.seed, self.steps, micro_batch]).generate_state(1, np.uint64)
        return int(words[0] >> np.uint64(1))

    def here(self, array: Float32) -> Tensor:
        """Return an array on the head's device."""
        tensor = torch.from_numpy(array)
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)  # the copy overlaps with queued work

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the head runs: bfloat16 if that is asked for."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)


def not_finite(loss: float) -> ProtocolError:
    """Return the refusal of a step whose loss or gradient is not finite."""
    remedy = "lower --lr or set --clip-norm on both sides"
    return ProtocolError(f"a loss of {loss}", "a finite loss and gradient", remedy, "nan")


def _compiled(head: Head) -> Callable[[Tensor], Tensor]:
    """``head`` through torch.compile, anew for each shape: T and k change rarely (when a cluster is empty)."""
    torch._dynamo.config.suppress_errors = True  # without a compiler, or beyond its limit of shapes, it runs eagerly
    compiled: Callable[[Tensor], Tensor] = torch.compile(head, dynamic=False)
    return compiled
