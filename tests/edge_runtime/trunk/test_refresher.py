"""The engine is refreshed at the right steps, also in a resumed run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from adc_edge.arrays import Float32
from adc_edge.edge_runtime.engines.onnxruntime import OnnxEngine
from adc_edge.edge_runtime.trunk.refresher import Refresher
from adc_edge.edge_runtime.trunk.trainer import Shim
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.storage.bundle import Bundle


@pytest.fixture
def engine(bundle: Bundle) -> Iterator[OnnxEngine]:
    with OnnxEngine(bundle.path / "client.onnx", bundle.manifest.trunk) as engine:
        yield engine


@pytest.fixture
def shim(bundle: Bundle) -> Shim:
    return Shim(bundle.manifest.trunk, bundle.path / "trunk.safetensors", OptimizerSettings(lr=1e-2))


def images(seed: int) -> Float32:
    return np.random.default_rng(seed).standard_normal((8, 3, 16, 16)).astype(np.float32)


INIT_ROWS = np.array([0, 1, 2], np.int64)


def work(engine: OnnxEngine, shim: Shim, refresher: Refresher, steps: range) -> tuple[list[Float32], list[float]]:
    """Activations that are sent, and the drift of each step."""
    sent, drifts = [], []
    for step in steps:
        part = engine.compress(images(step), INIT_ROWS, 5)
        shim.recompute(images(step), part)
        sent.append(part.activations)
        drifts.append(shim.drift(part))
        shim.backward(np.ones_like(part.activations))
        shim.update(step, 100)
        if refresher.due(step):
            refresher.now()
    return sent, drifts


def test_by_default_the_engine_never_drifts(engine: OnnxEngine, shim: Shim) -> None:
    refresher = Refresher(shim)
    refresher.follow(engine)
    _, drifts = work(engine, shim, refresher, range(5))
    assert max(drifts) < 1e-4
    assert not [name for name in refresher.arrays() if name.startswith("engine.")]  # nothing is kept twice


def test_refreshed_every_third_step_it_drifts_in_between_and_only_there(engine: OnnxEngine, shim: Shim) -> None:
    refresher = Refresher(shim, every=3)
    refresher.follow(engine)
    _, drifts = work(engine, shim, refresher, range(9))
    assert [drift > 1e-3 for drift in drifts] == [False, True, True] * 3


@pytest.mark.parametrize("until", [3, 4, 5])
def test_a_resumed_run_sends_the_same_activations_as_an_undisturbed_one(
    bundle: Bundle, engine: OnnxEngine, shim: Shim, until: int
) -> None:
    refresher = Refresher(shim, every=3)
    refresher.follow(engine)
    work(engine, shim, refresher, range(until))
    kept: dict[str, Any] = {name: np.array(value) for name, value in refresher.arrays().items()}
    expected, _ = work(engine, shim, refresher, range(until, 9))

    again = Shim(bundle.manifest.trunk, bundle.path / "trunk.safetensors", OptimizerSettings(lr=1e-2))
    returned = Refresher(again, every=3)
    returned.restore(kept)
    with OnnxEngine(bundle.path / "client.onnx", bundle.manifest.trunk) as other:
        returned.follow(other)
        found, _ = work(other, again, returned, range(until, 9))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_restoring_a_checkpoint_drops_the_micro_batches_in_progress(engine: OnnxEngine, shim: Shim) -> None:
    refresher = Refresher(shim)
    refresher.follow(engine)
    kept = {name: np.array(value) for name, value in refresher.arrays().items()}
    first = engine.compress(images(0), INIT_ROWS, 5)
    for _ in range(2):
        shim.recompute(images(0), first)
    shim.backward(np.ones_like(first.activations))
    refresher.restore(kept)
    assert shim.waiting == 0
    assert all(p.grad is None for p in shim.trunk.parameters())
    assert engine.compress(images(0), INIT_ROWS, 5).activations.tobytes() == first.activations.tobytes()
