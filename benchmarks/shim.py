"""Time to train the trunk compared with its own forward, and alternatives that were tried. CPU, PyTorch.

    python benchmarks/shim.py --json out/shim.json

Every alternative takes turns with our implementation. A ratio above 1 means that ours is faster. The malloc settings
belong to a process, so two child processes that take turns are compared.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from harness import Result, arguments, compare, medians_ms, show
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from adc_edge.arrays import Float32
from adc_edge.edge_runtime.trunk.memory import keep_freed_memory
from adc_edge.edge_runtime.trunk.trainer import Shim
from adc_edge.method import adc
from adc_edge.method import trunk as trunk_module
from adc_edge.method.compressed import CompressedBatch
from adc_edge.method.ratio import Ratio
from adc_edge.method.split import create_vit, split_vit
from adc_edge.optimizer.settings import OptimizerSettings

Alternative = tuple[Any, str, Callable[..., Any]]  # owner, attribute, replacement


class Case(NamedTuple):
    """A shim and one micro-batch for it."""

    shim: Shim
    images: Float32  # [B, C, H, W]
    sent: CompressedBatch
    gradient: Float32  # [T, k, D]

    def forward(self) -> None:
        """The trunk's own forward."""
        with torch.no_grad():
            self.shim.trunk(torch.from_numpy(self.images))

    def recompute(self) -> None:
        """Recompute without an autograd graph."""
        with torch.no_grad():
            self.shim.recompute(self.images, self.sent)
        self.shim.drop()

    def train(self) -> None:
        """Recompute and backward."""
        self.shim.recompute(self.images, self.sent)
        self.shim.backward(self.gradient)

    def update(self) -> None:
        """One optimizer step for every parameter, without a backward."""
        for parameter in self.shim.trunk.parameters():
            parameter.grad = parameter.detach()
        self.shim.update(0, 1)


def make_case(split: int, size: int, batch: int = 32, freeze_first: int = 0, xi: float = 0.1) -> Case:
    """DeiT-T with random weights and images."""
    torch.manual_seed(0)
    trunk, _ = split_vit(create_vit("deit_tiny_patch16_224", {"img_size": size}, None), split)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trunk.safetensors"
        save_file(trunk.state_dict(), path)
        shim = Shim(trunk.spec, path, OptimizerSettings(), freeze_first)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, 3, size, size)).astype(np.float32)
    shape = Ratio(xi=xi).shape(batch, trunk.spec.tokens, trunk.spec.prefix)
    init_rows = rng.permutation(batch)[: shape.clusters].astype(np.int64)
    sent = shim.compress(images, init_rows, shape.kept - trunk.spec.prefix)
    shim.drop()
    if freeze_first:
        with torch.no_grad():
            hidden = shim.trunk.states(torch.from_numpy(images))[freeze_first].numpy()
        sent = sent._replace(hidden=hidden)
    return Case(shim, images, sent, rng.standard_normal(sent.activations.shape).astype(np.float32))


@contextmanager
def instead(*alternatives: Alternative) -> Iterator[None]:
    """Replace parts of our implementation by alternatives."""
    patches = [mock.patch.object(*alternative) for alternative in alternatives]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def mean_after_fc2(
    self: Any, x: Tensor, q: Tensor, k: Tensor, v: Tensor, assignment: Tensor, clusters: Tensor
) -> Tensor:
    return adc.cluster_mean(self.finish(x, q, k, v), assignment, clusters)


