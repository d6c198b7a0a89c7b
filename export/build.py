"""A timm model -> a bundle directory, whole or not at all."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import msgspec
import timm
import torch
from safetensors.torch import save

from adc_edge import __version__
from adc_edge.bundle import CLIENT, FORMAT, HEAD, MANIFEST, TRUNK, Interpolation, Manifest, Preprocessing
from adc_edge.errors import SettingError
from adc_edge.export.graph import OPSET, client_graph
from adc_edge.export.parity import Row, check_parity
from adc_edge.files import new_directory, sha256
from adc_edge.precision import Precision
from adc_edge.ratio import Ratio
from adc_edge.split import create_vit, cut
from adc_edge.trunk import Trunk

_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxscript", "safetensors", "timm", "torch")


class Settings(msgspec.Struct, frozen=True):
    """What `adc-edge export` was asked for."""

    model: str
    split: int
    output: Path
    ratio: Ratio
    batch_size: int = 32
    precision: Precision = "fp16"
    weights: Path | None = None
    pretrained: bool = False
    classes: int | None = None
    model_args: Mapping[str, Any] = msgspec.field(default_factory=dict)
    seed: int = 0
    force: bool = False


def export_bundle(settings: Settings, say: Callable[[str], None] = lambda text: None) -> list[Row]:
    """Make the bundle; returns the parity report.

    Raises:
        SettingError: the output exists and is no bundle, or the ratio fits no batch.
        ModelError: the model cannot be made or cut.
        ParityError: the graph differs from PyTorch; nothing is written.
    """
    _check_output(settings.output, settings.force)
    settings.ratio.check()
    torch.manual_seed(settings.seed)  # of what is not in the weights: a new classifier, or all of it
    vit = create_vit(settings.model, settings.model_args, settings.classes, settings.weights, settings.pretrained)
    trunk, head = cut(vit, settings.split)
    settings.ratio.shape(settings.batch_size, trunk.spec.tokens, trunk.spec.prefix)
    say(f"cut      {settings.model} after block {settings.split} of {len(vit.blocks)}")
    graph = client_graph(trunk)
    say(f"onnx     opset {OPSET}, {len(graph.graph.node)} nodes, {graph.ByteSize() / 1e6:.1f} MB, checked")
    text = graph.SerializeToString()
    rows = check_parity(text, trunk)
    with new_directory(settings.output) as directory:
        (directory / CLIENT).write_bytes(text)
        (directory / TRUNK).write_bytes(save(trunk.state_dict()))
        (directory / HEAD).write_bytes(save(head.vit.state_dict()))
        manifest = _manifest(settings, vit, trunk, {n: sha256(directory / n) for n in (CLIENT, TRUNK, HEAD)})
        (directory / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
    return rows


def _manifest(settings: Settings, vit: timm.models.VisionTransformer, trunk: Trunk, files: dict[str, str]) -> Manifest:
    spec = trunk.spec
    return Manifest(
        format=FORMAT,
        model=settings.model,
        model_args=dict(settings.model_args),
        classes=vit.num_classes,
        split=settings.split,
        depth=len(vit.blocks),
        tokens=spec.tokens,
        prefix=spec.prefix,
        dim=spec.embed_dim,
        trunk=spec,
        preprocessing=_preprocessing(vit, spec.image_size, spec.channels),
        ratio=settings.ratio,
        batch_size=settings.batch_size,
        precision=settings.precision,
        opset=OPSET,
        files=files,
        versions={"adc-edge": __version__, "python": platform.python_version(), **{p: version(p) for p in _PACKAGES}},
    )


def _preprocessing(vit: timm.models.VisionTransformer, size: tuple[int, int], channels: int) -> Preprocessing:
    config = timm.data.resolve_model_data_config(vit)
    mean, std = (tuple(float(v) for v in config[key]) for key in ("mean", "std"))
    if channels == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    interpolation: Interpolation = "bicubic"  # also for timm's "random"
    for known in get_args(Interpolation):
        interpolation = known if known == config["interpolation"] else interpolation
    return Preprocessing(size, mean, std, interpolation)


def _check_output(output: Path, force: bool) -> None:
    if not output.exists():
        return
    if not output.is_dir() or (any(output.iterdir()) and not (output / MANIFEST).is_file()):
        raise SettingError(f"{output} exists and is no bundle", "a new directory, or a bundle", "choose another -o")
    if any(output.iterdir()) and not force:
        raise SettingError(f"{output} holds a bundle already", "a new directory", "choose another -o, or type --force")
