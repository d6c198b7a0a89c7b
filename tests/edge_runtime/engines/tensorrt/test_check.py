"""The refresh test sees any weight that a refit leaves behind, and nothing in fp16 as such."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from safetensors.numpy import load_file

from adc_edge.arrays import Float32, Weights
from adc_edge.edge_runtime.engines.onnxruntime import OnnxEngine
from adc_edge.edge_runtime.engines.tensorrt.check import Check
from adc_edge.storage.bundle import TRUNK, Bundle


class Forgetful(OnnxEngine):
    """An engine whose refreshes leave one weight as it was, or zero, from some refresh on."""

    def __init__(self, engine: OnnxEngine, forgets: Weights, patience: int = 0) -> None:
        vars(self).update(vars(engine))  # the same session
        self.forgets, self.patience = forgets, patience
        self.weights: Weights = {}

    def refresh(self, weights: Weights) -> None:
        self.patience -= 1
        self.weights = weights
        super().refresh({**weights, **self.forgets} if self.patience < 0 else weights)


@pytest.fixture(scope="module")
def check(bundle: Bundle) -> Check:
    return Check(bundle, "fp16", 16)  # with fp16's limits, which are the wider ones


@pytest.fixture
def engine(bundle: Bundle) -> Iterator[OnnxEngine]:
    with OnnxEngine(bundle.client("fp32"), bundle.manifest.trunk) as engine:
        yield engine


@pytest.fixture(scope="module")
def weights(bundle: Bundle) -> dict[str, Float32]:
    return load_file(bundle.file(TRUNK))


def test_a_sound_engine_passes_and_has_its_own_weights_again(
    check: Check, engine: OnnxEngine, weights: Weights
) -> None:
    sound = Forgetful(engine, {})
    assert check.fault(sound, weights) is None
    assert sound.weights is weights
    assert check.fault(engine, None) is None


def test_any_weight_that_stays_behind_is_seen(check: Check, engine: OnnxEngine, weights: Weights) -> None:
    for name, value in weights.items():
        fault = check.fault(Forgetful(engine, {name: value}), weights)
        assert fault is not None, name
        assert fault.startswith("with new weights, refresh 1: activations differ"), name


def test_any_bias_that_falls_away_is_seen(check: Check, engine: OnnxEngine, weights: Weights) -> None:
    for name in (name for name in weights if name.endswith("bias")):
        fault = check.fault(Forgetful(engine, {name: np.zeros_like(weights[name])}), weights)
        assert fault is not None, name


def test_a_second_refresh_that_does_nothing_is_seen(check: Check, engine: OnnxEngine, weights: Weights) -> None:
    name = "blocks.1.mlp.fc2.weight"
    fault = check.fault(Forgetful(engine, {name: weights[name]}, patience=1), weights)
    assert fault is not None
    assert "refresh 2" in fault