def transposed_first(self: Any, h: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
    rows = slice(first * h.shape[-1], last * h.shape[-1])
    parts = F.linear(h, self.qkv.weight[rows], self.qkv.bias[rows])
    split = parts.reshape(h.shape[0], h.shape[1], last - first, self.heads, self.head_dim)
    return split.permute(2, 0, 3, 1, 4).unbind(0)


def explicit_attention(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mixed = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
    return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def patches_as_linear(self: Any, images: Tensor) -> Tensor:
    weight = self.proj.weight  # [D, C, p, p]
    (batch, channels, height, width), p = images.shape, weight.shape[-1]
    split_vit = images.reshape(batch, channels, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
    return F.linear(split_vit.reshape(batch, -1, channels * p * p), weight.flatten(1), self.proj.bias)


def channels_last(self: Any, images: Tensor) -> Tensor:
    return self.proj(images.contiguous(memory_format=torch.channels_last)).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


ALTERNATIVES: dict[str, Alternative] = {
    "mean after fc2": (trunk_module._Block, "finish_merged", mean_after_fc2),
    "q, k, v transposed, then unbound": (trunk_module._Attention, "_project", transposed_first),
    "explicit attention": (trunk_module._Attention, "forward", explicit_attention),
    "patch embedding as reshape + linear": (trunk_module._PatchEmbed, "forward", patches_as_linear),
    "patch embedding in channels_last": (trunk_module._PatchEmbed, "forward", channels_last),
}


def gflop(run: Callable[[], None]) -> float:
    """Floating-point operations of matrix products, convolutions and attention, in 10^9."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops()) / 1e9


def costs(split: int, size: int, rounds: int) -> list[Result]:
    """Recompute + backward, with and without frozen blocks, compared with the trunk's own forward."""
    whole, partly = make_case(split, size), make_case(split, size, freeze_first=split - 1)
    ms = medians_ms(
        {
            "forward": whole.forward,
            "recompute": whole.recompute,
            "train": whole.train,
            "train frozen": partly.train,
            "update": whole.update,
        },
        rounds,
    )
    place = f"split {split}, {size} px: "
    operations = gflop(whole.train), gflop(whole.forward)
    return [
        compare(place + "recompute + backward v own forward", ms["train"], ms["forward"], "ms"),
        compare(place + "the same in operations, its bound", *operations, "Gflop"),
        compare(place + "recompute + backward v recompute", ms["train"], ms["recompute"], "ms"),
        compare(place + f"--freeze-first {split - 1} v 0", ms["train frozen"], ms["train"], "ms"),
        compare(place + "optimizer step v own forward", ms["update"], ms["forward"], "ms"),
    ]


def alternatives(split: int, size: int, rounds: int) -> list[Result]:
    """Each alternative compared with ours, and one thread compared with all."""
    case = make_case(split, size)

    def other(alternative: Alternative) -> Callable[[], None]:
        def run() -> None:
            with instead(alternative):
                case.train()

        return run

    def one_thread() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        case.train()
        torch.set_num_threads(before)

    runs = {"ours": case.train} | {name: other(alternative) for name, alternative in ALTERNATIVES.items()}
    ms = medians_ms(runs | {"one thread": one_thread}, rounds)
    return [
        compare(f"split {split}, {size} px: {name} v ours", ms[name], ms["ours"], "ms")
        for name in [*ms]
        if name != "ours"
    ]


def optimizers(split: int, rounds: int) -> list[Result]:
    """The implementations of AdamW: a loop over the parameters, foreach, and fused."""
    trunk = make_case(split, 112).shim.trunk
    for parameter in trunk.parameters():
        parameter.grad = torch.ones_like(parameter)
    kinds: dict[str, dict[str, Any]] = {
        "a loop": {"foreach": False},
        "foreach": {"foreach": True},
        "fused": {"fused": True},
    }
    steps = {name: torch.optim.AdamW(trunk.parameters(), lr=1e-9, **kind).step for name, kind in kinds.items()}
    ms = medians_ms(steps, 5 * rounds)
    return [
        compare(f"split {split}: AdamW {name} v a loop", ms[name], ms["a loop"], "ms") for name in ("foreach", "fused")
    ]


def malloc_child(pipe: Connection, keep: bool, split: int, size: int, batch: int) -> None:
    """Train once for every message. Answer with seconds, page faults and peak memory in MB."""
    if keep:
        assert keep_freed_memory()
    case = make_case(split, size, batch)
    while pipe.recv():
        faults, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        case.train()
        case.shim.update(0, 1)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        pipe.send((time.perf_counter() - start, usage.ru_minflt - faults, usage.ru_maxrss / 1024))


def malloc(split: int, size: int, batch: int, rounds: int) -> list[Result]:
    """Freed memory kept by the process v glibc's default settings."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[bool, Connection] = {}
    processes = []
    for keep in (True, False):
        pipes[keep], theirs = context.Pipe()
        processes.append(context.Process(target=malloc_child, args=(theirs, keep, split, size, batch)))
        processes[-1].start()
    rows: dict[bool, list[tuple[float, float, float]]] = {True: [], False: []}
    for turn in range(rounds + 2):
        for keep in (True, False) if turn % 2 else (False, True):
            pipes[keep].send(True)
            rows[keep].append(pipes[keep].recv())
    for pipe in pipes.values():
        pipe.send(False)
    for process in processes:
        process.join()
    ours, theirs_ = (
        [statistics.median(column) for column in zip(*rows[keep][2:], strict=True)] for keep in (True, False)
    )
    place = f"split {split}, {size} px, B={batch}: freed memory kept v glibc's default"
    return [
        compare(place, 1e3 * ours[0], 1e3 * theirs_[0], "ms"),
        compare(place, ours[1], max(theirs_[1], 1.0), "page faults"),
        compare(place, ours[2], theirs_[2], "MB peak"),
    ]


def main() -> None:
    parser = arguments("Recompute and backward of the trunk v its own forward, and alternatives v ours.")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    results: list[Result] = []
    for batch in (32, 64):
        results += malloc(3, 224, batch, args.rounds)
    keep_freed_memory()  # like a device that trains
    for split in (3, 6):
        for size in (224, 112):
            results += costs(split, size, args.rounds)
        results += optimizers(split, args.rounds)
    for size in (224, 112):
        results += alternatives(3, size, args.rounds)
    show(f"the shim: DeiT-T, B=32, ξ=0.1, {torch.get_num_threads()} threads", results, args.json)


if __name__ == "__main__":
    main()
