"""C3-SL: samples bound and summed, against convolution by definition and against autograd in one graph."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adc_edge.codec.precision import VALUE_PRECISIONS, Precision
from adc_edge.errors import SettingError
from adc_edge.evaluation.codecs.base import CodecBatch
from adc_edge.evaluation.codecs.c3sl import C3sl
from tests.method.test_trunk import SPEC, make_trunk

CLASSES, TOKENS, DIM = 5, SPEC.tokens, SPEC.embed_dim
Float64 = npt.NDArray[np.float64]


def c3sl(group: int, precision: Precision = "fp32", tokens: int = TOKENS, dim: int = DIM, seed: int = 7) -> C3sl:
    return C3sl(CLASSES, 1 / group, tokens, dim, precision, precision, seed)


def a_batch(images: int) -> CodecBatch:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.standard_normal((images, 3, 16, 16)).astype(np.float32))
    return CodecBatch(pixels, rng.integers(CLASSES, size=images), rng)


def loss_of(features: Tensor, soft: Tensor) -> Tensor:
    head = torch.randn(TOKENS * DIM, CLASSES, generator=torch.Generator().manual_seed(1))
    return F.cross_entropy(features.flatten(1).tanh() @ head, soft)


def convolve(x: Float64, key: Float64) -> Float64:
    """Circular convolution as it is defined."""
    n = len(x)
    return np.array([sum(x[j] * key[(i - j) % n] for j in range(n)) for i in range(n)])


def correlate(x: Float64, key: Float64) -> Float64:
    """Circular correlation as it is defined."""
    n = len(x)
    return np.array([sum(x[(i + j) % n] * key[j] for j in range(n)) for i in range(n)])


def cosine(codec: C3sl, images: int) -> float:
    """Similarity of samples and their estimates."""
    flat = torch.randn(images, codec.total, generator=torch.Generator().manual_seed(0))
    return F.cosine_similarity(codec.unbind(codec.bind(flat), images), flat).mean().item()


@pytest.mark.parametrize(("group", "images"), [(1, 2), (2, 4), (3, 7), (8, 5)])
@pytest.mark.parametrize(("tokens", "dim"), [(5, 6), (5, 7)])  # an even and an odd number of values
def test_binding_is_circular_convolution_and_unbinding_circular_correlation(
    group: int, images: int, tokens: int, dim: int
) -> None:
    codec = c3sl(group, tokens=tokens, dim=dim)
    flat = torch.randn(images, tokens * dim, generator=torch.Generator().manual_seed(0))
    samples, keys = flat.double().numpy(), [codec.key(i).double().numpy() for i in range(group)]
    sums = [
        sum(convolve(samples[i], keys[i - start]) for i in range(start, min(start + group, images)))
        for start in range(0, images, group)
    ]
    bound = codec.bind(flat)
    np.testing.assert_allclose(bound.numpy(), np.stack(sums), atol=1e-5)
    expected = [correlate(bound[i // group].double().numpy(), keys[i % group]) for i in range(images)]
    np.testing.assert_allclose(codec.unbind(bound, images).numpy(), np.stack(expected), atol=1e-5)


@pytest.mark.parametrize(("group", "images"), [(1, 3), (2, 6), (4, 6), (8, 5)])
def test_its_gradient_is_that_of_device_link_and_trainer_in_one_graph(group: int, images: int) -> None:
    codec, batch, trunk = c3sl(group), a_batch(images), make_trunk()
    sent = codec.compress(trunk, batch)
    arrived = c3sl(group).extract(sent.header, sent.body)
    loss_of(arrived.features, arrived.soft).backward()  # type: ignore[no-untyped-call]
    assert arrived.values.grad is not None
    down = codec.compress_gradient(arrived, arrived.values.grad)
    sent.tensor.backward(codec.extract_gradient(sent, down))  # type: ignore[no-untyped-call]

    whole = make_trunk()
    features = codec.unbind(codec.bind(whole(batch.images).flatten(1)), images)
    soft = F.one_hot(torch.from_numpy(batch.labels), CLASSES).float()
    eager = torch.autograd.grad(loss_of(features, soft), list(whole.parameters()))
    for mine, theirs in zip(trunk.parameters(), eager, strict=True):
        torch.testing.assert_close(mine.grad, theirs, rtol=1e-3, atol=1e-6)
    groups = math.ceil(images / group)
    assert sent.header.shape == sent.tensor.shape == (groups, TOKENS * DIM)
    assert len(sent.body) == 4 * groups * TOKENS * DIM + 12 * sent.header.triples
    assert len(down) == 4 * groups * TOKENS * DIM
    assert arrived.soft.argmax(1).tolist() == batch.labels.tolist()


@pytest.mark.parametrize(("group", "images", "ratio"), [(1, 3, 1.0), (4, 8, 0.25), (4, 9, 3 / 9), (64, 16, 1 / 16)])
def test_the_ratio_counts_a_last_group_that_is_smaller(group: int, images: int, ratio: float) -> None:
    assert c3sl(group).ratio(images) == ratio


@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_unbinding_finds_the_sample_in_noise_that_grows_with_the_group(group: int) -> None:
    """Its own key gives the sample and as much noise, each other sample of the group as much again."""
    assert cosine(c3sl(group, tokens=64, dim=64), 2 * group) == pytest.approx((1 + group) ** -0.5, abs=0.03)


def test_the_keys_are_nearly_orthogonal_of_unit_length_and_a_function_of_the_seed() -> None:
    codec = c3sl(8, tokens=64, dim=64)
    keys = torch.stack([codec.key(i) for i in range(8)]).double()
    products = keys @ keys.T
    torch.testing.assert_close(products.diagonal(), torch.ones(8, dtype=torch.float64))
    assert (products - torch.eye(8)).abs().max() < 5 / 64  # five of 1/sqrt(n)
    assert torch.equal(c3sl(8, tokens=64, dim=64).key(3), codec.key(3))
    assert not torch.equal(c3sl(8, tokens=64, dim=64, seed=8).key(3), codec.key(3))


@pytest.mark.parametrize("precision", VALUE_PRECISIONS)
def test_any_precision_works_and_the_trainer_needs_only_header_and_bytes(precision: Precision) -> None:
    codec, batch, trunk = c3sl(2, precision), a_batch(5), make_trunk()
    sent = codec.compress(trunk, batch)
    arrived = codec.extract(sent.header, sent.body)
    elsewhere = c3sl(2, precision).extract(sent.header, memoryview(bytes(sent.body)))
    assert torch.equal(arrived.features, elsewhere.features)
    assert arrived.features.shape == (5, TOKENS, DIM)
    exact = sent.tensor.detach()
    worst = {"fp32": 0.0, "fp16": 1e-3, "bf16": 1e-2, "int8": 0.005}.get(precision, 0.51)  # of a group's largest
    assert ((arrived.values.detach() - exact).abs() <= worst * exact.abs().amax(1, keepdim=True)).all()
    loss_of(arrived.features, arrived.soft).backward()  # type: ignore[no-untyped-call]
    assert arrived.values.grad is not None
    down = codec.compress_gradient(arrived, arrived.values.grad)
    sent.tensor.backward(codec.extract_gradient(sent, down))  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in trunk.parameters())


def test_test_activations_go_the_same_way_and_may_be_the_first_to_need_the_keys() -> None:
    codec, batch, trunk = c3sl(4), a_batch(6), make_trunk()
    with torch.inference_mode():
        through = codec.through(trunk(batch.images))
    assert through is not None
    sent = codec.compress(trunk, batch)
    arrived = codec.extract(sent.header, sent.body)
    torch.testing.assert_close(through, arrived.features.detach(), rtol=1e-4, atol=1e-5)
    loss_of(arrived.features, arrived.soft).backward()  # type: ignore[no-untyped-call]


def test_a_key_is_made_once_and_only_for_places_that_are_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, made = c3sl(1000), []
    key = codec.key

    def counted(place: int) -> Tensor:
        made.append(place)
        return key(place)

    monkeypatch.setattr(codec, "key", counted)
    for images in (2, 5, 3):
        sums = codec.bind(torch.randn(images, codec.total, generator=torch.Generator().manual_seed(0)))
        codec.unbind(sums, images)
    assert sums.shape == (1, codec.total)
    assert made == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(SettingError, match="share"):
        C3sl(CLASSES, share, TOKENS, DIM, "fp32", "fp32", 0)
