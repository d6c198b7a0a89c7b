"""A small model with known weights, and the way in which the commands load a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adc_edge.method.split import load_vit
from adc_edge.weights.fitting import LoadedWeights

MODEL = "vit_tiny_patch16_224"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 3, "depth": 2}
Load = Callable[..., tuple[dict[str, Tensor], LoadedWeights]]


def made(model: str = MODEL, classes: int = 10, **arguments: Any) -> dict[str, Tensor]:
    """Weights of a model, all away from their initial values."""
    torch.manual_seed(1)
    vit = timm.create_model(model, num_classes=classes, **{**SMALL, **arguments})
    for parameter in vit.parameters():
        nn.init.normal_(parameter)
    return {name: value.clone() for name, value in vit.state_dict().items()}


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write contents to a file and load it as the commands do; return the model's weights and the record."""

    def write_and_load(
        contents: Any,
        classes: int | None = 10,
        model: str = MODEL,
        allow_missing: tuple[str, ...] = (),
        suffix: str = "safetensors",
        **arguments: Any,
    ) -> tuple[dict[str, Tensor], LoadedWeights]:
        file = tmp_path / f"file.{suffix}"
        if suffix == "safetensors":
            save_file({name: value.clone() for name, value in contents.items()}, file)
        else:
            torch.save(contents, file)
        vit, record = load_vit(model, {**SMALL, **arguments}, classes, file, allow_missing=allow_missing)
        assert record is not None
        return vit.state_dict(), record

    return write_and_load
