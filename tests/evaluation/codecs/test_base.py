"""Codecs at the cut: plain activations in any precision, and ADC with its halves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from adc_edge.codec.precision import decode, encode
from adc_edge.evaluation.codecs.adc import Adc, AdcBy, cls_token, mean_token
from adc_edge.evaluation.codecs.base import Codec, CodecBatch
from adc_edge.evaluation.codecs.factory import make_codec
from adc_edge.evaluation.study.setting import METHODS, WITHOUT_RATIO, parse_setting
from adc_edge.method.ratio import Ratio
from tests.method.test_trunk import SPEC, make_trunk

IMAGES, CLASSES = 12, 5
SHAPE = (IMAGES, SPEC.tokens, SPEC.embed_dim)


def make_batch(seed: int = 0) -> CodecBatch:
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.standard_normal((IMAGES, SPEC.channels, *SPEC.image_size), np.float32))
    return CodecBatch(images, rng.integers(0, CLASSES, IMAGES), np.random.default_rng(seed + 1))


def one_hot(batch: CodecBatch) -> Tensor:
    return torch.eye(CLASSES)[torch.from_numpy(batch.labels)]


def make(text: str) -> Codec:
    return make_codec(parse_setting(text), SPEC, CLASSES, 0)


def test_plain_split_learning_sends_every_value_and_label() -> None:
    trunk, batch, codec = make_trunk(), make_batch(), Codec(CLASSES, "fp32", "fp32")
    sent = codec.compress(trunk, batch)
    arrived = codec.extract(sent.header, sent.body)
    assert torch.equal(arrived.features, trunk(batch.images))
    assert torch.equal(arrived.soft, one_hot(batch))
    assert codec.ratio(IMAGES) == 1.0


@pytest.mark.parametrize("precision", ["fp16", "int8", "int2"])
def test_quantized_activations_and_gradients_are_what_the_wires_own_encoder_makes(precision: str) -> None:
    trunk, batch, codec = make_trunk(), make_batch(), make(precision)
    sent = codec.compress(trunk, batch)
    arrived = codec.extract(sent.header, sent.body)
    z = trunk(batch.images).detach().numpy()
    expected = decode(encode(z, codec.precision), SHAPE, codec.precision)
    np.testing.assert_array_equal(arrived.features.detach().numpy(), expected)
    gradient = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * 1e-5
    came = codec.extract_gradient(sent, codec.compress_gradient(arrived, gradient))
    expected = decode(encode(gradient.numpy(), codec.gradient_precision), SHAPE, codec.gradient_precision)
    np.testing.assert_array_equal(came.numpy(), expected)


def test_adc_sends_the_means_of_its_clusters_their_tokens_and_soft_labels() -> None:
    trunk, batch = make_trunk(), make_batch()
    codec = Adc(SPEC, CLASSES, Ratio(batch=0.5, token=0.5), "fp32", "fp32")
    sent = codec.compress(trunk, batch)
    arrived = codec.extract(sent.header, sent.body)
    choice = codec.choose(trunk, batch._replace(rng=np.random.default_rng(1)))
    z = trunk(batch.images)
    full = [t for t in range(len(choice.counts)) if choice.counts[t] > 0]
    assert arrived.features.shape == (len(full), choice.tokens.shape[1], SPEC.embed_dim)
    for row, cluster in enumerate(full):
        members = (choice.assignment == cluster).nonzero().flatten()
        expected = z[members][:, choice.tokens[cluster]].mean(0)
        torch.testing.assert_close(arrived.features[row], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(arrived.soft[row], one_hot(batch)[members].mean(0))


def test_merging_alone_keeps_all_tokens_and_selection_alone_keeps_all_images() -> None:
    trunk, batch = make_trunk(), make_batch()
    merged = make("adc-batch@0.5").compress(trunk, batch).tensor
    kept = make("adc-tokens@0.5").compress(trunk, batch).tensor
    assert len(merged) <= IMAGES // 2
    assert merged.shape[1] == SPEC.tokens
    assert kept.shape[:2] == (IMAGES, SPEC.tokens // 2)


def test_without_merging_each_image_keeps_its_own_activations_and_label() -> None:
    trunk, batch, codec = make_trunk(), make_batch(), make("adc-tokens@1")
    sent = codec.compress(trunk, batch)
    arrived = codec.extract(sent.header, sent.body)
    z, order = trunk(batch.images), sent.tensor[:, :1].flatten(1)
    for row in range(IMAGES):  # k-means numbers the images in its own order
        image = int((z[:, 0] - order[row]).abs().sum(1).argmin())
        torch.testing.assert_close(
            arrived.features[row].sort(dim=0).values, z[image].sort(dim=0).values, rtol=1e-4, atol=1e-5
        )
        assert torch.equal(arrived.soft[row], one_hot(batch)[image])


@pytest.mark.parametrize("mean", [False, True])
def test_clustering_by_tokens_is_k_means_on_those_tokens(mean: bool) -> None:
    from sklearn.cluster import KMeans

    trunk, batch = make_trunk(), make_batch()
    feature = mean_token if mean else cls_token
    codec = AdcBy(SPEC, CLASSES, Ratio(batch=0.5, token=0.5), "fp32", "fp32", feature)
    choice = codec.choose(trunk, batch)
    z = trunk(batch.images).detach().numpy().astype(np.float64)
    rows = z.mean(axis=1) if mean else z[:, 0]
    seeds = make_batch().rng.permutation(IMAGES)[: IMAGES // 2]
    rows = rows - rows.mean(axis=0)
    reference = KMeans(IMAGES // 2, init=rows[seeds], n_init=1, max_iter=9, tol=0, algorithm="lloyd").fit(rows)
    np.testing.assert_array_equal(choice.assignment.numpy(), reference.predict(rows))


TEXTS = [m if m in WITHOUT_RATIO else f"{m}@0.25" for m in METHODS]
SIZED = ("tah", "lowrank", "fedlite")  # their bytes follow from the share alone, and they always round


@pytest.mark.parametrize("text", [text for text in TEXTS if not text.startswith(SIZED)])
def test_a_step_through_the_codec_equals_one_graph_where_nothing_is_quantized(text: str) -> None:
    """The gradient that a device backpropagates is that of the whole pipeline in one autograd graph."""
    if text.startswith(("topk", "randtopk")):
        pytest.skip("its gradient is masked by definition; test_sparse.py")
    trunk, batch, codec = make_trunk(), make_batch(), make(text)
    for module in (codec.device, codec.trainer):
        if module is not None:
            module.eval()
    sent = codec.compress(trunk, batch)
    arrived = codec.extract(sent.header, sent.body)
    weight = torch.randn(arrived.features.shape, generator=torch.Generator().manual_seed(1))
    (arrived.features * weight).sum().backward()  # type: ignore[no-untyped-call]
    assert arrived.values.grad is not None
    gradient = codec.extract_gradient(sent, codec.compress_gradient(arrived, arrived.values.grad))
    sent.tensor.backward(gradient)  # type: ignore[no-untyped-call]
    weights = dict(trunk.named_parameters())["blocks.0.mlp.fc1.weight"]
    assert weights.grad is not None
    ours = weights.grad.clone()

    trunk.zero_grad()
    again = codec.compress(trunk, batch._replace(rng=np.random.default_rng(1)))
    (codec.restore(again.tensor, IMAGES) * weight).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours, weights.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("text", [text for text in TEXTS if not text.startswith((*SIZED, "aqsgd"))])
def test_fewer_bits_send_fewer_bytes_in_every_method(text: str) -> None:
    bytes_of = {p: len(make(f"{text}/{p}").compress(make_trunk(), make_batch()).body) for p in ("fp32", "int8", "int4")}
    assert bytes_of["int4"] < bytes_of["int8"] < bytes_of["fp32"]
