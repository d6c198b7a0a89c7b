"""The study that a command's options describe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from adc_edge.data.augment import parse_augmentation
from adc_edge.errors import SettingError
from adc_edge.evaluation.study.records import Study
from adc_edge.evaluation.study.setting import FREEZE, Setting
from adc_edge.options import parse_model_args
from adc_edge.quantities import as_typed
from adc_edge.weights.opening import check_origin


def study_of(options: dict[str, Any]) -> Study:
    """Make a study of a command's options, checked as far as torch is not needed.

    Those left in ``options`` must be fields of ``Study``; ``device`` may be "auto".

    Raises:
        SettingError: a model argument is not NAME=VALUE, the augmentation is unknown, or a number is out of range.
        ModelError: there is no such weights file.
    """
    weights, crop_pct = options.pop("weights"), options.pop("crop_pct")
    trunk_lr = options.pop("trunk_lr", None)
    check_origin(weights, options["pretrained"], options["allow_missing"])
    parse_augmentation(options["augment"])
    study = Study(
        model_args=parse_model_args(options.pop("model_arg"), options.pop("img_size")),
        weights=None if weights is None else str(weights),
        pretrained=options.pop("pretrained") and weights is None,
        allow_missing=options.pop("allow_missing") or msgspec.UNSET,
        crop_pct="model" if crop_pct is None else crop_pct,
        store_drop=options.pop("store_drop", 0.0) or msgspec.UNSET,
        store_mix=options.pop("store_mix", 0.0) or msgspec.UNSET,
        trunk_lr=msgspec.UNSET if trunk_lr is None else trunk_lr,
        **options,
    )
    return study.check()


def check_augmentation(study: Study, settings: Sequence[Setting]) -> None:
    """Raise SettingError if stored activations are to be augmented, and no setting has a trainer that goes on alone."""
    augments = as_typed({"--store-drop": study.store_drop or 0.0, "--store-mix": study.store_mix or 0.0})
    epochs = study.max_epochs or study.epochs
    alone = (one.freeze is not None and one.freeze + one.passes < epochs for one in settings)
    if augments and not any(alone):
        raise SettingError(
            f"{augments}, and no setting in which the trainer goes on alone",
            f"one with {FREEZE}ExK, E + K below {epochs:g} epochs",
            "add such a setting, also one that the study has already, or leave the augmentation out",
        )


def on_device(study: Study) -> Study:
    """Return the study with its device found; raises SettingError if it is to be CUDA and there is none."""
    if study.device == "cpu":
        return study
    import torch

    found = torch.cuda.is_available()
    if study.device == "cuda" and not found:
        raise SettingError("--device cuda, and torch finds no CUDA device", "a CUDA device", "use --device auto")
    return msgspec.structs.replace(study, device="cuda" if found else "cpu")
