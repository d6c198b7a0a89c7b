"""The study that a command's options describe."""

from __future__ import annotations

from typing import Any

import msgspec
import torch

from adc_edge.data.augment import parse_augmentation
from adc_edge.errors import SettingError
from adc_edge.evaluation.study.records import Study
from adc_edge.options import parse_model_args


def study_of(options: dict[str, Any]) -> Study:
    """Make a study of a command's options. Those left in ``options`` must be fields of ``Study``.

    Raises:
        SettingError: CUDA is requested but absent, an augmentation is unknown, or a model argument is not NAME=VALUE.
    """
    parse_augmentation(options["augment"])  # a wrong name is told before any run
    weights, device, crop_pct = (options.pop(name) for name in ("weights", "device", "crop_pct"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise SettingError("--device cuda, and torch finds no CUDA device", "a CUDA device", "use --device auto")
    return Study(
        model_args=parse_model_args(options.pop("model_arg"), options.pop("img_size")),
        weights=None if weights is None else str(weights),
        pretrained=options.pop("pretrained") and weights is None,
        allow_missing=options.pop("allow_missing") or msgspec.UNSET,
        device=device,
        crop_pct="model" if crop_pct is None else crop_pct,
        **options,
    )
