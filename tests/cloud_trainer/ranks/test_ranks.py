"""Real ranks under torchrun: they learn what one trainer learns, and end together."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adc_edge.cloud_trainer.accumulator import StepAccumulator
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.scheduling.control import CONTROL, FleetControl, SessionControl
from adc_edge.cloud_trainer.scheduling.listing import read_sessions
from adc_edge.cloud_trainer.scheduling.merged import MergedInput, Merging
from adc_edge.codec.precision import decode, encoded_bytes
from adc_edge.defaults import OptimizerName
from adc_edge.edge_runtime.choosing.link import shortest_ping
from adc_edge.files import json_bytes, write_atomic
from adc_edge.method.labels import soft_labels
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.storage.bundle import HEAD, Bundle
from adc_edge.storage.halves import head_states
from tests.cloud_trainer.ranks.rank_trainers import (
    MovingDevice,
    RankTrainers,
    check_every_step_once,
    lines_of,
    train,
)
from tests.ports import free_ports


def merged_input(device: MovingDevice, step: int) -> MergedInput:
    """The step of a device as one trainer puts it into a merged pass."""
    message, body = device.message(step, images=device.images)
    split = encoded_bytes(device.shape, "fp32")
    soft = soft_labels(memoryview(body)[split:], message.clusters, 10, message.images)
    return torch.from_numpy(np.array(decode(body[:split], device.shape, "fp32"))), soft, message.images


def merged_passes(training: HeadTraining, devices: Sequence[MovingDevice], steps: int) -> list[list[float]]:
    """Train one head by merged passes of all devices; returns each device's losses."""
    losses: list[list[float]] = [[] for _ in devices]
    for step in range(steps):
        totals = [StepAccumulator(1) for _ in devices]
        learned = Merging("sum").learn(training, [merged_input(device, step) for device in devices], totals)
        for total in totals:
            training.update(total, 0)
        for own, one in zip(losses, learned, strict=True):
            own.append(one.loss)
    return losses


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "optimizer"), [(2, "adamw"), (2, "sgd"), (4, "sgd")])
def test_ranks_in_lockstep_learn_what_merged_passes_of_one_trainer_do(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, ranks: int, optimizer: OptimizerName
) -> None:
    steps = 50
    run, devices = trained_together(bundle, tmp_path, ranks, optimizer, steps)
    check_every_step_once(run, devices)
    rounds = {line["head_step"]: line for line in lines_of(run)}
    for first in range(1, steps * ranks, ranks):  # each round had all ranks
        assert {rounds[first + n]["step"] for n in range(ranks)} == {(first - 1) // ranks}
    alone = HeadTraining(training.head, OptimizerSettings(name=optimizer, lr=1e-3))
    losses = merged_passes(alone, devices, steps)
    for device, expected in zip(devices, losses, strict=True):
        np.testing.assert_allclose([answer.loss for answer in device.answers], expected, atol=1e-5)
    for name, weights in load_file(run / HEAD).items():
        torch.testing.assert_close(weights, alone.head.vit.state_dict()[name], rtol=0, atol=1e-5, msg=name)


def one_trainer(bundle: Bundle, directory: Path, steps: int) -> tuple[Path, list[MovingDevice]]:
    """A trainer process without ranks, whose passes have the steps of both of its devices; returns its run.

    The devices are paused until it has both steps of a pass.
    """
    door, run = f"tcp://127.0.0.1:{free_ports(1)}", directory / "one"
    own = ["--bundle", bundle.path, "--run", run, "--bind", door, "--lr", "1e-3", "--optimizer", "sgd"]
    words = [sys.executable, "-m", "adc_edge", "trainer", *own, "--devices", "2", "--merge-passes", "sum"]
    log = directory / "one.log"
    with log.open("wb") as output:
        process = subprocess.Popen([str(word) for word in words], stdout=output, stderr=subprocess.STDOUT)
    try:
        devices = [MovingDevice(bundle, door, n + 1, steps, images=8 + 4 * n) for n in range(2)]
        for device in devices:
            device.session.open(120)
        for step in range(steps):
            pause(run, devices, True)
            wait_until(lambda: log.read_text().count("is paused") == 2 * (step + 1), log)  # noqa: B023 - called at once
            for device in devices:
                device.session.submit(*device.message(step, images=device.images))
            for device in devices:  # a ping is answered at once, and travels behind the step
                shortest_ping(device.session.channel, 0, 0)
            pause(run, devices, False)
            for device in devices:
                device.answers.append(device.take()[0])
        for device in devices:
            device.session.close_session()
            device.session.close()
        assert process.wait(120) == 0, log.read_text()
    finally:
        process.kill()
        process.wait(60)
    return run, devices


def begin_together(bundle: Bundle, door: str) -> None:
    """Have the ranks do one more round: one may wait in a round that it joined before its device had come."""
    guest = MovingDevice(bundle, door, 99, steps=1)
    guest.session.open(120)  # a new session is placed in a round
    guest.session.close()


def trained_together(
    bundle: Bundle, directory: Path, ranks: int, optimizer: OptimizerName, steps: int
) -> tuple[Path, list[MovingDevice]]:
    """Train one device on each rank, all of them in every round; returns the run and the devices."""
    options = ("--devices", str(ranks), "--round-wait", "30", "--optimizer", optimizer, "--merge-passes", "sum")
    with RankTrainers(bundle, directory, ranks, *options) as trainers:
        devices = [MovingDevice(bundle, trainers.door, n + 1, steps, images=8 + 4 * n) for n in range(ranks)]
        for device in devices:
            device.session.open(120)
        begin_together(bundle, trainers.door)
        train(devices)
        code, output = trainers.finish()
    assert code == 0, output
    return trainers.run, devices


def pause(run: Path, devices: Sequence[MovingDevice], paused: bool) -> None:
    """Pause all devices at once, or have them go on."""
    orders = {f"{device.number:016x}": SessionControl(paused=paused) for device in devices}
    write_atomic(run / CONTROL, json_bytes(msgspec.to_builtins(FleetControl(orders))))


def wait_until(done: Callable[[], bool], log: Path) -> None:
    until_s = time.monotonic() + 120
    while not done():
        assert time.monotonic() < until_s, log.read_text()
        time.sleep(0.02)


@pytest.mark.slow
def test_two_ranks_learn_what_a_real_trainer_learns_in_merged_passes(bundle: Bundle, tmp_path: Path) -> None:
    steps = 8
    run, devices = trained_together(bundle, tmp_path, 2, "sgd", steps)
    alone, others = one_trainer(bundle, tmp_path, steps)
    check_every_step_once(alone, others)
    for device, other in zip(devices, others, strict=True):
        losses = [answer.loss for answer in other.answers]
        np.testing.assert_allclose([answer.loss for answer in device.answers], losses, atol=1e-5)
    expected, found = load_file(alone / HEAD), load_file(run / HEAD)
    assert expected.keys() == found.keys()
    for name, weights in found.items():
        torch.testing.assert_close(weights, expected[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.slow
def test_devices_are_moved_to_their_ranks_and_the_run_ends_when_all_are_done(bundle: Bundle, tmp_path: Path) -> None:
    options = ("--devices", "2", "--checkpoint-every", "8")
    with RankTrainers(bundle, tmp_path, 2, *options) as trainers:
        devices = [MovingDevice(bundle, trainers.door, number, steps=10) for number in (1, 2)]
        train(devices)
        code, output = trainers.finish()
    assert code == 0, output
    check_every_step_once(trainers.run, devices)
    assert "INFO    device 'device-1' at step 0" in output
    assert "INFO    rank 1: device 'device-2' at step 0" in output
    assert {session.device for session in read_sessions(trainers.run)} == {"device-1", "device-2"}
    assert {session.state for session in read_sessions(trainers.run)} == {"finished"}
    states = [latest.learned for latest in head_states(trainers.run)]
    assert states[-1] == {1: 10, 2: 10}
    assert not list(trainers.run.glob("rank-*"))
