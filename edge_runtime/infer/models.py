"""The two ways to logits: trunk and message for a head elsewhere, and the whole model here."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from msgspec import UnsetType

from adc_edge.arrays import Float32, Int64
from adc_edge.codec.precision import encode
from adc_edge.defaults import Precision
from adc_edge.edge_runtime.engines.base import Engine
from adc_edge.edge_runtime.engines.providers import Provider, open_session
from adc_edge.method.ratio import Ratio, Shape
from adc_edge.storage.bundle import WHOLE_INPUT, WHOLE_OUTPUT, Bundle
from adc_edge.wire.inference_messages import Infer, LearnedTrunk
from adc_edge.wire.messages import BUNDLE_DIGITS

_TRANSFER_BITS = 62


class SplitRequest(NamedTuple):
    """A batch as it is sent, and the row of the answer that judges each image."""

    message: Infer
    body: memoryview
    rows: Int64  # [B]


class TrunkSender:
    """Trunk, ADC and codec: images -> a message.

    Args:
        bundle: loaded.
        engine: entered.
        precision: of the activations.
        ratio: of ADC; None: a cluster for each image, and all tokens.
        learned: what the trunk has learned.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        precision: Precision,
        ratio: Ratio | None,
        learned: LearnedTrunk | UnsetType,
    ) -> None:
        self._manifest, self._digest = bundle.manifest, bundle.digest[:BUNDLE_DIGITS]
        self._engine, self.precision, self._ratio, self._learned = engine, precision, ratio, learned

    def request(self, images: Float32) -> SplitRequest:
        """Return the message for images ``[B, C, H, W]``."""
        activations, rows = self._activations(images)
        body = encode(activations, self.precision)
        message = Infer(
            transfer=secrets.randbits(_TRANSFER_BITS),
            body_bytes=body.nbytes,
            clusters=activations.shape[0],
            kept=activations.shape[1],
            precision=self.precision,
            bundle=self._digest,
            trunk=self._learned,
        )
        return SplitRequest(message, body, rows)

    def _activations(self, images: Float32) -> tuple[Float32, Int64]:
        """Return activations ``[T, k, D]``, and the row of each image in them."""
        if self._ratio is None:
            return self._engine.full_output(images), np.arange(len(images))
        shape = batch_shape(self._ratio, len(images), self._manifest.tokens, self._manifest.prefix)
        starts = np.arange(shape.clusters, dtype=np.int64)  # the batch's first images start k-means
        sent = self._engine.compress(images, starts, shape.kept - self._manifest.prefix)
        return sent.activations, sent.assignment


class LocalModel:
    """The whole model under ONNX Runtime.

    Args:
        path: the bundle's model.onnx, verified.
        provider: of ONNX Runtime, or auto.
        threads: the session's; 0: all usable cores.
    """

    def __init__(self, path: Path, provider: Provider | Literal["auto"] = "cpu", threads: int = 0) -> None:
        opened = open_session(str(path), provider, threads)
        self._session, self.description = opened.session, opened.provider

    def logits(self, images: Float32) -> Float32:
        """Return logits ``[B, classes]`` for images ``[B, C, H, W]``."""
        found: Float32 = self._session.run([WHOLE_OUTPUT], {WHOLE_INPUT: images})[0]
        return found


def batch_shape(ratio: Ratio | None, images: int, tokens: int, prefix: int) -> Shape:
    """Return the shape of a batch's message; a single image is a cluster of its own."""
    if ratio is None:
        return Shape(images, tokens, images, tokens)
    if images > 1:
        return ratio.shape(images, tokens, prefix)
    pair = ratio.shape(2, tokens, prefix)
    return Shape(1, tokens, 1, pair.kept)
