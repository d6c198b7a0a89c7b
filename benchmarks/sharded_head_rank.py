"""One rank of sharded_head.py: a head that FSDP2 shares among the ranks v one that each rank holds whole.

torchrun starts it: `torchrun … benchmarks/sharded_head_rank.py JOB DIRECTORY`, JOB being the JSON text of a Job. Each
rank writes its answer to DIRECTORY/rank-N.json.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from harness import medians_ms
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from adc_edge.arrays import Float32
from adc_edge.cloud_trainer.accumulator import StepAccumulator
from adc_edge.cloud_trainer.head import HeadTraining, Learned, not_finite
from adc_edge.cloud_trainer.scheduling.merged import Merging
from adc_edge.method.split import Head, create_vit
from adc_edge.optimizer.settings import OptimizerSettings

How = Literal["replicated", "sharded"]
_TIMEOUT = timedelta(seconds=600)
_PEAK_ANEW = "5"  # to /proc/self/clear_refs: the peak of resident memory starts from now


class Job(msgspec.Struct):
    """The task of the ranks, with its head and messages."""

    task: Literal["agree", "memory", "time"]
    model: str
    model_args: dict[str, Any]
    split: int
    rows: int  # T of a message
    tokens: int  # k of each row
    classes: int
    steps: int  # or turns of `time`
    how: How = "sharded"  # of `memory`


class Message(NamedTuple):
    """The message of a device."""

    activations: Tensor  # [T, k, D]
    soft: Float32  # [T, C]
    images: int


class ShardedHeadTraining(HeadTraining):
    """A head whose parameters, gradients and optimizer state are shared among all ranks by FSDP2.

    All ranks must call ``learn_weighted`` together, each with a message of its own, and then ``update``: each block is
    gathered from all ranks when it is needed. Optimizer and ``update`` are HeadTraining's.
    """

    def __init__(self, head: Head, optimizer: OptimizerSettings) -> None:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for block in head.vit.blocks:
            if not isinstance(block, nn.Identity):
                fully_shard(block, mesh=mesh)
        fully_shard(head, mesh=mesh)
        super().__init__(head, optimizer)

    def learn_weighted(self, message: Message, weight: float, step: StepAccumulator) -> Learned:
        """Forward and backward of this rank's message; adds this rank's shards of Σ weight · gradient over all ranks.

        ``torch.autograd.grad``, which ``learn`` uses, knows nothing of shards: only ``backward`` reduces to them.
        """
        start = time.monotonic()
        self.head.train()
        z, target = message.activations.detach().requires_grad_(), self.here(message.soft)
        logits = self.head(z).float()
        loss = F.cross_entropy(logits, target)
        scale = weight * dist.get_world_size()  # FSDP2 takes the mean over the ranks, and the sum is wanted
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        if not math.isfinite(loss.item()) or z.grad is None:
            raise not_finite(loss.item())
        gradients = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        step.add(gradients, loss.item(), float(target.gather(1, logits.argmax(dim=1, keepdim=True)).mean()))
        return Learned(loss.item(), step.accuracy, z.grad / scale, time.monotonic() - start)


class ReplicatedHeadTraining(HeadTraining):
    """A head that each rank holds whole; the gradients are summed over all ranks in one flat tensor."""

    def learn_weighted(self, message: Message, weight: float, step: StepAccumulator) -> Learned:
        """Forward and backward of this rank's message; adds Σ weight · gradient over all ranks."""
        learned = self.learn(message.activations, message.soft, True, step)
        flat = torch.cat([gradient.flatten() for gradient in step.gradients if gradient is not None])
        dist.all_reduce(flat.mul_(weight))
        parts = torch.split(flat, [parameter.numel() for parameter in self.parameters])
        step.gradients = [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]
        return learned


def make_head(job: Job) -> Head:
    """The same head on all ranks."""
    torch.manual_seed(0)
    return Head(create_vit(job.model, job.model_args, job.classes), job.split)


def message_of(job: Job, dim: int, number: int, step: int) -> Message:
    """The message of a device for a step; the devices' messages hold different numbers of images."""
    random = np.random.default_rng([number, step])
    activations = torch.from_numpy(random.standard_normal((job.rows, job.tokens, dim), np.float32))
    soft = random.random((job.rows, job.classes), np.float32) ** 8
    return Message(activations, soft / soft.sum(axis=1, keepdims=True), job.rows * (1 + 2 * number))


def weights_of(messages: list[Message]) -> list[float]:
    """The weight of each message in a step of all: its images over the mean, as ``--merge-passes sum`` has it."""
    mean = sum(message.images for message in messages) / len(messages)
    return [message.images / mean for message in messages]


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all ranks' shards; all ranks call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def difference(found: Tensor, expected: Tensor) -> float:
    """The norm of a difference over the expected norm, in float64."""
    expected = expected.double()
    return float((found.double() - expected).norm() / expected.norm())


