"""A small program of several ranks: it adds rounds up, keeps the sum, and goes on from it when it is started anew.

    torchrun … rank_program.py DIRECTORY ROUNDS [PAUSE_S]

Rank 0 keeps the number of rounds done and their sum in DIRECTORY/state, and writes DIRECTORY/done at the end. Each
start of a rank adds a line to DIRECTORY/starts.RANK.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

from adc_edge.cloud_trainer.ranks.exchange import Exchange
from adc_edge.cloud_trainer.ranks.launch import die_with_parent, launched
from adc_edge.cloud_trainer.ranks.world import World
from adc_edge.errors import AdcEdgeError
from adc_edge.files import write_atomic
from adc_edge.signals import StopFlag

FIELDS = 6


def main(directory: Path, rounds: int, pause_s: float) -> None:
    launch = launched()
    assert launch is not None
    die_with_parent()
    stop = StopFlag()
    with (directory / f"starts.{launch.rank}").open("a") as starts:
        starts.write(f"{os.getpid()} {launch.restarts}\n")
    with World(launch, timeout_s=60) as world:
        exchange = Exchange(world)
        state = directory / "state"
        kept = exchange.blobs(state.read_bytes() if launch.rank == 0 and state.exists() else b"")[0]
        done, total = map(int, kept.split() or (0, 0))
        while done < rounds:
            told = exchange.rows([launch.rank, done, int(stop()), *[0] * (FIELDS - 3)])
            assert [row[0] for row in told] == list(range(world.size))
            assert {row[1] for row in told} == {done}
            if any(row[2] for row in told):
                os.write(1, f"rank {launch.rank} stops after {done} rounds\n".encode())  # at once: both share the pipe
                break
            gradient = torch.full((10_000,), float(launch.rank + 1))
            exchange.sum(gradient)
            done, total = done + 1, total + int(gradient[-1].item())
            if launch.rank == 0:
                write_atomic(state, f"{done} {total}".encode())
            time.sleep(pause_s)
        assert exchange.least(done) == done
    if launch.rank == 0 and done == rounds:
        write_atomic(directory / "done", f"{done} {total}".encode())


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
    except AdcEdgeError as error:
        os.write(1, f"{error}\n".encode())
        sys.exit(error.exit_code)
