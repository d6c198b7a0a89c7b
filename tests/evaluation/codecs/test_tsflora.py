"""Chosen and merged tokens by definition, and adapters that alone are trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from adc_edge.codec.precision import encoded_bytes
from adc_edge.errors import SettingError
from adc_edge.evaluation.codecs.base import CodecBatch
from adc_edge.evaluation.codecs.tsflora import RANK, TsfLora
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.optimizer.torch_optimizer import Optimizer
from adc_edge.wire.messages import TRIPLE_BYTES
from tests.method.test_trunk import SPEC, make_trunk

CLASSES, TOKENS, DIM = 5, SPEC.tokens, SPEC.embed_dim


def tsflora(share: float = 0.4) -> TsfLora:
    return TsfLora(SPEC, CLASSES, share, "fp32", "fp32", seed=0)


def a_batch(images: int = 4) -> CodecBatch:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.standard_normal((images, 3, 16, 16)).astype(np.float32))
    return CodecBatch(pixels, rng.integers(CLASSES, size=images), rng)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.94, 1.0])
def test_the_tokens_of_most_attention_stay_and_the_others_become_their_mean(share: float) -> None:
    codec = tsflora(share)
    rng = np.random.default_rng(0)
    tokens, scores = rng.standard_normal((3, TOKENS, DIM)), rng.random((3, TOKENS))
    found = codec.merge(torch.from_numpy(tokens), torch.from_numpy(scores)).numpy()
    kept = max(3, int(share * TOKENS))
    assert found.shape == (3, kept, DIM)
    if kept == TOKENS:
        np.testing.assert_array_equal(found, tokens)
        return
    for image in range(3):
        order = 1 + np.argsort(-scores[image, 1:])
        chosen, others = [0, *order[: kept - 2]], order[kept - 2 :]
        np.testing.assert_array_equal(found[image, :-1], tokens[image, chosen])
        mean = np.average(tokens[image, others], axis=0, weights=scores[image, others])
        np.testing.assert_allclose(found[image, -1], mean)


def test_the_trunk_starts_unchanged_and_only_its_adapters_learn() -> None:
    trunk, codec, batch = make_trunk(), tsflora(), a_batch()
    before = {name: value.detach().clone() for name, value in trunk.state_dict().items()}
    output = trunk(batch.images).detach()
    codec.adapt(trunk)
    torch.testing.assert_close(trunk(batch.images), output)
    learning = {name: p for name, p in trunk.named_parameters() if p.requires_grad}
    assert len(learning) == 2 * 2 * SPEC.depth  # two factors of two layers a block
    assert all(name.endswith((".down", ".up")) and RANK in p.shape for name, p in learning.items())
    optimizer = Optimizer(trunk, OptimizerSettings(name="adam", lr=0.1))
    for step in range(2):  # B is zero at first: A has a gradient from the second step on
        sent = codec.compress(trunk, batch)
        arrived = codec.extract(sent.header, memoryview(bytes(sent.body)))
        weights = torch.randn(DIM, CLASSES, generator=torch.Generator().manual_seed(1))
        F.cross_entropy(arrived.features.mean(1) @ weights, arrived.soft).backward()  # type: ignore[no-untyped-call]
        assert arrived.values.grad is not None
        gradient = codec.extract_gradient(sent, codec.compress_gradient(arrived, arrived.values.grad))
        sent.tensor.backward(gradient)  # type: ignore[no-untyped-call]
        optimizer.step(step, 2)
    after = trunk.state_dict()
    assert all(
        torch.equal(after[name.replace("parametrizations.", "").replace(".original", "")], value)
        for name, value in before.items()
        if name in after
    )
    changed = {name for name, p in trunk.named_parameters() if p.requires_grad and p.detach().abs().sum() > 0}
    assert changed == set(learning)
    assert not torch.allclose(trunk(batch.images), output)


def test_bytes_are_those_of_the_tokens_sent() -> None:
    codec, batch = tsflora(0.4), a_batch()
    sent = codec.compress(make_trunk(), batch)
    kept = int(0.4 * TOKENS)
    assert codec.ratio(4) == kept / TOKENS
    assert len(sent.body) == encoded_bytes((4, kept, DIM), "fp32") + 4 * TRIPLE_BYTES
    with pytest.raises(SettingError, match="share"):
        tsflora(0.0)
