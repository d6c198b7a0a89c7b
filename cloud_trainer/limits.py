"""Limits of a message's body, computed from its header and checked before a byte of it is allocated."""

from __future__ import annotations

import msgspec

from adc_edge.codec.precision import encoded_bytes
from adc_edge.errors import ProtocolError
from adc_edge.storage.bundle import Manifest
from adc_edge.wire.inference_messages import Infer
from adc_edge.wire.link_messages import Bulk, Ping
from adc_edge.wire.messages import LABEL_BYTES, TRIPLE_BYTES, ClassNames, Evaluate, FromDevice, Step


class MessageLimits(msgspec.Struct, frozen=True):
    """Sizes that a bundle allows: N ``tokens`` of an image (P of them ``prefix``), D ``dim``, C ``classes``."""

    tokens: int
    prefix: int
    dim: int
    classes: int
    max_images: int

    @classmethod
    def from_manifest(cls, manifest: Manifest, max_images: int) -> MessageLimits:
        """The limits of messages about this model."""
        return cls(manifest.tokens, manifest.prefix, manifest.dim, manifest.classes, max_images)

    def body_bytes(self, message: FromDevice) -> int:
        """Exact size in bytes of a message's body; raises as ``step_bytes``."""
        if isinstance(message, Step):
            return self.step_bytes(message)
        if isinstance(message, Evaluate):
            return self.evaluate_bytes(message)
        return message.body_bytes if isinstance(message, ClassNames | Bulk | Ping) else 0

    def step_bytes(self, step: Step) -> int:
        """Exact size in bytes of a Step's body.

        Raises:
            ProtocolError: code ``shape`` or ``size``.
        """
        self._within("images", step.images, 1, self.max_images)
        self._within("clusters", step.clusters, 1, step.images)
        self._within("kept tokens", step.kept, self.prefix, self.tokens)
        self._within("label triples", step.triples, step.clusters, step.images)
        size = encoded_bytes((step.clusters, step.kept, self.dim), step.precision) + TRIPLE_BYTES * step.triples
        return self._exactly(step.body_bytes, size)

    def evaluate_bytes(self, part: Evaluate) -> int:
        """Exact size in bytes of an Evaluate's body; raises as ``step_bytes``."""
        self._within("images", part.images, 1, self.max_images)
        size = encoded_bytes((part.images, self.tokens, self.dim), part.precision) + LABEL_BYTES * part.images
        return self._exactly(part.body_bytes, size)

    def infer_bytes(self, infer: Infer) -> int:
        """Exact size in bytes of an Infer's body; raises as ``step_bytes``."""
        self._within("clusters", infer.clusters, 1, self.max_images)
        self._within("kept tokens", infer.kept, self.prefix, self.tokens)
        size = encoded_bytes((infer.clusters, infer.kept, self.dim), infer.precision)
        return self._exactly(infer.body_bytes, size)

    def largest_bytes(self) -> int:
        """Upper bound on any body: the full activations of ``max_images`` images in fp32."""
        return encoded_bytes((self.max_images, self.tokens, self.dim), "fp32") + TRIPLE_BYTES * self.max_images

    def _within(self, what: str, value: int, low: int, high: int) -> None:
        if not low <= value <= high:
            raise ProtocolError(
                f"{value} {what}", f"{low} to {high}", "use the trainer's bundle, or raise its --max-images", "shape"
            )

    @staticmethod
    def _exactly(value: int, expected: int) -> int:
        if value != expected:
            raise ProtocolError(
                f"a body of {value} bytes",
                f"{expected} for its shapes",
                "install the same version of adc-edge on both sides",
                "size",
            )
        return expected
