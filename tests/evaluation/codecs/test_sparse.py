"""Top-K and RandTopK: the values sent, their bytes, and the gradient that comes back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adc_edge.arrays import Int64
from adc_edge.codec.precision import VALUE_PRECISIONS, Precision
from adc_edge.errors import ProtocolError, SettingError
from adc_edge.evaluation.codecs.base import Codec, CodecBatch, EncodedBatch
from adc_edge.evaluation.codecs.sparse import TopK, pack_places, place_bytes, unpack_places
from tests.method.test_trunk import SPEC, make_trunk

CLASSES, TOKENS, DIM = 5, SPEC.tokens, SPEC.embed_dim
TOTAL = TOKENS * DIM  # 544 values a sample, so that a place takes 10 bits
PLAIN_BYTES = 8 * TOTAL  # a sample's, in fp32, both ways
SHARES = (0.003, 0.014, 0.068, 0.136, 0.272, 0.41, 1.0)


def top_k(share: float = 0.2, precision: Precision = "fp32") -> TopK:
    return TopK(CLASSES, share, TOKENS, DIM, precision, precision)


def rand_top_k(share: float = 0.2, precision: Precision = "fp32", outside: float = 0.1) -> TopK:
    return TopK(CLASSES, share, TOKENS, DIM, precision, precision, outside)


def a_batch(images: int = 6, seed: int = 0) -> CodecBatch:
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.standard_normal((images, 3, 16, 16)).astype(np.float32))
    return CodecBatch(pixels, rng.integers(CLASSES, size=images), np.random.default_rng(seed))


def loss_of(features: Tensor, soft: Tensor) -> Tensor:
    """A head that sees every value: nothing cancels."""
    head = torch.randn(TOTAL, CLASSES, generator=torch.Generator().manual_seed(1))
    return F.cross_entropy(features.flatten(1).tanh() @ head, soft)


def step(codec: Codec, batch: CodecBatch) -> tuple[EncodedBatch, Tensor, memoryview, list[Tensor]]:
    """The encoded batch, the features that the head saw, the gradient's bytes, and the gradients of the trunk."""
    trunk = make_trunk()
    sent = codec.compress(trunk, batch)
    arrived = codec.extract(sent.header, sent.body)
    loss_of(arrived.features, arrived.soft).backward()  # type: ignore[no-untyped-call]
    assert arrived.values.grad is not None
    down = codec.compress_gradient(arrived, arrived.values.grad)
    sent.tensor.backward(codec.extract_gradient(sent, down))  # type: ignore[no-untyped-call]
    return sent, arrived.features.detach(), down, [p.grad for p in trunk.parameters() if p.grad is not None]


def largest_by_numpy(flat: Tensor, kept: int) -> Int64:
    return np.sort(np.argpartition(-np.abs(flat.detach().numpy()), kept - 1, axis=1)[:, :kept], axis=1)


@pytest.mark.parametrize("share", SHARES)
def test_each_samples_largest_magnitudes_arrive_and_zeros_elsewhere(share: float) -> None:
    batch, codec = a_batch(), top_k(share)
    sent = codec.compress(make_trunk(), batch)
    arrived = codec.extract(sent.header, sent.body)
    flat = make_trunk()(batch.images).flatten(1)
    places = largest_by_numpy(flat, codec.kept)
    expected = np.zeros((6, TOTAL), np.float32)
    np.put_along_axis(expected, places, np.take_along_axis(flat.detach().numpy(), places, 1), 1)
    np.testing.assert_array_equal(arrived.features.detach().numpy().reshape(6, TOTAL), expected)
    np.testing.assert_array_equal(arrived.where, places)
    np.testing.assert_array_equal(sent.where, places)
    assert arrived.features.shape == (6, TOKENS, DIM)
    assert codec.ratio(6) == codec.kept / TOTAL == (expected != 0).mean()
    assert arrived.soft.argmax(1).tolist() == batch.labels.tolist()


@st.composite
def places_of_a_batch(draw: st.DrawFn) -> tuple[Int64, int]:
    total = draw(st.integers(1, 700))
    boundary = total // max(1, (total - 1).bit_length())  # where a bitmap becomes the smaller
    near = st.integers(max(1, boundary - 2), min(total, boundary + 2))
    count = draw(near | st.integers(1, total))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return np.stack([np.sort(rng.permutation(total)[:count]) for _ in range(draw(st.integers(1, 4)))]), total


