"""Real ranks under torchrun that are killed or told to end: every step of every device counts once."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adc_edge.storage.bundle import Bundle
from adc_edge.storage.checkpoint import checkpoint_steps, latest_checkpoint
from tests.cloud_trainer.ranks.launching import Torchrun
from tests.cloud_trainer.ranks.rank_trainers import (
    MovingDevice,
    RankTrainers,
    check_every_step_once,
    lines_of,
    train,
)


@contextmanager
def killing(trainers: Torchrun, devices: list[MovingDevice], kills: int) -> Iterator[list[int]]:
    """Kill a random rank each time that the slowest device has made progress; yields the ranks that were killed."""
    over, killed, rng = threading.Event(), list[int](), random.Random(5)

    def kill() -> None:
        seen = 0
        while not over.is_set() and len(killed) < kills:
            time.sleep(0.02)
            slowest = min(len(device.answers) for device in devices)
            if slowest >= seen + 5 and len(trainers.pids()) == trainers.ranks:
                seen = slowest
                killed.append(rng.randrange(trainers.ranks))
                trainers.kill_rank(killed[-1])

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("sync", ["every", "4"])
def test_killed_ranks_lose_no_step_and_learn_none_twice(bundle: Bundle, tmp_path: Path, sync: str) -> None:
    options = ("--devices", "3", "--checkpoint-every", "10", "--sync", sync)
    with RankTrainers(bundle, tmp_path, 2, *options, max_restarts=20) as trainers:
        devices = [MovingDevice(bundle, trainers.door, number, steps=40) for number in (1, 2, 3)]
        with killing(trainers, devices, kills=4) as killed:
            train(devices, before=lambda step: time.sleep(0.02))
        code, output = trainers.finish()
    assert code == 0, output
    assert len(killed) == 4, output
    check_every_step_once(trainers.run, devices)
    checkpoint = latest_checkpoint(trainers.run)
    assert checkpoint is not None
    assert checkpoint.step == 120
    assert {record["applied"] for record in checkpoint.meta["sessions"].values()} == {40}
    assert not list((trainers.run).glob("rank-*"))


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_signal_at_one_rank_ends_all_with_a_checkpoint_and_another_world_goes_on(
    bundle: Bundle, tmp_path: Path, rank: int, number: signal.Signals
) -> None:
    with RankTrainers(bundle, tmp_path, 2) as trainers:
        device = MovingDevice(bundle, trainers.door, 1, steps=12)
        device.session.open(120)
        device.answers += [device.step(step)[0] for step in range(5)]
        device.settle()
        trainers.kill_rank(rank, number)
        code, output = trainers.finish()
    device.session.close()
    assert code == 0, output
    assert "stopped after 5 steps" in output
    assert checkpoint_steps(trainers.run) == [5]
    assert [line["step"] for line in lines_of(trainers.run)] == [0, 1, 2, 3, 4]
    with RankTrainers(bundle, tmp_path, 3, "--devices", "1") as trainers:
        again = MovingDevice(bundle, trainers.door, 1, steps=12)
        again.next_step, again.answers = 5, device.answers
        train([again])
        code, output = trainers.finish()
    assert code == 0, output
    check_every_step_once(trainers.run, [again])
