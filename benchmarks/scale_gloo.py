"""Seconds of collectives between ranks: measured with gloo on loopback, and from it for a stated network."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path

import msgspec

RANKS = (2, 3, 4)
SIZES = (64, 1_000_000, 16_000_000)  # bytes
_TURNS = {64: 300, 1_000_000: 30, 16_000_000: 8}
_START_S = 120.0
_DECILE = 10


class Hops(msgspec.Struct, frozen=True):
    """A ring of ranks: seconds of a hop between neighbours, and of a byte that each rank sends and adds."""

    hop: float
    byte: float

    def all_reduce(self, ranks: int, size: float) -> float:
        """Seconds of a ring's all_reduce: each rank sends 2 (r - 1) pieces of size / r."""
        return 0.0 if ranks < 2 else 2 * (ranks - 1) * (self.hop + self.byte * size / ranks)

    def all_gather(self, ranks: int, size: float) -> float:
        """Seconds until each rank has the bytes of all, ``size`` together."""
        return 0.0 if ranks < 2 else (ranks - 1) * (self.hop + self.byte * size / ranks)

    def over(self, network: Network) -> Hops:
        """The same between hosts: a hop takes the network's one way longer, and a byte at least what its rate gives."""
        return Hops(self.hop + network.way_s, max(self.byte, 8 / network.bit_s))


class Network(msgspec.Struct, frozen=True):
    """A stated network between ranks."""

    name: str
    way_s: float
    bit_s: float


class Gloo(msgspec.Struct, frozen=True):
    """Measured all_reduce, seconds by ranks and bytes, and the ring that two ranks tell."""

    seconds: dict[str, dict[str, float]]
    ring: Hops

    def predicted(self) -> list[tuple[int, int, float, float]]:
        """Ranks, bytes, measured seconds, and those of the ring; it was fitted to two ranks alone."""
        return [
            (int(ranks), int(size), found, self.ring.all_reduce(int(ranks), int(size)))
            for ranks, row in self.seconds.items()
            for size, found in row.items()
        ]


def calibrate_gloo() -> Gloo:
    """Time all_reduce between processes of one thread each on loopback."""
    seconds = {str(ranks): {str(size): s for size, s in _all_reduces(ranks).items()} for ranks in RANKS}
    small, large = (seconds["2"][str(size)] for size in (SIZES[0], SIZES[-1]))
    hop = small / 2
    return Gloo(seconds, Hops(hop, max(0.0, large - small) / SIZES[-1]))


def _all_reduces(ranks: int) -> dict[int, float]:
    spawn = multiprocessing.get_context("spawn")
    found: Queue[dict[int, float]] = spawn.Queue()
    with tempfile.TemporaryDirectory() as name:
        store = str(Path(name) / "store")
        processes = [spawn.Process(target=_rank, args=(n, ranks, store, found), daemon=True) for n in range(ranks)]
        for process in processes:
            process.start()
        try:
            return found.get(timeout=_START_S)
        finally:
            for process in processes:
                process.join(10)
                process.kill()
                process.join()


def _rank(rank: int, ranks: int, store: str, found: Queue[dict[int, float]]) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    try:
        seconds = {size: _seconds(lambda x: dist.all_reduce(x), torch.zeros(size // 4), _TURNS[size]) for size in SIZES}
        dist.barrier()
    finally:
        dist.destroy_process_group()
    if rank == 0:
        found.put(seconds)


def _seconds(work: Callable[..., object], tensor: object, turns: int) -> float:
    """The first decile: what is above it waits for other processes of a shared machine, which ranks do not have."""
    times = []
    for _ in range(3 + turns):
        begun = time.perf_counter()
        work(tensor)
        times.append(time.perf_counter() - begun)
    return sorted(times[3:])[turns // _DECILE]