def agree(job: Job) -> dict[str, float]:
    """Largest relative differences between the sharded head on all ranks and one process that learns all messages."""
    rank, world, settings = dist.get_rank(), dist.get_world_size(), OptimizerSettings()
    one, shared = HeadTraining(make_head(job), settings), ShardedHeadTraining(make_head(job), settings)
    dim, merging = one.head.vit.embed_dim, Merging("sum", sys.maxsize)
    worst = {"loss": 0.0, "head gradient": 0.0, "activation gradient": 0.0}
    for step in range(job.steps):
        messages = [message_of(job, dim, number, step) for number in range(world)]
        weight, total = weights_of(messages)[rank], StepAccumulator(1)
        found = shared.learn_weighted(messages[rank], weight, total)
        totals = [StepAccumulator(1) for _ in messages]
        expected = merging.learn(one, messages, totals)[rank]
        assert found.gradient is not None
        assert expected.gradient is not None
        gradients = [whole(g).flatten() for g in total.gradients if g is not None]
        references = [g.flatten() for g in totals[0].gradients if g is not None]
        here = {
            "loss": abs(found.loss / expected.loss - 1),
            "head gradient": difference(torch.cat(gradients), torch.cat(references)),
            "activation gradient": difference(found.gradient, expected.gradient),
        }
        worst = {name: max(worst[name], value) for name, value in here.items()}
        shared.update(total, 0)
        one.update(totals[0], 0)
    weights = [whole(p).detach().flatten() for p in shared.parameters]
    mine = [p.detach().flatten() for p in one.parameters]
    return worst | {f"weights after {job.steps} steps": difference(torch.cat(weights), torch.cat(mine))}


def made(job: Job, how: How) -> ShardedHeadTraining | ReplicatedHeadTraining:
    kind = ShardedHeadTraining if how == "sharded" else ReplicatedHeadTraining
    return kind(make_head(job), OptimizerSettings())


def stepping(job: Job, training: ShardedHeadTraining | ReplicatedHeadTraining) -> Iterator[StepAccumulator]:
    """Do a step each time; yields between learning and the optimizer's step."""
    world, rank = dist.get_world_size(), dist.get_rank()
    messages = [message_of(job, training.head.vit.embed_dim, number, 0) for number in range(world)]
    while True:
        total = StepAccumulator(1)
        training.learn_weighted(messages[rank], weights_of(messages)[rank], total)
        yield total
        training.update(total, 0)


def held_mb(tensors: Iterator[Tensor | None]) -> float:
    """Size of what this rank holds of some tensors."""
    own = (t.to_local() if isinstance(t, DTensor) else t for t in tensors if t is not None)
    return sum(t.nbytes for t in own) / 1e6


def memory(job: Job) -> dict[str, float]:
    """The memory that this rank holds, counted, and its peak in a step, beyond what was resident before the head."""
    before = resident_mb("VmRSS")
    training = made(job, job.how)
    steps = stepping(job, training)
    for _ in range(2):
        total = next(steps)
    gradients = held_mb(iter(total.gradients))
    next(steps)
    del total
    Path("/proc/self/clear_refs").write_text(_PEAK_ANEW)
    for _ in range(job.steps):
        next(steps)
    state = (v for values in training.optimizer._torch.state.values() for v in values.values())
    return {
        "parameters": held_mb(iter(training.parameters)),
        "gradients": gradients,
        "optimizer state": held_mb(state),
        "peak": resident_mb("VmHWM") - before,
    }


def resident_mb(name: str) -> float:
    """A line of /proc/self/status in MB: VmRSS, resident memory, or VmHWM, its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"no {name} in /proc/self/status")


def loopback_bytes() -> int:
    """Bytes that loopback has carried in this network namespace."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[0])
    raise RuntimeError("no loopback device in /proc/net/dev")


def times(job: Job) -> dict[str, float]:
    """Median time of a step, and what a rank sends in one; the heads take turns."""
    cases: dict[str, Callable[[], object]] = {}
    found: dict[str, float] = {}
    for how in ("replicated", "sharded"):
        steps = stepping(job, made(job, how))
        next(steps)
        next(steps)
        dist.barrier()
        before = loopback_bytes()
        next(steps)
        dist.barrier()
        found[f"{how}, sent MB"] = (loopback_bytes() - before) / dist.get_world_size() / 1e6
        cases[how] = steps.__next__
    alone = HeadTraining(make_head(job), OptimizerSettings())
    message = message_of(job, alone.head.vit.embed_dim, 0, 0)

    def without_exchange() -> None:
        total = StepAccumulator(1)
        alone.learn(message.activations, message.soft, True, total)
        alone.update(total, 0)

    cases["without exchange"] = without_exchange
    return found | {f"{name}, ms": ms for name, ms in medians_ms(cases, job.steps).items()}


@contextmanager
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def main() -> None:
    text, directory = sys.argv[1:]
    job = msgspec.json.decode(text, type=Job)
    torch.set_num_threads(1)
    with process_group():
        tasks: dict[str, Callable[[Job], dict[str, float]]] = {"agree": agree, "memory": memory, "time": times}
        found = tasks[job.task](job)
    Path(directory, f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
