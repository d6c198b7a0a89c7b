"""Test of a fresh TensorRT engine: it must compute what ONNX Runtime computes, also with new weights.

TensorRT's refit has lost weights: some 11.x drop the bias of a matrix product, so that no refresh reaches it. After
each build *all* weights are perturbed, twice, and the engine is compared with ONNX Runtime on the CPU.

Numbers are compared with a cluster for each image and all tokens, where rounding cannot change a choice. Choices are
compared with the bundle's own weights. One weight or bias that was not replaced shows as 0.04 of the largest activation
or more; rounding to fp16 makes 0.0006 (both DeiT-T at split 6, and alike with a tiny ViT).
"""

from __future__ import annotations

import numpy as np

from adc_edge.arrays import Weights
from adc_edge.edge_runtime.engines.base import Engine
from adc_edge.edge_runtime.engines.onnxruntime import OnnxEngine
from adc_edge.onnx.agreement import Agreement, agreement, perturb_weights
from adc_edge.onnx.golden import GOLDEN_CLUSTERS, GOLDEN_LIMITS, golden_images, golden_pixels
from adc_edge.storage.bundle import Bundle, Compute

_TURNS = 2


class Check:
    """Comparison of engines of one bundle with ONNX Runtime.

    Args:
        bundle: with client.onnx, the reference.
        compute: the candidate's precision, which sets the limits.
        largest: most images that the candidate takes.
    """

    def __init__(self, bundle: Bundle, compute: Compute, largest: int) -> None:
        spec = bundle.manifest.trunk
        self._reference = OnnxEngine(bundle.client("fp32"), spec)
        self._limit, self._patches = GOLDEN_LIMITS[compute], spec.patches
        self._images = golden_images(golden_pixels(spec), bundle.manifest.preprocessing)[:largest]

    def fault(self, candidate: Engine, weights: Weights | None) -> str | None:
        """Return the candidate's fault, or None. The candidate ends with ``weights``.

        Args:
            candidate: with the bundle's weights.
            weights: the bundle's, to be perturbed; None for a frozen trunk.
        """
        with self._reference as reference:
            for turn in range(1, 1 + _TURNS if weights is not None else 1):
                assert weights is not None
                new = perturb_weights(weights, turn)
                candidate.refresh(new)
                reference.refresh(new)
                fault = self._numbers(candidate, reference)
                if fault:
                    candidate.refresh(weights)
                    return f"with new weights, refresh {turn}: {fault}"
            if weights is not None:
                candidate.refresh(weights)
                reference.refresh(weights)
            return self._numbers(candidate, reference) or self._choice(candidate, reference)

    def _numbers(self, candidate: Engine, reference: OnnxEngine) -> str | None:
        found = self._agreement(candidate, reference, len(self._images), self._patches)
        if found.assignment == 1 and found.difference <= self._limit.difference:
            return None
        return (
            f"activations differ from ONNX Runtime's by {found.difference:.1e} of the largest, "
            f"at most {self._limit.difference:.0e} is due to rounding"
        )

    def _choice(self, candidate: Engine, reference: OnnxEngine) -> str | None:
        clusters = min(GOLDEN_CLUSTERS, len(self._images))
        found = self._agreement(candidate, reference, clusters, max(1, self._patches // 3))
        if found.assignment >= self._limit.assignment and found.tokens >= self._limit.tokens:
            return None
        return (
            f"{found.assignment:.0%} of assignments and {found.tokens:.0%} of tokens are ONNX Runtime's, "
            f"at least {self._limit.assignment:.0%} and {self._limit.tokens:.0%} must be"
        )

    def _agreement(self, candidate: Engine, reference: OnnxEngine, clusters: int, slots: int) -> Agreement:
        init_rows = np.arange(clusters, dtype=np.int64)
        ours, theirs = (each.compress(self._images, init_rows, slots) for each in (candidate, reference))
        return agreement(ours, theirs)
