"""A step in several messages, some in flight: equal gradients and weights, through cuts and a trainer's death."""

from __future__ import annotations

import itertools
import logging
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from adc_edge.cloud_trainer.checkpoints import TrainerCheckpoints
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.errors import RefusedError
from adc_edge.method.split import head_from_manifest
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.storage.bundle import HEAD, Bundle
from adc_edge.storage.run_dir import RunDir
from tests.serving import serving
from tests.stub_device import Device


def in_parts(bundle: Bundle, endpoint: str, steps: int, window: int, between: Any = lambda step, part: None) -> Any:
    """Do ``steps`` steps of four micro-batches; returns the answers in order."""
    device = Device(bundle, endpoint, micro_batches=4)
    device.shape = (8, 17, bundle.manifest.dim)
    answers = []
    device.session.open(30)
    for step in range(steps):
        for part in range(4):
            if device.session.in_flight == window:
                answers.append(device.take())
            device.send(step, part)
            between(step, part)
        while device.session.in_flight:
            answers.append(device.take())
    device.settle()
    repeated, outages = device.session.repeated, device.session.outages
    device.session.close()
    return [(a.step, a.micro_batch, a.loss, gradient) for a, gradient in answers], repeated, outages


@pytest.fixture
def server_of_its_own(bundle: Bundle, tmp_path: Path) -> Any:
    """A function that starts trainers with equal weights."""
    numbers = itertools.count()

    def start(keeps_run: bool = False) -> tuple[Server, HeadTraining]:
        head = head_from_manifest(bundle.manifest)
        head.vit.load_state_dict(load_file(bundle.path / HEAD))
        training = HeadTraining(head, OptimizerSettings(lr=1e-3))
        directory = tmp_path / f"trainer-{next(numbers)}"
        run_dir = stack.enter_context(closing(RunDir(directory, {}, {}))) if keeps_run else None
        sessions = SessionRegistry(directory / "journal")
        checkpoints = TrainerCheckpoints(training, sessions, run_dir)
        server = Server(bundle, training, "tcp://127.0.0.1:*", sessions, checkpoints)
        return stack.enter_context(serving(server)), training

    with ExitStack() as stack:
        yield start


def test_micro_batches_in_flight_give_what_they_give_one_by_one(bundle: Bundle, server_of_its_own: Any) -> None:
    results = []
    for window in (1, 2, 4):
        server, training = server_of_its_own()
        answers, repeated, _ = in_parts(bundle, server.endpoint, steps=3, window=window)
        assert [answer[:2] for answer in answers] == [(step, part) for step in range(3) for part in range(4)]
        assert (training.steps, repeated) == (3, [0, 0])
        results.append((answers, training.safetensors()))
    assert results[0] == results[1] == results[2]


def test_links_cut_with_several_micro_batches_in_flight_change_nothing(
    bundle: Bundle, server_of_its_own: Any, proxy_type: Any
) -> None:
    server, undisturbed = server_of_its_own()
    expected, _, _ = in_parts(bundle, server.endpoint, steps=6, window=4)
    server, disturbed = server_of_its_own()
    with proxy_type(server.endpoint) as proxy:

        def between(step: int, part: int) -> None:
            if (step + part) % 3 == 0:
                proxy.cut_after(7_000 * (1 + part))

        answers, _, outages = in_parts(bundle, proxy.endpoint, steps=6, window=4, between=between)
        assert proxy.cuts >= 4
        assert outages >= 4
    assert answers == expected
    assert disturbed.steps == 6
    assert disturbed.safetensors() == undisturbed.safetensors()


def test_a_trainer_that_dies_in_mid_step_gets_the_micro_batches_it_lacks_and_no_others(
    bundle: Bundle, server_of_its_own: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "adc_edge")
    server, undisturbed = server_of_its_own()
    expected, _, _ = in_parts(bundle, server.endpoint, steps=2, window=2)
    first, _ = server_of_its_own(keeps_run=True)
    device = Device(bundle, first.endpoint, micro_batches=4)
    device.shape = (8, 17, bundle.manifest.dim)
    device.session.open(30)
    answers = []
    for part in range(4):
        device.send(0, part)
        answers.append(device.take())
    for part in range(3):
        device.send(1, part)
    answers.append(device.take())  # of the second step it has one gradient, and two are in flight
    second, disturbed = server_of_its_own()  # it has no sessions yet
    device.session.channel.disconnect()
    device.session.channel.route.door = second.endpoint
    answers += [device.take(), device.take()]
    device.send(1, 3)
    answers.append(device.take())
    device.settle()
    device.session.close()
    assert [(a.step, a.micro_batch, a.loss, gradient) for a, gradient in answers] == expected
    assert disturbed.steps == 2
    assert disturbed.safetensors() == undisturbed.safetensors()
    assert "the trainer came back at step 0; sending it the steps up to 1" in caplog.text


def test_a_micro_batch_out_of_turn_is_refused(bundle: Bundle, server: Server) -> None:
    for wrong in ((0, 1), (1, 0), (0, 4)):
        device = Device(bundle, server.endpoint, micro_batches=4)
        device.session.open(30)
        device.send(*wrong)
        with pytest.raises(RefusedError, match=f"micro-batch {wrong[1]} of step {wrong[0]}"):
            device.take()
        device.session.close()


def test_a_device_that_changes_the_cut_in_mid_step_is_refused(bundle: Bundle, server: Server) -> None:
    device = Device(bundle, server.endpoint, micro_batches=4)
    device.session.open(30)
    device.send(0, 0)
    device.take()
    device.session.channel.disconnect()
    device.micro_batches = 2
    with pytest.raises(RefusedError, match="steps of 2 micro-batches"):
        device.session.open(30)
    device.session.close()
