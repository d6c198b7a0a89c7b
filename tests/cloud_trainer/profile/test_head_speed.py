"""The speed of the head: measured once, in pieces, and without a trace in what a run depends on."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adc_edge.arrays import Float32
from adc_edge.cloud_trainer.accumulator import StepAccumulator
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.profile.head_speed import HeadSpeed
from adc_edge.codec.precision import PRECISIONS
from adc_edge.method.split import head_from_manifest
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.planning.profile import TrainerProfile
from adc_edge.storage.bundle import HEAD, Bundle
from adc_edge.wire.headers import pack_header
from adc_edge.wire.link_messages import Pong
from adc_edge.wire.messages import HEADER_BYTES


def a_head(bundle: Bundle) -> HeadTraining:
    """A head with dropout before its classifier, which draws random numbers."""
    arguments = bundle.manifest.model_args | {"drop_rate": 0.3}
    head = head_from_manifest(msgspec.structs.replace(bundle.manifest, model_args=arguments))
    head.vit.load_state_dict(load_file(bundle.path / HEAD))
    return HeadTraining(head, OptimizerSettings(lr=1e-3))


def micro_batch(seed: int) -> tuple[Tensor, Float32]:
    rng = np.random.default_rng(seed)
    soft = rng.random((4, 10)).astype(np.float32)
    return torch.from_numpy(rng.standard_normal((4, 7, 32)).astype(np.float32)), soft / soft.sum(1, keepdims=True)


def measured(speed: HeadSpeed, alone: bool = True) -> TrainerProfile:
    told: dict[str, Any] = {"measuring": True}
    while "measuring" in told:
        told = speed.tell(alone)
    (head,) = told.values()
    assert isinstance(head, TrainerProfile)
    return head


def trained(bundle: Bundle, measures: bool) -> tuple[list[bytes], list[bytes]]:
    """Weights and optimizer state, and gradients, after steps of two micro-batches; measured between all of them."""
    training, gradients = a_head(bundle), []
    speed = HeadSpeed(training, bundle.manifest)
    for number in range(3):
        step = StepAccumulator(2)
        for part in range(2):
            if measures:
                speed.tell(alone=True)
                assert all(p.grad is None for p in training.head.parameters())
            learned = training.learn(*micro_batch(2 * number + part), True, step)
            assert learned.gradient is not None
            gradients.append(learned.gradient.numpy().tobytes())
        if measures:
            measured(speed) if number else speed.tell(alone=False)
        training.update(step, 0)
    return [array.tobytes() for array in training.arrays().values()], gradients


def test_a_run_has_the_same_bits_whether_or_not_its_head_is_measured(bundle: Bundle) -> None:
    assert trained(bundle, measures=True) == trained(bundle, measures=False)


def test_random_state_mode_and_weights_stay(bundle: Bundle) -> None:
    training = a_head(bundle)
    training.head.eval()
    before = [p.detach().clone() for p in training.head.parameters()]
    state, numpy_state = torch.get_rng_state(), repr(np.random.get_state())
    measured(HeadSpeed(training, bundle.manifest))
    assert torch.equal(torch.get_rng_state(), state)
    assert repr(np.random.get_state()) == numpy_state
    assert not training.head.training
    assert all(torch.equal(p, old) for p, old in zip(training.head.parameters(), before, strict=True))
    assert training.optimizer.arrays() == {}
    assert training.steps == 0


def test_it_is_measured_once_and_fits_into_a_header(bundle: Bundle) -> None:
    speed = HeadSpeed(a_head(bundle), bundle.manifest)
    head = measured(speed)
    assert speed.tell(alone=True)["head"] is head
    assert (head.split, head.depth, head.device) == (2, 4, "cpu")
    assert head.codec.keys() == set(PRECISIONS)
    assert head.step.seconds(100) > 0
    assert head.update_seconds > 0
    assert len(pack_header(Pong(2**62, head=head, measuring=False))) < HEADER_BYTES / 1.5


def test_each_piece_is_a_moment(bundle: Bundle) -> None:
    speed = HeadSpeed(a_head(bundle), bundle.manifest)
    took = []
    told: dict[str, Any] = {"measuring": True}
    while "measuring" in told:
        start = time.process_time()
        told = speed.tell(alone=False)
        took.append(time.process_time() - start)
    assert len(took) > 1
    assert max(took) < 1.0  # 0.1 s, and a run of the head


def test_a_head_that_cannot_be_measured_tells_why(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    training = a_head(bundle)
    with torch.no_grad():
        for parameter in training.head.parameters():
            parameter.fill_(float("nan"))
    speed = HeadSpeed(training, bundle.manifest)
    assert [speed.tell(alone=True), speed.tell(alone=True)] == 2 * [{"fault": "a loss of nan"}]
    assert [record.getMessage() for record in caplog.records if "head" in record.getMessage()] == [
        "the speed of the head cannot be measured: a loss of nan"
    ]
