"""BottleNet++: a learned encoder and decoder at the cut, compared with the same in one autograd graph."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adc_edge.codec.precision import VALUE_PRECISIONS, Precision
from adc_edge.errors import SettingError
from adc_edge.evaluation.codecs.base import Codec, CodecBatch
from adc_edge.evaluation.codecs.bottleneck import BottleNetPlusPlus
from tests.method.test_trunk import SPEC, make_trunk

CLASSES, TOKENS, DIM = 5, SPEC.tokens, SPEC.embed_dim


def bottleneck(share: float = 0.25, precision: Precision = "fp32", seed: int = 0) -> BottleNetPlusPlus:
    return BottleNetPlusPlus(CLASSES, share, DIM, precision, precision, seed)


def a_batch(images: int = 6, seed: int = 0) -> CodecBatch:
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.standard_normal((images, 3, 16, 16)).astype(np.float32))
    return CodecBatch(pixels, rng.integers(CLASSES, size=images), rng)


def loss_of(features: Tensor, soft: Tensor) -> Tensor:
    head = torch.randn(TOKENS * DIM, CLASSES, generator=torch.Generator().manual_seed(1)) / 8
    return F.cross_entropy(features.flatten(1).tanh() @ head, soft)


def step(codec: Codec, trunk: nn.Module, batch: CodecBatch) -> float:
    """Make a step without the optimizers; return the loss."""
    sent = codec.compress(trunk, batch)  # type: ignore[arg-type]
    arrived = codec.extract(sent.header, sent.body)
    loss = loss_of(arrived.features, arrived.soft)
    loss.backward()  # type: ignore[no-untyped-call]
    assert arrived.values.grad is not None
    down = codec.compress_gradient(arrived, arrived.values.grad)
    sent.tensor.backward(codec.extract_gradient(sent, down))  # type: ignore[no-untyped-call]
    return loss.item()


@pytest.mark.parametrize("share", [0.01, 0.25, 1.0])
def test_the_gradients_of_trunk_encoder_and_decoder_are_those_of_one_graph(share: float) -> None:
    codec, batch = bottleneck(share), a_batch()
    assert codec.device is codec.encoder
    assert codec.trainer is codec.decoder
    halves = nn.ModuleList([make_trunk(), codec.encoder, codec.decoder])
    whole = copy.deepcopy(halves)
    step(codec, halves[0], batch)
    trunk, encoder, decoder = whole
    soft = F.one_hot(torch.from_numpy(batch.labels), CLASSES).float()
    loss_of(decoder(encoder(trunk(batch.images))), soft).backward()  # type: ignore[no-untyped-call]
    for (name, mine), theirs in zip(halves.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_the_pair_learns_with_the_task() -> None:
    codec, trunk, batch = bottleneck(), make_trunk().requires_grad_(requires_grad=False), a_batch(12)
    pair = nn.ModuleList([codec.encoder, codec.decoder])
    optimizer = torch.optim.Adam(pair.parameters(), lr=0.02)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        losses.append(step(codec, trunk, batch))
        optimizer.step()
    assert losses[-1] < losses[0] / 2
    for learned, initial in zip(codec.encoder.parameters(), bottleneck().encoder.parameters(), strict=True):
        assert not torch.equal(learned, initial)


@pytest.mark.parametrize(("share", "width"), [(1e-6, 1), (0.01, 1), (0.25, 8), (0.2, 6), (1.0, 32)])
def test_tokens_sent_have_the_right_width_and_values_between_zero_and_one(share: float, width: int) -> None:
    codec = bottleneck(share)
    sent = codec.compress(make_trunk(), a_batch())
    assert sent.header.shape == (6, TOKENS, width)
    assert codec.ratio(6) == width / DIM
    assert len(sent.body) == 4 * 6 * TOKENS * width + 12 * sent.header.triples
    arrived = codec.extract(sent.header, sent.body)
    assert arrived.values.min() >= 0
    assert arrived.values.max() <= 1
    assert arrived.features.shape == (6, TOKENS, DIM)
    assert arrived.features.min() < 0 < arrived.features.max()  # no ReLU: a residual stream has both signs
    assert arrived.soft.argmax(1).tolist() == a_batch().labels.tolist()


def test_encoder_and_decoder_equal_their_definition() -> None:
    """Per token a matrix, each channel to mean 0 and variance 1 over all tokens; sigmoid in the encoder."""
    codec = bottleneck()
    z = np.random.default_rng(0).standard_normal((6, TOKENS, DIM)).astype(np.float32)

    def normed(x: npt.NDArray[Any], matrix: Tensor) -> npt.NDArray[Any]:
        y = x.reshape(-1, x.shape[-1]).astype(np.float64) @ matrix.detach().double().numpy().T
        centred: npt.NDArray[Any] = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5)
        return centred.reshape(6, TOKENS, -1)

    encoder, decoder = dict(codec.encoder.named_parameters()), dict(codec.decoder.named_parameters())
    encoded = 1 / (1 + np.exp(-normed(z, encoder["0.weight"])))
    mine = codec.encoder(torch.from_numpy(z))
    np.testing.assert_allclose(mine.detach().numpy(), encoded, atol=1e-5)
    decoded = codec.decoder(mine).detach().numpy()
    np.testing.assert_allclose(decoded, normed(encoded, decoder["0.weight"]), atol=1e-4)


@pytest.mark.parametrize("precision", VALUE_PRECISIONS)
def test_any_precision_works_and_the_trainer_needs_only_header_bytes_and_its_own_weights(precision: Precision) -> None:
    codec, trunk, batch = bottleneck(0.25, precision), make_trunk(), a_batch()
    step(codec, trunk, batch)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trunk.parameters())
    optimizer = torch.optim.Adam(codec.decoder.parameters(), lr=0.01)
    optimizer.step()
    elsewhere = bottleneck(0.25, precision, seed=9)
    elsewhere.decoder.load_state_dict(codec.decoder.state_dict())
    sent = codec.compress(trunk, batch)
    there = elsewhere.extract(sent.header, memoryview(bytes(sent.body)))
    assert torch.equal(there.features, codec.extract(sent.header, sent.body).features)
    exact = sent.tensor.detach()
    worst = {"fp32": 0.0, "fp16": 1e-3, "bf16": 1e-2, "int8": 0.005}.get(precision, 0.51)  # of a token's largest
    assert ((there.values.detach() - exact).abs() <= worst * exact.abs().amax(-1, keepdim=True)).all()


def test_test_images_do_not_depend_on_one_another_and_change_no_state() -> None:
    codec, trunk = bottleneck(), make_trunk()
    step(codec, trunk, a_batch())
    features = trunk(a_batch(seed=1).images).detach()
    before = copy.deepcopy(codec.decoder.state_dict())
    codec.encoder.eval()
    together, alone = codec.through(features), codec.through(features[2:3])
    assert together is not None
    assert alone is not None
    torch.testing.assert_close(together[2:3], alone)
    assert codec.decoder.training
    assert not codec.encoder.training
    for name, value in codec.decoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_its_weights_are_a_function_of_the_seed_and_the_global_generator_does_not_change() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (bottleneck(seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    for half in ("encoder", "decoder"):
        matrices = [next(getattr(codec, half).parameters()) for codec in (one, same, other)]
        assert torch.equal(matrices[0], matrices[1])
        assert not torch.equal(matrices[0], matrices[2])


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(SettingError, match="share"):
        bottleneck(share)
