"""Ideas to raise accuracy at the same bytes, each a codec that differs from the product's in one choice.

`benchmarks/ablations.py` compares them with the product's. Ideas that help go into the product; these stay as a record.

Letters as in `adc_edge.evaluation.codecs.base`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adc_edge.codec.precision import Precision, decode, encode, integer_bits
from adc_edge.evaluation.codecs.adc import Adc, AdcBy, Feature, Start, random_rows
from adc_edge.evaluation.codecs.base import (
    Arrived,
    Codec,
    CodecBatch,
    EncodedBatch,
    Header,
    decode_tensor,
    encode_with_labels,
    own_labels,
    read_labels,
    split_body,
)
from adc_edge.evaluation.study.setting import Setting
from adc_edge.evaluation.study.split_model import MakeCodec
from adc_edge.method import adc
from adc_edge.method.ratio import Ratio, Shape
from adc_edge.method.spec import TrunkSpec
from adc_edge.method.trunk import AdcOutput, Trunk

Rows = Callable[[Tensor], Tensor]


def clustered(feature: Feature, start: Start = random_rows, iterations: int = adc.LLOYD_ITERATIONS) -> MakeCodec:
    """ADC with another k-means."""

    def make(setting: Setting, spec: TrunkSpec, classes: int, seed: int) -> Codec:
        assert setting.ratio is not None
        travels = (setting.precision, setting.gradient_precision)
        return AdcBy(spec, classes, setting.ratio, *travels, feature, start, iterations)

    return make


def scores(rows: Tensor, output: Tensor) -> Tensor:
    """The CLS attention, as in ADC."""
    return rows


def without_cls(rows: Tensor, output: Tensor) -> Tensor:
    """The CLS attention to patches alone."""
    return rows[:, 1:]


def with_mean_token(rows: Tensor, output: Tensor) -> Tensor:
    """CLS attention and mean token, scaled to equal spread."""
    parts = [part - part.mean(dim=0) for part in (rows, output.mean(dim=1).float())]
    return torch.cat([part / part.square().sum(dim=1).mean().sqrt().clamp_min(1e-12) for part in parts], dim=1)


def kmeans_plus_plus(rows: Tensor, clusters: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Choose rows by scikit-learn's k-means++."""
    from sklearn.cluster import kmeans_plusplus

    points = np.ascontiguousarray(rows.cpu().numpy())
    chosen: npt.NDArray[np.int64] = kmeans_plusplus(points, clusters, random_state=int(rng.integers(2**31)))[1]
    return chosen.astype(np.int64)


