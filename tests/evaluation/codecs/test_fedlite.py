"""FedLite: k-means against scikit-learn, the bytes of a body, and the gradient correction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from adc_edge.codec.precision import Precision
from adc_edge.errors import ProtocolError, SettingError
from adc_edge.evaluation.codecs.base import CodecBatch
from adc_edge.evaluation.codecs.fedlite import Cut, FedLite, cuts, k_means, nearest
from adc_edge.wire.messages import TRIPLE_BYTES
from tests.method.test_trunk import SPEC, make_trunk

CLASSES, DIM = 5, SPEC.embed_dim


def fedlite(share: float = 0.1, precision: Precision = "fp32", correction: float = 0.0) -> FedLite:
    return FedLite(CLASSES, share, DIM, precision, "fp32", correction)


def a_batch(images: int = 12) -> CodecBatch:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.standard_normal((images, 3, 16, 16)).astype(np.float32))
    return CodecBatch(pixels, rng.integers(CLASSES, size=images), rng)


def rows(count: int = 300) -> Any:
    rng = np.random.default_rng(1)
    return (
        rng.standard_normal((8, DIM))[rng.integers(8, size=count)] + 0.1 * rng.standard_normal((count, DIM))
    ).astype(np.float32)


def test_k_means_is_lloyds_and_its_error_falls() -> None:
    points = rows().reshape(1, -1, 4)
    errors = []
    for iterations in (0, 1, 4, 8):
        books, index = k_means(points, 8, iterations, np.random.default_rng(3))
        errors.append(float(np.square(points[0] - books[0][index[0]]).sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]
    start = points[0][np.random.default_rng(3).permutation(len(points[0]))[:8]]
    reference = KMeans(8, init=start, n_init=1, max_iter=8, tol=0, algorithm="lloyd").fit(points[0])
    assert errors[-1] == pytest.approx(reference.inertia_, rel=0.01)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("width", [4, 32])
def test_each_token_arrives_as_the_nearest_codewords(grouped: bool, width: int) -> None:
    x, codec, cut = rows(), fedlite(), Cut(width, grouped, 3)
    coded = codec.encode(x, cut, 5, np.random.default_rng(0))
    assert len(coded) == cut.bytes_of(len(x), DIM, "fp32")
    found = fedlite().decode(memoryview(coded), len(x))
    parts, words = x.reshape(len(x), -1, width), found.reshape(len(x), -1, width)
    for place in range(DIM // width):
        own = words[:, place] if grouped else words.reshape(-1, width)
        book = np.unique(own, axis=0)
        assert len(book) <= 8
        best = book[nearest(parts[None, :, place], book[None])[0]]
        np.testing.assert_allclose(
            np.square(parts[:, place] - words[:, place]).sum(), np.square(parts[:, place] - best).sum()
        )


@pytest.mark.parametrize("share", [0.02, 0.05, 0.2])
def test_the_body_keeps_to_the_share_and_more_bytes_leave_less_error(share: float) -> None:
    trunk, batch, errors = make_trunk(), a_batch(), []
    for one in (share, 2 * share):
        codec = fedlite(one, "fp16")
        sent = codec.compress(trunk, batch)
        exact = sent.tensor.detach()
        assert len(sent.body) - TRIPLE_BYTES * 12 <= one * 4 * exact.numel()
        arrived = fedlite(one, "fp16").extract(sent.header, memoryview(bytes(sent.body)))
        assert torch.equal(arrived.features.detach(), sent.where)
        assert arrived.soft.argmax(1).tolist() == batch.labels.tolist()
        errors.append((arrived.features - exact).norm().item())
    assert errors[1] < errors[0]


def test_all_cuts_on_offer_fit() -> None:
    found = list(cuts(2176, 192, 0.01, "fp16"))
    assert len(found) > 5
    assert max(cut.bytes_of(2176, 192, "fp16") for cut in found) <= 0.01 * 4 * 2176 * 192
    with pytest.raises(SettingError, match="two codewords"):
        fedlite(1e-5).compress(make_trunk(), a_batch())


def test_the_gradient_is_corrected_towards_the_codewords() -> None:
    trunk, batch = make_trunk(), a_batch()
    plain, corrected = fedlite(0.1), fedlite(0.1, correction=0.5)
    sent = plain.compress(trunk, batch)
    arrived = plain.extract(sent.header, sent.body)
    gradient = torch.randn(arrived.values.shape, generator=torch.Generator().manual_seed(0))
    down = plain.compress_gradient(arrived, gradient)
    assert len(down) == 4 * gradient.numel()  # the paper does not compress it
    assert torch.equal(plain.extract_gradient(sent, down), gradient)
    found = corrected.extract_gradient(sent, down) - gradient
    distance = sent.tensor.detach().clone().requires_grad_()
    (0.25 * (distance - arrived.features.detach()).square().sum() / 12).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, distance.grad, rtol=1e-4, atol=1e-6)


def test_the_cut_is_chosen_once_and_survives() -> None:
    codec, again, trunk = fedlite(0.05), fedlite(0.05), make_trunk()
    assert codec.arrays() == {}
    codec.compress(trunk, a_batch())
    again.restore_state(codec.arrays())
    one, other = codec.compress(trunk, a_batch()), again.compress(trunk, a_batch())
    assert bytes(one.body) == bytes(other.body)


def test_bytes_that_no_encoder_writes_are_refused() -> None:
    codec = fedlite()
    coded = codec.encode(rows(), Cut(4, False, 3), 1, np.random.default_rng(0))
    for data in (b"", coded[:-1], b"\x05" + coded[1:], coded[:3] + b"\x09" + coded[4:]):
        with pytest.raises(ProtocolError):
            codec.decode(memoryview(data), 300)
    with pytest.raises(SettingError, match="pca1"):
        FedLite(CLASSES, 0.1, DIM, "pca1", "fp32")


@pytest.mark.parametrize("images", [1, 12])
def test_test_activations_pass_as_codewords_and_leave_no_state(images: int) -> None:
    codec, trunk, batch = fedlite(0.1, "fp16"), make_trunk(), a_batch()
    features = trunk(batch.images[:images]).detach()
    sent = codec.compress(trunk, batch)
    state = {name: value.copy() for name, value in codec.arrays().items()}
    first, second = codec.through(features), codec.through(features)
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)
    assert {name: value.tolist() for name, value in state.items()} == {n: v.tolist() for n, v in codec.arrays().items()}
    missed = (first - features).norm()
    assert 0 < missed < features.norm()
    if images == len(batch.images):
        in_training = (sent.where - sent.tensor.detach()).norm()
        assert missed == pytest.approx(float(in_training), rel=0.2)
