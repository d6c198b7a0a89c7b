"""The engine is refreshed at the right steps, also in a resumed run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

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


class SharingShim(Shim):
    """A shim whose memory the engine reads: the CPU's, which stands for a GPU's that both of them use."""

    @property
    def on_gpu(self) -> bool:
        return True


class SharingEngine(OnnxEngine):
    """Counts the runs with weights by address, for which ONNX Runtime really reads the shim's memory."""

    bound = 0

    def __enter__(self) -> SharingEngine:
        super().__enter__()
        self.reads_gpu = True
        return self

    def _run_bound(self, *given: Any) -> list[Any]:
        self.bound += 1
        return super()._run_bound(*given)


@pytest.fixture
def sharing_shim(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> SharingShim:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return SharingShim(bundle.manifest.trunk, bundle.path / "trunk.safetensors", OptimizerSettings(lr=1e-2))


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["client.onnx", "client.fp16.onnx"])
def test_weights_by_address_train_as_weights_through_host_memory(
    half: Bundle, shim: Shim, sharing_shim: SharingShim, graph: str
) -> None:
    found = []
    for each in (shim, sharing_shim):
        with SharingEngine(half.path / graph, half.manifest.trunk) as engine:
            refresher = Refresher(each)
            refresher.follow(engine)
            found.append(work(engine, each, refresher, range(4))[0])
            assert engine.bound == (0 if each is shim else 1 + 4)  # the test at the start, then each step
    for ours, theirs in zip(*found, strict=True):
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("fault", ["stuck", "raises"])
def test_an_engine_that_cannot_read_the_gpu_gets_its_weights_through_host_memory(
    bundle: Bundle, sharing_shim: SharingShim, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(SharingEngine):
        def refresh_on_gpu(self, weights: Any) -> None:
            if fault == "raises":
                raise RuntimeError("no such device\nmore of it")

    with Faulty(bundle.path / "client.onnx", bundle.manifest.trunk) as engine:
        refresher = Refresher(sharing_shim)
        refresher.follow(engine)
        _, drifts = work(engine, sharing_shim, refresher, range(3))
    assert max(drifts) < 1e-4
    why = {"stuck": "it computes something else", "raises": "no such device"}[fault]
    assert caplog.messages == [f"onnxruntime cannot read weights on the GPU ({why}): they go through host memory"]
