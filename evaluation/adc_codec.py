"""ADC as a codec, and its two halves alone: merging samples only, keeping tokens only (paper, section "ADC")."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from adc_edge import adc
from adc_edge.evaluation.codec import Batch, Dense, Header, Sent, encode_with_labels
from adc_edge.labels import label_triples
from adc_edge.precision import Precision
from adc_edge.ratio import Ratio, Shape
from adc_edge.spec import TrunkSpec
from adc_edge.trunk import Compressed, Trunk


class Adc(Dense):
    """ADC at a ratio: T clusters of k tokens out of B images of N.

    Args:
        spec: of the trunk.
        classes: C.
        target: ξ, or T/B and k/N.
        precision: of what goes up.
        gradient_precision: of what comes down.
    """

    def __init__(
        self, spec: TrunkSpec, classes: int, target: Ratio, precision: Precision, gradient_precision: Precision
    ) -> None:
        super().__init__(classes, precision, gradient_precision)
        self.spec, self.target = spec, target.check()

    def shape(self, images: int) -> Shape:
        """T and k for a batch of so many images."""
        return self.target.shape(images, self.spec.tokens, self.spec.prefix)

    def ratio(self, images: int) -> float:
        """ξ."""
        return self.shape(images).xi

    def compress(self, trunk: Trunk, batch: Batch) -> Sent:
        """Trunk and ADC; empty clusters are not sent."""
        found = self.choose(trunk, batch)
        full = found.counts > 0
        tensor = found.activations[full].float()  # [T', k, D]
        clusters = torch.cumsum(full, 0)[found.assignment] - 1  # numbered without the empty ones
        labels = label_triples(clusters.cpu().numpy(), batch.labels, self.classes)
        header = Header(len(batch.labels), tuple(tensor.shape), len(labels), self.precision)
        return Sent(header, encode_with_labels(tensor, labels, self.precision), tensor)

    @staticmethod
    def seeds(batch: Batch, shape: Shape) -> Tensor:
        """The T distinct rows that start k-means."""
        rows = batch.rng.permutation(shape.images)[: shape.clusters].astype(np.int64)
        return torch.from_numpy(rows).to(batch.images.device)

    def choose(self, trunk: Trunk, batch: Batch) -> Compressed:
        """What merges with what, and which tokens stay."""
        shape = self.shape(len(batch.labels))
        seeds = self.seeds(batch, shape)
        slots = torch.zeros(shape.kept - self.spec.prefix, dtype=torch.int64, device=seeds.device)
        return trunk.compress(batch.images, seeds, slots)


class AdcByToken(Adc):
    """ADC that clusters by what a token holds instead of by attention: the paper's ablation.

    Tokens are still kept by the cluster's mean attention.

    Args:
        mean: by the mean of the image's tokens; else by its CLS token.
    """

    def __init__(
        self,
        spec: TrunkSpec,
        classes: int,
        target: Ratio,
        precision: Precision,
        gradient_precision: Precision,
        mean: bool,
    ) -> None:
        super().__init__(spec, classes, target, precision, gradient_precision)
        self.mean = mean

    def choose(self, trunk: Trunk, batch: Batch) -> Compressed:
        """As ADC, with k-means on the output of the trunk."""
        shape = self.shape(len(batch.labels))
        seeds = self.seeds(batch, shape)
        state = trunk.states(batch.images)[-1]
        with torch.no_grad():
            slots = torch.zeros(1, dtype=torch.int64, device=seeds.device)
            scores = trunk.inspect_last(state, seeds, slots).scores
            output = trunk.blocks[-1](state)
            assignment, counts = adc.kmeans(_feature(output, self.mean), seeds)
            clusters = torch.arange(shape.clusters, device=seeds.device)
            centroids = adc.cluster_mean(scores, assignment, clusters)
            tokens = adc.select_tokens(centroids, shape.kept - self.spec.prefix, self.spec.prefix)
        start = len(trunk.blocks) - 1
        activations = trunk.replay(state if start else batch.images, assignment, tokens, start=start)
        return Compressed(activations, assignment, tokens, counts)


def _feature(output: Tensor, mean: bool) -> Tensor:
    return (output.mean(dim=1) if mean else output[:, 0]).float()