def farthest_first(rows: Tensor, clusters: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Choose a random first row, then always the row farthest from those chosen."""
    points = rows.cpu().numpy().astype(np.float64)
    chosen = [int(rng.integers(len(points)))]
    nearest = np.full(len(points), np.inf)
    while len(chosen) < clusters:
        nearest = np.minimum(nearest, np.square(points - points[chosen[-1]]).sum(axis=1))
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
    return np.array(chosen, np.int64)


def changed(kind: type[Adc], *more: Any) -> MakeCodec:
    """Use a subclass of ``Adc`` in its place."""

    def make(setting: Setting, spec: TrunkSpec, classes: int, seed: int) -> Codec:
        assert setting.ratio is not None
        return kind(spec, classes, setting.ratio, setting.precision, setting.gradient_precision, *more)

    return make


class Weighted(Adc):
    """ADC with a loss that weights images equally, not clusters."""

    def extract(self, header: Header, body: memoryview) -> Arrived:
        arrived = super().extract(header, body)
        cluster, _, count = np.frombuffer(split_body(header, body)[1], "<i4").reshape(-1, 3).T
        sizes = np.bincount(cluster, weights=count).astype(np.float32)
        weights = torch.from_numpy(sizes / sizes.mean()).to(arrived.soft.device)
        return arrived._replace(soft=arrived.soft * weights[:, None])


class HardLabels(Adc):
    """ADC with the most frequent label of each cluster instead of the mean of all."""

    def extract(self, header: Header, body: memoryview) -> Arrived:
        arrived = super().extract(header, body)
        hard = torch.nn.functional.one_hot(arrived.soft.argmax(dim=1), self.classes).to(arrived.soft.dtype)
        return arrived._replace(soft=hard)


class Leftovers(Adc):
    """ADC that sends the mean of the tokens that are not kept, in the place of one token."""

    def choose(self, trunk: Trunk, batch: CodecBatch) -> AdcOutput:
        found = super().choose(trunk, batch)
        tokens = found.tokens[:, :-1]  # without the last of the kept ones
        clusters = torch.arange(len(tokens), device=tokens.device)
        whole = adc.cluster_mean(trunk(batch.images).float(), found.assignment, clusters)  # [T, N, D]
        kept = adc.gather_tokens(whole, tokens)
        dropped = max(1, whole.shape[1] - kept.shape[1])
        rest = (whole.sum(dim=1, keepdim=True) - kept.sum(dim=1, keepdim=True)) / dropped
        return found._replace(activations=torch.cat((kept, rest), dim=1))


class Subset(Adc):
    """T of the images without merging: the baseline for merging."""

    def compress(self, trunk: Trunk, batch: CodecBatch) -> EncodedBatch:
        shape = self.shape(len(batch.labels))
        chosen = random_rows(batch.images, shape.clusters, batch.rng)
        where = torch.from_numpy(chosen).to(batch.images.device)
        slots = torch.zeros(shape.kept - self.spec.prefix, dtype=torch.int64, device=where.device)
        found = trunk.compress(batch.images[where], torch.arange(len(where), device=where.device), slots)
        tensor = found.activations[found.assignment].float()  # a cluster each, in the batch's order
        labels = own_labels(batch.labels[chosen], self.classes)
        header = Header(shape.clusters, tuple(tensor.shape), len(labels), self.precision)
        return EncodedBatch(header, encode_with_labels(tensor, labels, self.precision), tensor)


class Scheduled(Adc):
    """ADC with a ξ that goes linearly from ``first`` to ``last`` in ``steps`` steps."""

    def __init__(
        self,
        spec: TrunkSpec,
        classes: int,
        target: Ratio,
        precision: Precision,
        gradient_precision: Precision,
        first: float,
        last: float,
        steps: int,
    ) -> None:
        super().__init__(spec, classes, target, precision, gradient_precision)
        self.first, self.last, self.steps, self.done = first, last, steps, 0

    def compress(self, trunk: Trunk, batch: CodecBatch) -> EncodedBatch:
        self.done += 1
        return super().compress(trunk, batch)

    def shape(self, images: int) -> Shape:
        share = min(1.0, self.done / self.steps)
        xi = self.first + (self.last - self.first) * share
        return Ratio(xi=xi).shape(images, self.spec.tokens, self.spec.prefix)


class Turned(Codec):
    """Quantization of what an invertible change makes of activations and gradients.

    Args:
        there: ``[n, D]`` to the rows that are quantized.
        back: its inverse.
        tokens: N.
    """

    def __init__(self, setting: Setting, classes: int, there: Rows, back: Rows, tokens: int) -> None:
        super().__init__(classes, setting.precision, setting.gradient_precision)
        self.there, self.back, self.tokens = there, back, tokens

    def pack(self, tensor: Tensor, batch: CodecBatch) -> EncodedBatch:
        labels = own_labels(batch.labels, self.classes)
        rows = self.there(tensor.detach().flatten(0, 1))
        header = Header(len(batch.labels), tuple(rows.shape), len(labels), self.precision)
        return EncodedBatch(header, encode_with_labels(rows, labels, self.precision), tensor)

    def extract(self, header: Header, body: memoryview) -> Arrived:
        rows, labels = split_body(header, body)
        values = self._whole(decode_tensor(rows, header.shape, header.precision), header.images)
        values = values.to(self.place).requires_grad_()
        soft = read_labels(labels, header.images, self.classes, header.images)
        return Arrived(values, values, soft.to(self.place))

    def compress_gradient(self, arrived: Arrived, gradient: Tensor) -> memoryview:
        return super().compress_gradient(arrived, self.there(gradient.float().flatten(0, 1)))

    def extract_gradient(self, sent: EncodedBatch, body: memoryview) -> Tensor:
        rows = decode_tensor(body, sent.header.shape, self.gradient_precision)
        return self._whole(rows, sent.header.images).to(sent.tensor.device)

    def _whole(self, rows: Tensor, images: int) -> Tensor:
        return self.back(rows).reshape(images, self.tokens, -1).contiguous()


def turned(there: Rows, back: Rows) -> MakeCodec:
    """Quantize after a transform ``there``, and apply ``back`` after decoding."""

    def make(setting: Setting, spec: TrunkSpec, classes: int, seed: int) -> Codec:
        return Turned(setting, classes, there, back, spec.tokens)

    return make


def by_channel(rows: Tensor) -> Tensor:
    """Transpose, so that each channel has a scale and not each token."""
    return rows.T.contiguous()


def rotated(rows: Tensor) -> Tensor:
    """Multiply each 64 channels by a Hadamard matrix, which is its own inverse."""
    from scipy.linalg import hadamard

    matrix = torch.from_numpy(hadamard(64).astype(np.float32) / 8).to(rows.device)
    return (rows.reshape(len(rows), -1, 64) @ matrix).flatten(1)


class StochasticGradients(Codec):
    """Quantization with stochastic rounding of gradients, which has no bias."""

    def __init__(self, classes: int, precision: Precision, gradient_precision: Precision) -> None:
        super().__init__(classes, precision, gradient_precision)
        self.rng = np.random.default_rng(0)

    def compress_gradient(self, arrived: Arrived, gradient: Tensor) -> memoryview:
        x = gradient.float().cpu().numpy()
        lowest = 2 ** (integer_bits(self.gradient_precision) - 1)
        high, low = x.max(axis=-1, keepdims=True), x.min(axis=-1, keepdims=True)
        step = np.where(high >= -low, high, low) / -lowest  # signed, as the wire has it
        exact = np.divide(x, step, out=np.zeros_like(x), where=step != 0)
        levels = np.floor(exact + self.rng.random(x.shape, np.float32) * (exact != -lowest))
        return encode((np.clip(levels, -lowest, lowest - 1) * step).astype(np.float32), self.gradient_precision)


class FedBackGradients(Codec):
    """Quantization with error feedback: a gradient's error is added to the next in the same place of the batch."""

    lost = np.zeros(1, np.float32)

    def compress_gradient(self, arrived: Arrived, gradient: Tensor) -> memoryview:
        wanted = gradient.float().cpu().numpy() + self.lost
        body = encode(wanted, self.gradient_precision)
        self.lost = wanted - decode(body, wanted.shape, self.gradient_precision)
        return body


def dense(kind: type[Codec]) -> MakeCodec:
    """Use a subclass of ``Codec`` in its place."""

    def make(setting: Setting, spec: TrunkSpec, classes: int, seed: int) -> Codec:
        return kind(classes, setting.precision, setting.gradient_precision)

    return make
