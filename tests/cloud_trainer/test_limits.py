"""Limits of a message follow from the trainer's bundle."""

from __future__ import annotations

from adc_edge.cloud_trainer.limits import MessageLimits
from adc_edge.storage.bundle import Bundle


def test_messages_are_limited_by_the_model(bundle: Bundle) -> None:
    spec, classes = bundle.manifest.trunk, bundle.manifest.classes
    expected = MessageLimits(spec.tokens, spec.prefix, spec.embed_dim, classes, max_images=7)
    assert MessageLimits.from_manifest(bundle.manifest, 7) == expected
