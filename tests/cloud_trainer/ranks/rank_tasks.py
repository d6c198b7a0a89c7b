"""Tasks that processes of `exchanging.py` run as ranks."""

from __future__ import annotations

import os
import signal
import statistics
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

from adc_edge.cloud_trainer.ranks.exchange import Exchange


def one_of_each(exchange: Exchange, rank_values: list[list[int]]) -> dict[str, Any]:
    """Call each operation once, and return what it gave."""
    rank = exchange.rows([0])  # also a first round without work
    mine = me(exchange)
    gradient = gradient_of(mine)
    exchange.sum(gradient)
    return {
        "first": rank,
        "rows": exchange.rows(rank_values[mine]),
        "blobs": exchange.blobs(bytes([mine]) * (mine * 1000)),
        "nothing": exchange.blobs(b""),
        "known": exchange.blobs(bytes([mine]) * mine, range(len(rank_values))),
        "large": [len(each) for each in exchange.blobs(os.urandom(3_000_000) if mine == 1 else b"x")],
        "least": exchange.least(10 - mine),
        "sum": gradient.numpy().tobytes(),
    }


def me(exchange: Exchange) -> int:
    """The rank of this process."""
    return exchange._world.rank


def gradient_of(rank: int) -> torch.Tensor:
    """A rank's own numbers, which do not add up exactly."""
    return torch.randn(50_001, generator=torch.Generator().manual_seed(rank))


def policies(exchange: Exchange) -> dict[str, int]:
    """Return the scheduling policy of each thread, by its name."""
    tasks = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    return {Path(f"/proc/self/task/{task}/comm").read_text().strip(): os.sched_getscheduler(task) for task in tasks}


def late(exchange: Exchange, waited: Event) -> tuple[list[list[int]], int]:
    """Let rank 1 be late until rank 0 has waited in a collective, calling ``idle``."""
    calls = 0

    def idle() -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            waited.set()

    exchange.idle = idle
    if me(exchange) == 1:
        assert waited.wait(60)
    return exchange.rows([me(exchange)]), calls


def killed(exchange: Exchange, rank: int, operation: str) -> None:
    """Let one rank be killed, while the others go on with an operation."""
    exchange.rows([1])
    if me(exchange) == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    for _ in range(1000):
        if operation == "rows":
            exchange.rows([1, 2])
        elif operation == "sum":
            exchange.sum(torch.ones(1_000_000))
        elif operation == "blobs":
            exchange.blobs(bytes(1000))
        else:
            exchange.least(1)


def silent(exchange: Exchange) -> None:
    """Let rank 1 stop, as a host that hangs."""
    if me(exchange) == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    exchange.rows([1])


def impatient(exchange: Exchange, over: Event) -> None:
    """Let rank 0 fail in ``idle``, while rank 1 does not join the operation."""

    def idle() -> None:
        raise ZeroDivisionError("in idle")

    exchange.idle = idle
    if me(exchange) == 1:
        over.wait(60)
        return
    exchange.rows([1])


def wrong(exchange: Exchange) -> None:
    """Call an operation with what it cannot take."""
    exchange.rows(["one"])  # type: ignore[list-item]


def counted(exchange: Exchange, rounds: int) -> int:
    """Take part in some rounds, and return how many."""
    return sum(all(row == [index] for row in exchange.rows([index])) for index in range(rounds))


def endless(exchange: Exchange, begun: Event) -> None:
    """Take part in rounds until another rank is gone."""
    exchange.rows([1])
    begun.set()
    while True:
        exchange.rows([1])


def timed_rows(exchange: Exchange, rounds: int, fields: int) -> list[float]:
    """Return the milliseconds that each of some rounds without work took."""
    times = []
    for _ in range(rounds):
        start_s = time.perf_counter()
        exchange.rows([0] * fields)
        times.append((time.perf_counter() - start_s) * 1e3)
    return times


def timed_sum(exchange: Exchange, numbers: int, rounds: int) -> float:
    """Return the median of the milliseconds that a sum of so many float32 takes."""
    flat, times = torch.ones(numbers), []
    for _ in range(rounds):
        exchange.rows([0])
        start_s = time.perf_counter()
        exchange.sum(flat)
        times.append((time.perf_counter() - start_s) * 1e3)
        flat /= exchange._world.size
    return statistics.median(times)
