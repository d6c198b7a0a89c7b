"""The contents of a bundle: graphs, golden pair, weights and manifest, made from a timm model."""

from __future__ import annotations

import logging
import platform
from importlib.metadata import version

import msgspec
import timm
import torch
from safetensors.torch import save

from adc_edge import __version__
from adc_edge.data.preprocessing import Preprocessing
from adc_edge.errors import ModelError
from adc_edge.export.build import ExportSettings
from adc_edge.export.classes import check_number, names_of_weights
from adc_edge.export.graph import OPSET, client_graph, without_weights
from adc_edge.export.parity import ParityRow, check_parity
from adc_edge.export.whole import whole_graph
from adc_edge.files import new_directory, sha256
from adc_edge.method.split import load_vit, split_vit
from adc_edge.method.split import preprocessing as preprocessing_of
from adc_edge.method.trunk import Trunk
from adc_edge.onnx.golden import GOLDEN_CLUSTERS, Golden, golden_images, golden_pixels
from adc_edge.onnx.tensorrt_lint import lint, summary
from adc_edge.storage.bundle import (
    BUNDLE_FORMAT,
    CLIENT,
    CLIENT_BARE,
    CLIENT_FP16,
    GOLDEN,
    HEAD,
    MANIFEST,
    TRUNK,
    WHOLE,
    Compute,
    Manifest,
)

logger = logging.getLogger(__name__)
_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxscript", "safetensors", "timm", "torch")


def write_bundle(settings: ExportSettings, names: list[str]) -> list[ParityRow]:
    """Write the bundle of checked settings, whose class names are ``names``; see ``export_bundle``."""
    torch.manual_seed(settings.seed)  # for weights that no file gives: a new classifier, or all of them
    origin = settings.weights, settings.pretrained, settings.allow_missing
    vit, loaded = load_vit(settings.model, settings.model_args, check_number(names, settings.classes), *origin)
    if loaded is not None:
        loaded.log()
    names = names or names_of_weights(vit, loaded, from_hub=settings.weights is None)
    kept = loaded is not None and loaded.head_kept
    trunk, head = split_vit(vit, settings.split)
    settings.ratio.shape(settings.batch_size, trunk.spec.tokens, trunk.spec.prefix)
    logger.info("cut      %s after block %d of %d", settings.model, settings.split, len(vit.blocks))
    files, rows = _graphs(trunk, settings)
    if settings.whole:
        files[WHOLE] = whole_graph(vit, trunk.spec).SerializeToString()
    preprocessing = preprocessing_of(vit, settings.crop_pct)
    files |= {GOLDEN: _golden(trunk, preprocessing), TRUNK: save(trunk.state_dict()), HEAD: save(head.vit.state_dict())}
    with new_directory(settings.output) as directory:
        for name, content in files.items():
            (directory / name).write_bytes(content)
        digests = {name: sha256(directory / name) for name in files}
        manifest = _manifest(settings, vit, trunk, preprocessing, digests, names, kept)
        (directory / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
    return rows


def _graphs(trunk: Trunk, settings: ExportSettings) -> tuple[dict[str, bytes], list[ParityRow]]:
    """Return the bundle's graphs by file name, and their parity with PyTorch."""
    computes: list[Compute] = ["fp32", "fp16"] if settings.fp16 or settings.tensorrt else ["fp32"]
    files, rows = {}, []
    for compute in computes:
        graph = client_graph(trunk, half=compute == "fp16")
        name = CLIENT if compute == "fp32" else CLIENT_FP16
        files[name] = graph.SerializeToString()
        size = f"{len(graph.graph.node)} nodes, {len(files[name]) / 1e6:.1f} MB"
        logger.info("onnx     %s: opset %d, %s, checked", name, OPSET, size)
        report = lint(graph)
        logger.info("lint     %s: %s", name, summary(report))
        if settings.tensorrt and any(report.values()):
            raise ModelError(
                f"--tensorrt, and {name} fits {summary(report)}",
                "a graph that every TensorRT line takes",
                "leave --tensorrt out, or report the model's name",
            )
        rows += check_parity(files[name], trunk, compute)
    if settings.tensorrt:
        files[CLIENT_BARE] = without_weights(graph).SerializeToString()
    return files, rows


@torch.no_grad()
def _golden(trunk: Trunk, preprocessing: Preprocessing) -> bytes:
    """Return the golden pair, computed by PyTorch with as many clusters as leave none empty."""
    pixels, slots = golden_pixels(trunk.spec), max(1, trunk.spec.patches // 3)
    images = torch.from_numpy(golden_images(pixels, preprocessing))
    for clusters in range(GOLDEN_CLUSTERS, 0, -1):
        init_rows = torch.arange(clusters)
        out = trunk.compress(images, init_rows, torch.zeros(slots, dtype=torch.int64))
        if (out.counts > 0).all():
            break
    return Golden(pixels, init_rows.numpy(), slots, *(part.numpy() for part in out[:3])).dump()


def _manifest(
    settings: ExportSettings,
    vit: timm.models.VisionTransformer,
    trunk: Trunk,
    preprocessing: Preprocessing,
    files: dict[str, str],
    names: list[str],
    kept: bool,
) -> Manifest:
    spec = trunk.spec
    up, down = settings.precisions
    return Manifest(
        format=BUNDLE_FORMAT,
        model=settings.model,
        model_args=dict(settings.model_args),
        classes=vit.num_classes,
        split=settings.split,
        depth=len(vit.blocks),
        tokens=spec.tokens,
        prefix=spec.prefix,
        dim=spec.embed_dim,
        trunk=spec,
        preprocessing=preprocessing,
        ratio=settings.ratio,
        batch_size=settings.batch_size,
        precision=up,
        gradient_precision=down,
        opset=OPSET,
        files=files,
        versions={"adc-edge": __version__, "python": platform.python_version(), **{p: version(p) for p in _PACKAGES}},
        class_names=names,
        classifier_kept=kept,
    )
