"""Trunk and head of a study's model with the codec between them, and the number format in which they compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from adc_edge.data.preprocessing import Preprocessing
from adc_edge.evaluation.codecs.base import Codec
from adc_edge.evaluation.codecs.factory import make_codec
from adc_edge.evaluation.study.records import Study
from adc_edge.evaluation.study.setting import Setting
from adc_edge.method.spec import TrunkSpec
from adc_edge.method.split import Head, create_vit, load_vit, preprocessing, split_vit
from adc_edge.method.trunk import Trunk
from adc_edge.optimizer.torch_optimizer import Optimizer

MakeCodec = Callable[[Setting, TrunkSpec, int, int], Codec]  # setting, trunk, C classes, seed


class SplitModel(NamedTuple):
    """Trunk and head with the codec between them, their optimizers, and the torch device of all."""

    trunk: Trunk
    head: Head
    codec: Codec
    optimizers: tuple[Optimizer, Optimizer]
    place: torch.device


def make_split_model(
    study: Study, setting: Setting, seed: int, classes: int, make: MakeCodec = make_codec
) -> tuple[SplitModel, Preprocessing]:
    """Make the split model of a setting from the study's weights, and the preprocessing of its images."""
    torch.manual_seed(seed)  # for a new classifier
    vit = create_vit(study.model, study.model_args, classes, *_origin(study))
    trunk, head = split_vit(vit, study.split)
    place = torch.device(study.device)
    codec = make(setting, trunk.spec, classes, seed)
    codec.place = place
    codec.adapt(trunk)
    sides = ((trunk, codec.device), (head, codec.trainer))
    halves = [nn.ModuleList(m for m in side if m is not None).to(place) for side in sides]
    optimizers = Optimizer(halves[0], study.trunk_optimizer), Optimizer(halves[1], study.optimizer)
    return SplitModel(trunk, head, codec, optimizers, place), study_preprocessing(study, preprocessing(vit))


def study_preprocessing(study: Study, own: Preprocessing) -> Preprocessing:
    """Return the preprocessing of a study's images: its model's ``own``, with the study's crop."""
    return own if study.crop_pct == "model" else msgspec.structs.replace(own, crop_pct=study.crop_pct)


def check_model(study: Study, classes: int) -> None:
    """Make the study's model and log what it loaded, so that one that does not fit is refused before the first run.

    Raises:
        ModelError: the model or its weights cannot be used.
    """
    vit, loaded = load_vit(study.model, study.model_args, classes, *_origin(study))
    if loaded is not None:
        loaded.log()
    split_vit(vit, study.split)


def _origin(study: Study) -> tuple[Path | None, bool, tuple[str, ...]]:
    """Return where the weights are from, and the tensors that they may lack."""
    weights = None if study.weights is None else Path(study.weights)
    return weights, study.pretrained, () if study.allow_missing is msgspec.UNSET else study.allow_missing


@contextmanager
def computing(study: Study) -> Iterator[None]:
    """Compute in bfloat16 if the study says so, with plain attention on a CPU: fused is several times slower there."""
    with ExitStack() as stack:
        if study.compute == "bf16":
            stack.enter_context(torch.autocast(torch.device(study.device).type, dtype=torch.bfloat16))
            if study.device == "cpu":
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield
