"""Both engines behind one face, and the shim that trains."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adc_edge.arrays import Float32, Int64
from adc_edge.edge_runtime.engines.onnxruntime import OnnxEngine
from adc_edge.edge_runtime.engines.torch import TorchEngine
from adc_edge.edge_runtime.trunk.trainer import Shim
from adc_edge.errors import SettingError
from adc_edge.method.compressed import CompressedBatch
from adc_edge.method.trunk import Trunk
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.storage.bundle import Bundle

LEARNING = OptimizerSettings(lr=1e-2)


@pytest.fixture
def engine(bundle: Bundle) -> Iterator[OnnxEngine]:
    with OnnxEngine(bundle.path / "client.onnx", bundle.manifest.trunk) as engine:
        yield engine


def make_shim(bundle: Bundle, optimizer: OptimizerSettings | None = LEARNING, freeze_first: int = 0) -> Shim:
    return Shim(bundle.manifest.trunk, bundle.path / "trunk.safetensors", optimizer, freeze_first)


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
        np.testing.assert_allclose(each.full_output(batch), expected, atol=1e-5)


def test_the_engine_follows_the_shims_weights_after_each_step(engine: OnnxEngine, bundle: Bundle) -> None:
    shim = make_shim(bundle)
    engine.refresh(shim.weights())
    first = engine.compress(images(8), rows(0, 1, 2), 5).activations
    for step in range(3):
        sent = engine.compress(images(8), rows(0, 1, 2), 5)
        shim.recompute(images(8), sent)
        assert shim.drift(sent) < 1e-4
        shim.backward(np.ones_like(sent.activations))
        shim.update(step, 3)
        engine.refresh(shim.weights())
    assert np.abs(engine.compress(images(8), rows(0, 1, 2), 5).activations - first).max() > 0.01


def test_drift_shows_an_engine_that_was_not_refreshed(engine: OnnxEngine, bundle: Bundle) -> None:
    shim = make_shim(bundle)
    sent = engine.compress(images(8), rows(0, 1, 2), 5)
    shim.recompute(images(8), sent)
    shim.backward(np.ones_like(sent.activations))
    shim.update(0, 1)
    shim.recompute(images(8), sent)
    assert shim.drift(sent) > 1e-3


def reference_trunk(bundle: Bundle) -> Trunk:
    trunk = Trunk(bundle.manifest.trunk)
    trunk.load_state_dict(load_file(bundle.path / "trunk.safetensors"))
    return trunk


def merged_by_hand(trunk: Trunk, x: Float32, sent: CompressedBatch) -> Tensor:
    """The whole output, merged and selected."""
    z = trunk(torch.from_numpy(x))
    members = [z[torch.from_numpy(sent.assignment) == t].mean(0) for t in range(len(sent.tokens))]
    return torch.stack([m[torch.from_numpy(t)] for m, t in zip(members, sent.tokens, strict=True)])


def random_like(values: Float32, seed: int) -> Float32:
    return np.random.default_rng(seed).standard_normal(values.shape).astype(np.float32)


def gradients(shim: Shim) -> dict[str, Tensor]:
    return {name: p.grad for name, p in shim.trunk.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["onnxruntime", "torch"])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_shims_step_is_plain_autograd_and_the_optimizers(
    kind: str, micro_batches: int, engine: OnnxEngine, bundle: Bundle
) -> None:
    shim = make_shim(bundle, OptimizerSettings("sgd", lr=1e-2, momentum=0.5))  # Adam would blow up rounding of zeros
    trunk = reference_trunk(bundle)
    reference = torch.optim.SGD(trunk.parameters(), lr=1e-2, momentum=0.5)
    for step in range(3):
        batches = [images(8, seed=10 * step + m) for m in range(micro_batches)]
        engine.refresh(shim.weights())
        sents = []
        for x in batches:  # all of them under way before the first gradient comes
            sents.append((shim if kind == "torch" else engine).compress(x, rows(0, 1, 2), 5))
            if kind == "onnxruntime":
                shim.recompute(x, sents[-1])
        reference.zero_grad()
        for x, sent in zip(batches, sents, strict=True):
            down = random_like(sent.activations, step)
            assert shim.drift(sent) < 1e-5
            shim.backward(down)
            merged_by_hand(trunk, x, sent).backward(torch.from_numpy(down))  # type: ignore[no-untyped-call]
        for (name, ours), theirs in zip(shim.trunk.named_parameters(), trunk.parameters(), strict=True):
            assert ours.grad is not None
            scale = float(theirs.grad.abs().max())  # type: ignore[union-attr]
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6 * max(1.0, scale), rtol=1e-4, msg=name)
        shim.update(step, 3)
        reference.step()
    for (name, ours), theirs in zip(shim.trunk.named_parameters(), trunk.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4, msg=name)


def test_gradients_are_those_of_micro_batches_done_one_by_one_and_graphs_go_as_they_are_used(bundle: Bundle) -> None:
    ahead, one_by_one = make_shim(bundle), make_shim(bundle)
    for m in range(3):
        ahead.compress(images(8, m), rows(0, 1, 2), 5)
    assert ahead.waiting == 3
    outputs = [weakref.ref(output) for output in ahead._waiting]
    for m in range(3):
        down = random_like(one_by_one.compress(images(8, m), rows(0, 1, 2), 5).activations, m)
        one_by_one.backward(down)
        ahead.backward(down)
        assert [output() is None for output in outputs] == [True] * (m + 1) + [False] * (2 - m)
        assert ahead.waiting == 2 - m
    theirs = gradients(one_by_one)
    for name, gradient in gradients(ahead).items():
        assert torch.equal(gradient, theirs[name]), name  # to the bit: a run that comes back may do so
    ahead.update(0, 1)
    one_by_one.update(0, 1)
    assert ahead.safetensors() == one_by_one.safetensors()
    assert not gradients(ahead)


def test_a_step_given_up_leaves_nothing_behind(bundle: Bundle) -> None:
    plain, disturbed = make_shim(bundle), make_shim(bundle)
    disturbed.compress(images(8, 7), rows(0, 1, 2), 5)
    disturbed.backward(np.ones_like(disturbed.compress(images(8, 8), rows(0, 1, 2), 5).activations))
    assert (disturbed.waiting, len(gradients(disturbed)) > 0) == (1, True)
    disturbed.drop()
    assert (disturbed.waiting, gradients(disturbed)) == (0, {})
    for shim in (plain, disturbed):
        shim.backward(random_like(shim.compress(images(8), rows(0, 1, 2), 5).activations, 0))
        shim.update(0, 1)
    assert plain.safetensors() == disturbed.safetensors()


def test_nothing_waits_in_a_shim_that_does_not_learn(bundle: Bundle) -> None:
    shim = make_shim(bundle, None)
    shim.compress(images(8), rows(0, 1, 2), 5)
    assert shim.waiting == 0


def is_frozen(name: str, blocks: int) -> bool:
    return not name.startswith("blocks.") or int(name.split(".")[1]) < blocks


def saved_mb(shim: Shim, forward: Callable[[], object]) -> float:
    """Megabytes that a forward pass keeps for its backward pass, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in shim.trunk.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(kept.values()) / 1e6


@pytest.mark.parametrize("kind", ["onnxruntime", "torch"])
def test_frozen_blocks_stay_and_the_others_learn_as_with_full_autograd(
    kind: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim = make_shim(bundle, OptimizerSettings("sgd", lr=1e-2), freeze_first=1)
    trunk = reference_trunk(bundle)
    before = {name: value.copy() for name, value in shim.weights().items()}
    assert before.keys() == dict(trunk.named_parameters()).keys()
    x = images(8)
    with OnnxEngine(bundle.path / "client.onnx", bundle.manifest.trunk, freeze_first=1) as engine:
        sent = (shim if kind == "torch" else engine).compress(x, rows(0, 1, 2), 5)
    if kind == "onnxruntime":
        hidden = trunk.blocks[0](trunk.embed(torch.from_numpy(x))).detach()
        assert sent.hidden is not None
        np.testing.assert_allclose(sent.hidden, hidden.numpy(), atol=1e-4)
        with monkeypatch.context() as patch:  # what is frozen is not computed again
            patch.setattr(shim.trunk, "embed", lambda images: pytest.fail("the embedding was computed again"))
            shim.recompute(x, sent)
    down = random_like(sent.activations, 1)
    shim.backward(down)
    merged_by_hand(trunk, x, sent).backward(torch.from_numpy(down))  # type: ignore[no-untyped-call]
    expected = {name: p.grad for name, p in trunk.named_parameters() if not is_frozen(name, 1)}
    ours = gradients(shim)
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)
    shim.update(0, 1)
    for name, value in shim.weights().items():
        assert np.array_equal(value, before[name]) == is_frozen(name, 1), name


def test_the_torch_engine_keeps_nothing_of_frozen_blocks(bundle: Bundle) -> None:
    frozen, whole = make_shim(bundle, freeze_first=1), make_shim(bundle)
    mb = [saved_mb(shim, partial(shim.compress, images(8), rows(0, 1, 2), 5)) for shim in (frozen, whole)]
    assert mb[0] < 0.65 * mb[1]  # one block of two, of which the last keeps less
    assert all(
        (p.requires_grad, p.grad) == (not is_frozen(name, 1), None) for name, p in frozen.trunk.named_parameters()
    )


def test_freezing_too_much_or_a_bundle_too_old_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    client, spec = bundle.path / "client.onnx", bundle.manifest.trunk
    for blocks in (-1, 2):
        for make in (lambda k: make_shim(bundle, freeze_first=k), lambda k: OnnxEngine(client, spec, freeze_first=k)):
            with pytest.raises(SettingError, match=r"0 to 1.*--trunk frozen|--trunk frozen"):
                make(blocks)
    old = onnx.load(client)
    del old.graph.output[4:]
    onnx.save(old, tmp_path / "client.onnx")
    with OnnxEngine(tmp_path / "client.onnx", spec) as engine:
        assert engine.compress(images(4), rows(0, 1), 3).hidden is None
    with pytest.raises(SettingError, match="export the model again"), OnnxEngine(tmp_path / "client.onnx", spec, 0, 1):
        pass


@pytest.mark.parametrize("freeze_first", [0, 1])
def test_a_checkpoint_continues_bit_for_bit(freeze_first: int, bundle: Bundle) -> None:
    def train(shim: Shim, first: int, last: int) -> None:
        for step in range(first, last):
            for m in range(2):
                shim.compress(images(8, 2 * step + m), rows(0, 1, 2), 5)
            for m in range(2):
                shim.backward(random_like(shim._waiting[0].detach().numpy(), 2 * step + m))
            shim.update(step, 6)

    through, resumed = make_shim(bundle, freeze_first=freeze_first), make_shim(bundle, freeze_first=freeze_first)
    train(through, 0, 6)
    train(resumed, 0, 3)
    kept = {name: value.copy() for name, value in resumed.arrays().items()}
    assert {f"trunk.{name}" for name in resumed.weights()} < kept.keys()
    resumed = make_shim(bundle, freeze_first=freeze_first)
    resumed.restore(kept)
    train(resumed, 3, 6)
    assert through.safetensors() == resumed.safetensors()


@pytest.mark.parametrize("kind", ["onnxruntime", "torch"])
@pytest.mark.parametrize(
    ("batch", "init_rows", "slots", "words"),
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
    kind: str, batch: Float32, init_rows: Int64, slots: int, words: list[str], engine: OnnxEngine, bundle: Bundle
) -> None:
    with pytest.raises(SettingError) as caught:
        (engine if kind == "onnxruntime" else TorchEngine(make_shim(bundle))).compress(batch, init_rows, slots)
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
