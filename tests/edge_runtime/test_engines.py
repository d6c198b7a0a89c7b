"""Both engines behind one face, and the shim that trains."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adc_edge.bundle import Bundle
from adc_edge.edge_runtime.engine import Int64, without_empty
from adc_edge.edge_runtime.onnx_engine import OnnxEngine
from adc_edge.edge_runtime.shim import Shim, TorchEngine
from adc_edge.errors import SettingError
from adc_edge.learning import OptimizerSettings
from adc_edge.precision import Float32
from adc_edge.trunk import Trunk

LEARNING = OptimizerSettings(lr=1e-2)


@pytest.fixture
def engine(bundle: Bundle) -> Iterator[OnnxEngine]:
    with OnnxEngine(bundle.path / "client.onnx", bundle.manifest.trunk) as engine:
        yield engine


def make_shim(bundle: Bundle, optimizer: OptimizerSettings | None = LEARNING) -> Shim:
    return Shim(bundle.manifest.trunk, bundle.path / "trunk.safetensors", optimizer)


def images(count: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal((count, 3, 16, 16)).astype(np.float32)


def rows(*values: int) -> Int64:
    return np.array(values, np.int64)


def test_both_engines_send_the_same(engine: OnnxEngine, bundle: Bundle) -> None:
    ours, theirs = (e.compress(images(12), rows(3, 0, 9, 5), 6) for e in (engine, TorchEngine(make_shim(bundle))))
    assert ours.assignment.tolist() == theirs.assignment.tolist()
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    np.testing.assert_allclose(ours.activations, theirs.activations, atol=1e-5)


def test_evaluation_merges_nothing_even_where_images_are_alike(engine: OnnxEngine, bundle: Bundle) -> None:
    batch = images(5)
    batch[3] = batch[1]
    batch[4] = batch[1]
    trunk = Trunk(bundle.manifest.trunk)
    trunk.load_state_dict(load_file(bundle.path / "trunk.safetensors"))
    expected = trunk(torch.from_numpy(batch)).detach().numpy()
    for each in (engine, TorchEngine(make_shim(bundle))):
        np.testing.assert_allclose(each.whole(batch), expected, atol=1e-5)


def test_empty_clusters_are_dropped_and_the_others_numbered_anew() -> None:
    activations = np.arange(8, dtype=np.float32).reshape(4, 1, 2)
    sent = without_empty(activations, rows(3, 1, 3), np.arange(4).reshape(4, 1), rows(0, 1, 0, 2))
    assert sent.activations.tolist() == [[[2.0, 3.0]], [[6.0, 7.0]]]
    assert sent.assignment.tolist() == [1, 0, 1]
    assert sent.tokens.tolist() == [[1], [3]]


def test_the_engine_follows_the_shims_weights_after_each_step(engine: OnnxEngine, bundle: Bundle) -> None:
    shim = make_shim(bundle)
    engine.refresh(shim.weights())
    first = engine.compress(images(8), rows(0, 1, 2), 5).activations
    for step in range(3):
        sent = engine.compress(images(8), rows(0, 1, 2), 5)
        shim.recompute(images(8), sent)
        assert shim.drift(sent) < 1e-4
        shim.apply(np.ones_like(sent.activations), step, 3)
        engine.refresh(shim.weights())
    assert np.abs(engine.compress(images(8), rows(0, 1, 2), 5).activations - first).max() > 0.01


def test_drift_shows_an_engine_that_was_not_refreshed(engine: OnnxEngine, bundle: Bundle) -> None:
    shim = make_shim(bundle)
    sent = engine.compress(images(8), rows(0, 1, 2), 5)
    shim.recompute(images(8), sent)
    shim.apply(np.ones_like(sent.activations), 0, 1)
    shim.recompute(images(8), sent)
    assert shim.drift(sent) > 1e-3


def test_the_shims_step_is_plain_autograd_and_the_optimizers(engine: OnnxEngine, bundle: Bundle) -> None:
    shim = make_shim(bundle, OptimizerSettings("sgd", lr=1e-2, momentum=0.5))  # Adam would blow up rounding of zeros
    trunk = Trunk(bundle.manifest.trunk)
    trunk.load_state_dict(load_file(bundle.path / "trunk.safetensors"))
    reference = torch.optim.SGD(trunk.parameters(), lr=1e-2, momentum=0.5)
    for step in range(3):
        x = images(8, seed=step)
        engine.refresh(shim.weights())
        sent = engine.compress(x, rows(0, 1, 2), 5)
        down = np.random.default_rng(step).standard_normal(sent.activations.shape).astype(np.float32)
        shim.recompute(x, sent)
        shim.apply(down, step, 3)
        z = trunk(torch.from_numpy(x))  # whole output, merged and selected by hand
        members = [z[torch.from_numpy(sent.assignment) == t].mean(0) for t in range(len(sent.tokens))]
        chosen = torch.stack([m[torch.from_numpy(t)] for m, t in zip(members, sent.tokens, strict=True)])
        reference.zero_grad()
        chosen.backward(torch.from_numpy(down))  # type: ignore[no-untyped-call]
        reference.step()
    for (name, ours), theirs in zip(shim.trunk.named_parameters(), trunk.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4, msg=name)


def test_a_checkpoint_continues_bit_for_bit(bundle: Bundle) -> None:
    def train(shim: Shim, first: int, last: int) -> None:
        for step in range(first, last):
            shim.compress(images(8, step), rows(0, 1, 2), 5)
            shape = shim._output.shape  # type: ignore[union-attr]
            shim.apply(np.random.default_rng(step).standard_normal(shape).astype(np.float32), step, 6)

    through, resumed = make_shim(bundle), make_shim(bundle)
    train(through, 0, 6)
    train(resumed, 0, 3)
    kept = {name: value.copy() for name, value in resumed.arrays().items()}
    resumed = make_shim(bundle)
    resumed.restore(kept)
    train(resumed, 3, 6)
    assert through.safetensors() == resumed.safetensors()


@pytest.mark.parametrize("kind", ["onnxruntime", "torch"])
@pytest.mark.parametrize(
    ("batch", "seeds", "slots", "words"),
    [
        (np.zeros((4, 3, 8, 8), np.float32), rows(0, 1), 5, ["[4, 3, 8, 8]", "[16, 16]", "'B', 3, 16, 16"][:1]),
        (np.zeros((4, 3, 16, 16)), rows(0, 1), 5, ["float64", "float32"]),
        (images(4), np.array([0, 1], np.int32), 5, ["int32", "int64"]),
        (images(4), rows(0, 1, 2, 3, 0), 5, ["1 to 4"]),
        (images(4), rows(1, 1), 5, ["distinct rows"]),
        (images(4), rows(0, 4), 5, ["distinct rows"]),
        (images(4), rows(0, 1), 17, ["17 slots", "1 to 16"]),
    ],
)
def test_inputs_are_checked_first_and_the_error_shows_both_sides(
    kind: str, batch: Float32, seeds: Int64, slots: int, words: list[str], engine: OnnxEngine, bundle: Bundle
) -> None:
    with pytest.raises(SettingError) as caught:
        (engine if kind == "onnxruntime" else TorchEngine(make_shim(bundle))).compress(batch, seeds, slots)
    for word in words:
        assert word in str(caught.value)


def test_a_refresh_with_foreign_weights_is_refused(engine: OnnxEngine, bundle: Bundle) -> None:
    weights = dict(make_shim(bundle).weights())
    with pytest.raises(SettingError, match=r"blocks\.9"):
        engine.refresh(weights | {"blocks.9.mlp.fc1.bias": np.zeros(3, np.float32)})
    with pytest.raises(SettingError, match="cls_token"):
        engine.refresh(weights | {"cls_token": np.zeros((1, 1, 31), np.float32)})


def test_an_engine_is_cheap_to_build_and_loads_when_entered(tmp_path: Path, bundle: Bundle) -> None:
    engine = OnnxEngine(tmp_path / "absent.onnx", bundle.manifest.trunk)
    with pytest.raises(Exception, match="absent"), engine:
        pass
