"""Links that go silent, and answers that are lost on the way."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.served_session import ServedSession
from adc_edge.cloud_trainer.server import Server
from adc_edge.edge_runtime.session import DeviceSession
from adc_edge.method.split import head_from_manifest
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.storage.bundle import HEAD, Bundle
from tests.chaos.proxy import BadLink
from tests.chaos.zygote import Zygote
from tests.serving import serving
from tests.stub_device import Device

STEPS = 3


@contextmanager
def trainer(bundle: Bundle, log: Path) -> Iterator[tuple[Server, HeadTraining]]:
    head = head_from_manifest(bundle.manifest)
    head.vit.load_state_dict(load_file(bundle.path / HEAD))
    training = HeadTraining(head, OptimizerSettings(lr=1e-3))
    with serving(Server(bundle, training, "tcp://127.0.0.1:*", SessionRegistry(log))) as server:
        yield server, training


def bad_link(server: Server, delay_ms: float) -> BadLink:
    return BadLink(int(server.endpoint.rpartition(":")[2]), random.Random(0), delay_ms=delay_ms)


def weights(training: HeadTraining) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in training.arrays().items()}


def with_lost_answers(bundle: Bundle, log: Path, eventually: Callable[[Callable[[], bool]], None]) -> HeadTraining:
    """Train while each answer is lost once with its connection, after the trainer has applied the step."""
    with trainer(bundle, log) as (server, training), bad_link(server, delay_ms=150) as link:
        device = Device(bundle, link.endpoint)
        with closing(device.session):
            device.session.open(30)
            for step in range(STEPS):
                device.session.submit(*device.message(step))
                applied = training.steps
                eventually(lambda applied=applied: training.steps > applied)  # type: ignore[misc]
                link.cut()
                eventually(lambda cuts=step + 1: link.cuts == cuts)  # type: ignore[misc]
                device.session.result(30)
                device.next_step = step + 1
        assert link.cuts == STEPS
    return training


def test_an_answer_that_is_lost_is_answered_again_and_the_step_applied_once(
    bundle: Bundle, tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with trainer(bundle, tmp_path / "undisturbed") as (server, undisturbed):
        device = Device(bundle, server.endpoint)
        with closing(device.session):
            device.session.open(30)
            for step in range(STEPS):
                device.step(step)
    disturbed = with_lost_answers(bundle, tmp_path / "disturbed", eventually)
    assert disturbed.steps == undisturbed.steps == STEPS
    assert weights(disturbed) == weights(undisturbed)


@pytest.mark.slow
def test_without_the_detection_of_duplicates_that_test_would_fail(
    bundle: Bundle,
    tmp_path: Path,
    eventually: Callable[[Callable[[], bool]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ServedSession, "due", lambda self, step, micro_batches=None: True)
    monkeypatch.setattr(DeviceSession, "_request", lambda self, message, body: self._send(message, body))
    assert with_lost_answers(bundle, tmp_path, eventually).steps == 2 * STEPS


@pytest.mark.slow
@pytest.mark.timed
def test_a_link_that_goes_silent_is_noticed_within_ten_seconds_and_resumed(bundle: Bundle, tmp_path: Path) -> None:
    with trainer(bundle, tmp_path) as (server, training), bad_link(server, delay_ms=5) as link:
        device = Device(bundle, link.endpoint)
        with closing(device.session):
            device.session.open(30)
            device.step(0)
            link.stall(16)
            start = time.monotonic()
            noticed: list[float] = []
            device.session._on_outage = lambda lost: noticed.append(time.monotonic() - start)
            answer, gradient = device.step(1)
            device.settle()
            assert noticed[0] < 10
            assert 15 < time.monotonic() - start < 30
            assert device.session.outages >= 1
            assert np.isfinite(np.frombuffer(gradient, np.float32)).all()
            assert (answer.step, training.steps) == (1, 2)


@pytest.mark.slow
@pytest.mark.timed
def test_an_outage_that_is_longer_than_asked_ends_the_run_and_it_resumes(
    zygote: Zygote, bundle_dir: Path, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    listen: list[str | Path] = [
        "trainer",
        "--bundle",
        bundle_dir,
        "--run",
        tmp_path / "trainer",
        "--bind",
        endpoint,
        "--threads",
        "1",
    ]
    serve: list[str | Path] = [
        "serve",
        "--bundle",
        bundle_dir,
        "--run",
        tmp_path / "device",
        "--trainer",
        endpoint,
        "--steps",
        "60",
    ]
    more = ["--threads", "1", "--eval-images", "16", "--wait", "60"]
    trainer = zygote.start(*listen, log=tmp_path / "trainer.log")
    device = zygote.start(*serve, *more, "--outage", "1", log=tmp_path / "device.log")
    metrics = tmp_path / "trainer" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 10:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    trainer.signal(15)
    assert trainer.wait(10) == 0
    assert device.wait(30) == 1
    assert "no trainer at" in device.output()
    trainer = zygote.start(*listen, "--devices", "1", log=tmp_path / "trainer.log")
    assert zygote.start(*serve, *more, log=tmp_path / "device.log").wait(60) == 0
    assert trainer.wait(20) == 0
