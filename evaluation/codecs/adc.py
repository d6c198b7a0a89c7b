"""ADC as a codec, also clustering by other features for ablations (paper, section "ADC")."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from adc_edge.arrays import Int64
from adc_edge.codec.precision import Precision
from adc_edge.evaluation.codecs.base import Codec, CodecBatch, EncodedBatch, Header, encode_with_labels
from adc_edge.method import adc
from adc_edge.method.compressed import drop_empty
from adc_edge.method.labels import label_triples
from adc_edge.method.ratio import Ratio, Shape
from adc_edge.method.spec import TrunkSpec
from adc_edge.method.trunk import AdcOutput, Trunk


def random_rows(rows: Tensor, clusters: int, rng: np.random.Generator) -> Int64:
    """Distinct random rows, from which ADC starts its k-means."""
    return rng.permutation(len(rows))[:clusters].astype(np.int64)


class Adc(Codec):
    """ADC at a ratio: T clusters of k tokens out of B images of N.

    Args:
        spec: sizes of the trunk.
        classes: C, the number of classes.
        target: ξ, or T/B and k/N.
        precision: precision of the activations.
        gradient_precision: precision of the gradients.
    """

    def __init__(
        self, spec: TrunkSpec, classes: int, target: Ratio, precision: Precision, gradient_precision: Precision
    ) -> None:
        super().__init__(classes, precision, gradient_precision)
        self.spec, self.target = spec, target.check()

    def shape(self, images: int) -> Shape:
        """T and k for a batch of ``images`` images."""
        return self.target.shape(images, self.spec.tokens, self.spec.prefix)

    def ratio(self, images: int) -> float:
        """The true ratio ξ for a batch of ``images`` images."""
        return self.shape(images).xi

    def compress(self, trunk: Trunk, batch: CodecBatch) -> EncodedBatch:
        """Run trunk and ADC, and encode the clusters that are not empty."""
        found = self.choose(trunk, batch)
        activations, clusters, _ = drop_empty(*found)
        tensor = activations.float()  # [T', k, D]
        labels = label_triples(clusters.cpu().numpy(), batch.labels, self.classes)
        header = Header(len(batch.labels), tuple(tensor.shape), len(labels), self.precision)
        return EncodedBatch(header, encode_with_labels(tensor, labels, self.precision), tensor)

    def choose(self, trunk: Trunk, batch: CodecBatch) -> AdcOutput:
        """Activations of the clusters, with the assignment of images and the tokens kept."""
        shape = self.shape(len(batch.labels))
        init_rows = torch.from_numpy(random_rows(batch.images, shape.clusters, batch.rng)).to(batch.images.device)
        slots = torch.zeros(shape.kept - self.spec.prefix, dtype=torch.int64, device=init_rows.device)
        return trunk.compress(batch.images, init_rows, slots)


Feature = Callable[[Tensor, Tensor], Tensor]  # scores [B, N] and the trunk's output [B, N, D] -> rows [B, F]
Start = Callable[[Tensor, int, np.random.Generator], Int64]  # those rows and T -> initial rows [T]


def cls_token(scores: Tensor, output: Tensor) -> Tensor:
    """The values of the CLS token (the paper's ablation)."""
    return output[:, 0].float()


def mean_token(scores: Tensor, output: Tensor) -> Tensor:
    """The mean of an image's tokens (the paper's ablation)."""
    return output.mean(dim=1).float()


class AdcBy(Adc):
    """ADC with another clustering, for ablations: other features than attention, another start, other iterations.

    Tokens are still chosen by the cluster's mean attention.

    Args:
        feature: computes the rows that k-means clusters.
        start: chooses the rows that k-means starts from.
        iterations: Lloyd iterations.
    """

    def __init__(
        self,
        spec: TrunkSpec,
        classes: int,
        target: Ratio,
        precision: Precision,
        gradient_precision: Precision,
        feature: Feature,
        start: Start = random_rows,
        iterations: int = adc.LLOYD_ITERATIONS,
    ) -> None:
        super().__init__(spec, classes, target, precision, gradient_precision)
        self.feature, self.start, self.iterations = feature, start, iterations

    def choose(self, trunk: Trunk, batch: CodecBatch) -> AdcOutput:
        """The same for ADC with this clustering; the trunk's full output is computed first."""
        shape = self.shape(len(batch.labels))
        state = trunk.states(batch.images)[-1]
        with torch.no_grad():
            any_choice = torch.zeros(1, dtype=torch.int64, device=state.device)  # scores come before it
            scores = trunk.inspect_last(state, any_choice, any_choice).scores
            rows = self.feature(scores, trunk.blocks[-1](state))
            init_rows = torch.from_numpy(self.start(rows, shape.clusters, batch.rng)).to(state.device)
            assignment, counts = adc.kmeans(rows, init_rows, self.iterations)
            clusters = torch.arange(shape.clusters, device=state.device)
            centroids = adc.cluster_mean(scores, assignment, clusters)
            tokens = adc.select_tokens(centroids, shape.kept - self.spec.prefix, self.spec.prefix)
        start = len(trunk.blocks) - 1
        activations = trunk.replay(state if start else batch.images, assignment, tokens, start=start)
        return AdcOutput(activations, assignment, tokens, counts)
