"""Named ratios and precisions of `export`, each chosen by measured accuracy, bytes and reconstruction of images.

The numbers stand in docs/results/privacy-front.json, which `privacy_front.py` of benchmarks makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from adc_edge.codec.precision import Precision
from adc_edge.defaults import ExportPreset
from adc_edge.method.ratio import Ratio


class SentPreset(msgspec.Struct, frozen=True):
    """The ratio and the precisions of activations and gradients."""

    ratio: Ratio
    precision: Precision
    gradient_precision: Precision


EXPORT_PRESETS: dict[ExportPreset, SentPreset] = {
    "private": SentPreset(Ratio(batch=0.5, token=1.0), "pca1", "pca0.25"),
}


def preset_options(name: ExportPreset, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of `export` with a preset in the place of those that were not given.

    A precision that was given for activations alone holds for gradients too, as without a preset.

    Args:
        name: the preset.
        given: options of the command; ``ratio`` is absent, and a precision is absent or None, if it was not given.
    """
    preset, chosen = EXPORT_PRESETS[name], dict(given)
    chosen.setdefault("ratio", preset.ratio)
    if chosen.get("precision") is None:
        chosen["precision"] = preset.precision
        chosen["gradient_precision"] = chosen.get("gradient_precision") or preset.gradient_precision
    return chosen