@given(places_of_a_batch())
@settings(deadline=None)
def test_places_come_back_as_sent_in_the_smaller_of_a_bitmap_and_packed_numbers(drawn: tuple[Int64, int]) -> None:
    places, total = drawn
    rows, count = places.shape
    data = pack_places(places, total)
    np.testing.assert_array_equal(unpack_places(memoryview(data), rows, count, total), places)
    width = next(bits for bits in range(64) if 2**bits >= total)
    assert len(data) == rows * place_bytes(count, total) == rows * min(-(-total // 8), -(-count * width // 8))


@pytest.mark.parametrize("share", SHARES)
def test_both_directions_together_take_the_share_of_the_plain_bytes_to_within_an_entry(share: float) -> None:
    codec = top_k(share)
    sent, _, down, _ = step(codec, a_batch())
    used = (len(sent.body) - 12 * sent.header.triples + len(down)) / 6
    another = 4 + 4 + 10 / 8  # up, down, and its place
    assert used <= share * PLAIN_BYTES < used + another + 1  # places are whole bytes
    assert len(down) == 6 * 4 * codec.kept


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("make", [top_k, rand_top_k])
def test_the_devices_gradient_is_that_of_the_masked_activations(make: Callable[..., TopK], share: float) -> None:
    batch = a_batch()
    sent, _, _, ours = step(make(share), batch)
    mask = torch.zeros(6, TOTAL).scatter(1, sent.where, 1.0).view(6, TOKENS, DIM)
    trunk = make_trunk()
    masked = trunk(batch.images) * mask
    soft = F.one_hot(torch.from_numpy(batch.labels), CLASSES).float()
    eager = torch.autograd.grad(loss_of(masked, soft), list(trunk.parameters()))
    for mine, theirs in zip(ours, eager, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("outside", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("share", [0.014, 0.136, 0.41])
def test_the_right_share_is_drawn_from_outside_the_top_and_the_rest_are_the_largest(
    share: float, outside: float
) -> None:
    batch, codec = a_batch(), rand_top_k(share, outside=outside)
    flat = make_trunk()(batch.images).flatten(1)
    where = codec.choose(flat, batch.rng).numpy()
    drawn = round(outside * codec.kept)
    top, sure = largest_by_numpy(flat, codec.kept), largest_by_numpy(flat, codec.kept - drawn or 1)
    for mine, best, certain in zip(where, top, sure, strict=True):
        assert len(set(mine)) == codec.kept
        assert len(set(mine) - set(best)) == drawn
        assert drawn == codec.kept or set(certain) <= set(mine)


def test_the_number_drawn_from_outside_is_limited_by_what_is_there() -> None:
    codec = rand_top_k(1.0, outside=1.0)
    assert codec.choose(torch.randn(2, TOTAL), np.random.default_rng(0)).shape == (2, codec.kept)


def test_places_outside_the_top_are_drawn_uniformly() -> None:
    codec, rng = rand_top_k(0.2, outside=0.5), np.random.default_rng(0)
    flat = torch.randn(1, TOTAL, generator=torch.Generator().manual_seed(0))
    draws = np.concatenate([codec.choose(flat.expand(100, -1), rng).numpy().reshape(-1) for _ in range(10)])
    outside = np.setdiff1d(np.arange(TOTAL), largest_by_numpy(flat, codec.kept)[0])
    often = np.bincount(draws, minlength=TOTAL)[outside]
    expected = 1000 * codec.drawn / len(outside)
    assert np.abs(often - expected).max() < 5 * np.sqrt(expected)


def test_randomness_is_the_batchs_alone_and_training_only() -> None:
    codec = rand_top_k(outside=0.5)
    first, again = (codec.compress(make_trunk(), a_batch(seed=3)).body for _ in range(2))
    assert first == again
    batch = a_batch(seed=3)
    other = codec.compress(make_trunk(), batch._replace(rng=np.random.default_rng(4)))
    assert other.body != first
    features = make_trunk()(batch.images).detach()
    through, of_top_k = codec.through(features), top_k().through(features)
    assert through is not None
    assert of_top_k is not None
    assert torch.equal(through, of_top_k)


@pytest.mark.parametrize("share", SHARES)
def test_test_activations_are_those_that_the_head_trains_on(share: float) -> None:
    codec, batch = top_k(share), a_batch()
    _, trained_on, _, _ = step(codec, batch)
    through = codec.through(make_trunk()(batch.images).detach())
    assert through is not None
    torch.testing.assert_close(through, trained_on, rtol=0, atol=0)


@pytest.mark.parametrize("precision", VALUE_PRECISIONS)
@pytest.mark.parametrize("make", [top_k, rand_top_k])
def test_any_precision_works_and_the_trainer_needs_only_header_and_bytes(
    make: Callable[..., TopK], precision: Precision
) -> None:
    sent, features, _, gradients = step(make(0.2, precision), a_batch())
    elsewhere = make(0.2, precision).extract(sent.header, memoryview(bytes(sent.body)))
    assert torch.equal(elsewhere.features, features)
    assert torch.equal(elsewhere.where, sent.where)
    exact = sent.tensor.detach()
    worst = {"fp32": 0.0, "fp16": 1e-3, "bf16": 1e-2, "int8": 0.005}.get(precision, 0.51)  # of a sample's largest
    assert ((elsewhere.values.detach() - exact).abs() <= worst * exact.abs().amax(1, keepdim=True)).all()
    assert all(g.isfinite().all() and g.any() for g in gradients)


@pytest.mark.parametrize(
    ("count", "data"),
    [
        (400, bytes(68)),  # a bitmap without a place
        (400, b"\xff" * 68),  # and of all
        (400, bytes(67)),
        (2, (1 | 544 << 10).to_bytes(3, "little")),  # out of range
        (2, (9 | 8 << 10).to_bytes(3, "little")),  # in another order
        (2, (7 | 7 << 10).to_bytes(3, "little")),  # one place twice
        (2, bytes(4)),
    ],
)
def test_invalid_places_are_refused(count: int, data: bytes) -> None:
    with pytest.raises(ProtocolError, match="places"):
        unpack_places(memoryview(data), 1, count, TOTAL)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan"), 1e-6])
def test_a_share_out_of_range_or_too_small_for_one_value_is_refused(share: float) -> None:
    with pytest.raises(SettingError, match="share"):
        top_k(share)
    with pytest.raises(SettingError, match="outside the top"):
        rand_top_k(outside=1.5)
