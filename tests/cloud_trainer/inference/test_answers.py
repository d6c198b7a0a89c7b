"""A trainer that answers inference: checks before memory, trunk and head that fit, and nothing of a training."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from adc_edge.arrays import Body
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.inference.answers import HeadInference
from adc_edge.cloud_trainer.server import Server
from adc_edge.codec.precision import encode
from adc_edge.errors import RefusedError
from adc_edge.storage.bundle import HEAD, Bundle
from adc_edge.storage.halves import HalfState
from adc_edge.wire.channel import Channel
from adc_edge.wire.class_names import pack_names, unpack_names
from adc_edge.wire.inference_messages import Infer, LearnedTrunk, Logits
from adc_edge.wire.link_messages import Ping, Pong
from adc_edge.wire.messages import BUNDLE_DIGITS, ClassNames, FromDevice, FromTrainer
from tests.stub_device import Device

SHAPE = (3, 7, 32)


@pytest.fixture
def x() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(SHAPE, np.float32)


@pytest.fixture
def infer(x: Any, bundle: Bundle) -> Infer:
    body = encode(x, "fp32")
    return Infer(5, len(body), 3, 7, "fp32", bundle=bundle.digest[:BUNDLE_DIGITS])


def serve_head(server: Server, bundle: Bundle, training: HeadTraining, **learned: Any) -> HeadInference:
    state = HalfState(
        bundle.path / HEAD, learned.get("sessions", {}), learned.get("steps", 0), learned.get("frozen", False)
    )
    server.inference = found = HeadInference(bundle, training, state, ["cat", "dog"])
    return found


@pytest.fixture
def channel(server: Server) -> Iterator[Channel]:
    channel = Channel(server.endpoint, body_bytes=lambda message: getattr(message, "body_bytes", 0))
    channel.open(10)
    yield channel
    channel.close()


def ask(channel: Channel, message: Infer, x: Any) -> tuple[Logits, Any]:
    channel.send(message, encode(x, message.precision))
    answer, body = channel.receive(10_000)
    assert isinstance(answer, Logits)
    return answer, np.frombuffer(body, "<f4").reshape(answer.clusters, answer.classes)


def test_logits_are_the_heads_and_nothing_is_learned(
    server: Server, bundle: Bundle, training: HeadTraining, channel: Channel, infer: Infer, x: Any
) -> None:
    inference = serve_head(server, bundle, training, sessions={7: 40}, steps=60)
    before = training.safetensors()
    message = msgspec.structs.replace(infer, trunk=LearnedTrunk(7, 40))
    answer, logits = ask(channel, message, x)
    with torch.no_grad():
        np.testing.assert_allclose(logits, training.head.eval()(torch.from_numpy(x)).numpy(), atol=1e-6)
    assert (answer.transfer, answer.head_step, answer.classes) == (5, 60, 10)
    assert (training.safetensors(), training.steps) == (before, 0)
    assert (inference.requests, inference.rows) == (1, 3)


def test_a_trainer_that_trains_refuses_an_infer_with_the_remedy(channel: Channel, infer: Infer, x: Any) -> None:
    with pytest.raises(RefusedError, match="this trainer trains") as refused:
        ask(channel, infer, x)
    assert "--serve-only" in refused.value.remedy
    channel.send(Ping(0, 0, about=True))
    pong, _ = channel.receive(10_000)
    assert isinstance(pong, Pong)
    assert pong.infers is msgspec.UNSET


def test_a_trainer_that_serves_refuses_a_training_and_tells_what_it_is(
    server: Server, bundle: Bundle, training: HeadTraining, channel: Channel
) -> None:
    serve_head(server, bundle, training)
    device = Device(bundle, server.endpoint)
    with pytest.raises(RefusedError, match="does not train") as refused:
        device.session.open(10)
    device.session.close()
    assert "without --serve-only" in refused.value.remedy
    channel.send(Ping(0, 0, about=True))
    pong, _ = channel.receive(10_000)
    assert isinstance(pong, Pong)
    assert pong.infers is True


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"clusters": 2000}, "shape"),
        ({"kept": 18}, "shape"),
        ({"kept": 6}, "size"),
        ({"body_bytes": 2**31 - 1}, "size"),
        ({"precision": "int8"}, "size"),
        ({"bundle": "0" * 12}, "bundle"),
    ],
)
def test_what_does_not_fit_the_bundle_is_refused_before_memory_is_taken(
    change: dict[str, Any], code: str, server: Server, bundle: Bundle, training: HeadTraining, channel: Channel,
    infer: Infer,
) -> None:  # fmt: skip
    serve_head(server, bundle, training)
    channel.send(msgspec.structs.replace(infer, **change), bytes(100))
    with pytest.raises(RefusedError) as refused:
        channel.receive(10_000)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("trunk", "fits"),
    [
        (LearnedTrunk(7, 40), True),
        (LearnedTrunk(7, 39), False),
        (LearnedTrunk(7, 3, frozen=True), True),
        (LearnedTrunk(7, 39, final=True), True),
        (LearnedTrunk(7, 41, final=True), False),
        (LearnedTrunk(8, 39, final=True), False),
        (LearnedTrunk(8, 40), False),
        (LearnedTrunk(8, 40, frozen=True), False),
        (msgspec.UNSET, False),
    ],
)
def test_a_trunk_that_has_not_learned_with_this_head_is_refused(
    trunk: Any, fits: bool, server: Server, bundle: Bundle, training: HeadTraining, channel: Channel, infer: Infer,
    x: Any,
) -> None:  # fmt: skip
    serve_head(server, bundle, training, sessions={7: 40}, steps=60)
    message = msgspec.structs.replace(infer, trunk=trunk)
    if fits:
        ask(channel, message, x)
        return
    with pytest.raises(RefusedError, match="history") as refused:
        ask(channel, message, x)
    assert "infer --weights RUN" in refused.value.remedy


@pytest.mark.parametrize(
    ("trunk", "fits"),
    [
        (msgspec.UNSET, True),
        (LearnedTrunk(8, 40, frozen=True), True),
        (LearnedTrunk(7, 40), True),
        (LearnedTrunk(8, 40), False),
    ],
)
def test_a_head_that_has_learned_with_frozen_trunks_fits_the_bundles_on_every_device(
    trunk: Any, fits: bool, server: Server, bundle: Bundle, training: HeadTraining, channel: Channel, infer: Infer,
    x: Any,
) -> None:  # fmt: skip
    serve_head(server, bundle, training, sessions={7: 40}, steps=60, frozen=True)
    message = msgspec.structs.replace(infer, trunk=trunk)
    if fits:
        assert ask(channel, message, x)[0].head_step == 60
        return
    with pytest.raises(RefusedError, match="history"):
        ask(channel, message, x)


def test_a_device_with_small_requests_does_not_wait_for_all_of_one_with_large_ones(
    server: Server, bundle: Bundle, training: HeadTraining, channel: Channel, infer: Infer, x: Any
) -> None:
    order, is_busy, may_go_on = list[int](), threading.Event(), threading.Event()

    class Recorded(HeadInference):
        def answer(self, message: FromDevice, body: memoryview) -> tuple[FromTrainer, Body] | None:
            if isinstance(message, Infer):
                is_busy.set()
                may_go_on.wait(60)
                time.sleep(0.25 if message.clusters == 16 else 1e-3)
                order.append(message.clusters)
            return super().answer(message, body)

    server.inference = Recorded(bundle, training, HalfState(bundle.path / HEAD, {}, 0), ())
    other = Channel(server.endpoint, body_bytes=lambda message: getattr(message, "body_bytes", 0))
    other.open(10)
    rows = np.repeat(x[:1], 16, axis=0)

    def send(sender: Channel, shown: Any, count: int) -> None:
        body = encode(shown, "fp32")
        for _ in range(count):
            sender.send(msgspec.structs.replace(infer, clusters=len(shown), body_bytes=len(body)), body)

    send(other, rows, 1)
    is_busy.wait(60)
    send(other, rows, 2)
    send(channel, x[:1], 20)
    may_go_on.set()
    for sender, count in ((channel, 20), (other, 3)):
        for _ in range(count):
            sender.receive(60_000)
    other.close()
    assert order[1:].index(16) >= 10  # answers to the other device before its second one


def test_a_run_of_no_steps_fits_the_bundles_head(
    server: Server, bundle: Bundle, training: HeadTraining, channel: Channel, infer: Infer, x: Any
) -> None:
    serve_head(server, bundle, training)
    ask(channel, msgspec.structs.replace(infer, trunk=LearnedTrunk(8, 0, frozen=True)), x)
    with pytest.raises(RefusedError, match="history"):
        ask(channel, msgspec.structs.replace(infer, trunk=LearnedTrunk(8, 4)), x)


def test_the_class_names_are_told_without_a_session(
    server: Server, bundle: Bundle, training: HeadTraining, channel: Channel
) -> None:
    serve_head(server, bundle, training)
    body = pack_names([])
    channel.send(ClassNames(0, 9, len(body)), body)
    answer, names = channel.receive(10_000)
    assert isinstance(answer, ClassNames)
    assert unpack_names(names) == ["cat", "dog"]


def test_activations_that_are_not_finite_are_refused(
    server: Server, bundle: Bundle, training: HeadTraining, channel: Channel, infer: Infer, x: Any
) -> None:
    serve_head(server, bundle, training)
    x[0, 0, 0] = np.nan
    channel.send(infer, x.tobytes())
    with pytest.raises(RefusedError):
        channel.receive(10_000)
    x[0, 0, 0] = 0.0
    ask(channel, infer, x)  # the connection goes on
