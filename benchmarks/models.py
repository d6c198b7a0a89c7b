"""Every supported family of models, exported and checked as `adc-edge export --tensorrt` does; makes docs/models.md.

    python benchmarks/models.py --markdown docs/models.md

Weights are random: what is checked does not depend on them, and none need be downloaded. Models that ADC or the trunk
cannot take are listed with the refusal that a user would read.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from harness import arguments, medians_ms, table

from adc_edge.edge_runtime.engines.onnxruntime import OnnxEngine
from adc_edge.errors import AdcEdgeError
from adc_edge.export.build import ExportSettings, export_bundle
from adc_edge.markdown import markdown_table
from adc_edge.method.ratio import Ratio
from adc_edge.onnx.golden import check_golden
from adc_edge.onnx.tensorrt_lint import fits, lint
from adc_edge.storage.bundle import CLIENT, Bundle

SPLIT, BATCH, XI = 6, 8, 0.1
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("deit_tiny_patch16_224", {}),
    ("deit_small_patch16_224", {}),
    ("deit_base_patch16_224", {}),
    ("deit_tiny_distilled_patch16_224", {}),
    ("deit_small_distilled_patch16_224", {}),
    ("deit_base_distilled_patch16_224", {}),
    ("deit3_small_patch16_224", {}),
    ("vit_tiny_patch16_224", {}),
    ("vit_small_patch16_224", {}),
    ("vit_base_patch16_224", {}),
    ("vit_base_patch16_clip_224", {}),
    ("vit_small_patch14_dinov2", {"img_size": 224}),
    ("vit_small_patch14_reg4_dinov2", {"img_size": 224}),
]
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("vit_base_patch16_siglip_224", {}),
    ("vit_base_patch16_rpn_224", {}),
    ("vit_small_patch16_18x2_224", {}),
    ("vit_base_patch16_224", {"drop_path_rate": 0.1}),
    ("vit_base_patch16_224", {"dynamic_img_size": True}),
    ("beit_base_patch16_224", {}),
    ("eva02_tiny_patch14_224", {}),
    ("swin_tiny_patch4_window7_224", {}),
    ("resnet50", {}),
]
COLUMNS = (
    "model", "pixels", "N", "D", "nodes", "MB, fp32 / fp16", "parity, fp32", "parity, fp16", "assignments, fp32 / fp16",
    "tokens, fp32 / fp16", "golden pair", "TensorRT", "ms an image",
)  # fmt: skip


class Exported(NamedTuple):
    """One model, exported and measured."""

    name: str
    cells: tuple[str, ...]


def exported(name: str, model_args: dict[str, Any], directory: Path, rounds: int) -> Exported:
    """Export, which raises if any stage of the parity fails; then the golden pair, and the time of a batch."""
    settings = ExportSettings(
        name, SPLIT, directory / "bundle", Ratio(xi=XI), model_args=model_args, tensorrt=True, force=True
    )
    rows = export_bundle(settings)
    bundle = Bundle.load(settings.output, ())
    manifest, spec = bundle.manifest, bundle.manifest.trunk
    graph = onnx.load(settings.output / CLIENT)
    worst = {c: max(max(r.scores, r.hidden, r.difference) for r in rows if r.compute == c) for c in ("fp32", "fp16")}
    shares = {
        (c, what): statistics.fmean(getattr(r, what) for r in rows if r.compute == c)
        for c in ("fp32", "fp16")
        for what in ("assignment", "tokens")
    }
    shape = Ratio(xi=XI).shape(BATCH, manifest.tokens, manifest.prefix)
    images = np.random.default_rng(0).standard_normal((BATCH, spec.channels, *spec.image_size)).astype(np.float32)
    with OnnxEngine(bundle.client("fp32"), spec) as engine:
        golden = check_golden(bundle, engine)
        init_rows = np.arange(shape.clusters)
        ms = medians_ms({"": lambda: engine.compress(images, init_rows, shape.kept - manifest.prefix)}, rounds)[""]
    mb = [f"{bundle.client(c).stat().st_size / 1e6:.1f}" for c in ("fp32", "fp16")]
    cells = (
        f"{spec.image_size[0]}", f"{manifest.tokens}", f"{manifest.dim}", f"{len(graph.graph.node)}", " / ".join(mb),
        f"{worst['fp32']:.0e}", f"{worst['fp16']:.0e}",
        *(f"{shares['fp32', w]:.1%} / {shares['fp16', w]:.1%}" for w in ("assignment", "tokens")),
        f"{golden.difference:.0e}", ", ".join(fits(lint(graph))), f"{ms / BATCH:.1f}",
    )  # fmt: skip
    return Exported(_call(name, model_args), cells)


def refusal(name: str, model_args: dict[str, Any], directory: Path) -> tuple[str, str]:
    """The first line of what `export` says."""
    try:
        export_bundle(ExportSettings(name, SPLIT, directory / "refused", Ratio(xi=XI), model_args=model_args))
    except AdcEdgeError as error:
        return _call(name, model_args), error.received.splitlines()[0]
    raise AssertionError(f"{name} is supported after all: move it to MODELS")


def _call(name: str, model_args: dict[str, Any]) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in model_args.items())])


def markdown(models: list[Exported], refused: list[tuple[str, str]]) -> str:
    """docs/models.md."""
    versions = ", ".join(f"{p} {version(p)}" for p in ("timm", "torch", "onnx", "onnxruntime"))
    lines = [
        "# Models",
        "",
        "Made by `python benchmarks/models.py --markdown docs/models.md`; do not edit. Each was exported by the code",
        f"behind `adc-edge export --split {SPLIT} --tensorrt`, which writes nothing unless every stage of the parity",
        "holds in fp32 and fp16 (scores and hidden states; clusters and tokens exactly, given the scores; choices and",
        "activations end to end; all of it again with every weight perturbed and refreshed, twice). Random weights.",
        "",
        f"Measured on {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}.",
        "*parity*: the largest difference of scores, hidden states or activations over all stages, relative to the",
        "largest value, ONNX Runtime against PyTorch in fp32. *assignments*, *tokens*: share of images in the same",
        "cluster, Jaccard index of the tokens kept. *golden pair*: difference on the bundle's own images. *TensorRT*:",
        "the lines whose operator table the graph fits; no engine was built. *ms an image*: trunk + ADC, ONNX Runtime",
        f"on the CPU, B={BATCH}, ξ={XI}.",
        "",
        markdown_table(COLUMNS, ((f"`{model.name}`", *model.cells) for model in models), "lr"),
        "",
        "## Refused",
        "",
        markdown_table(("model", "what `export` says"), ((f"`{name}`", reason) for name, reason in refused)),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = arguments("Export every supported family of models, check it, and list it.")
    parser.add_argument("--markdown", type=Path, help="where the page goes")
    parser.add_argument("--models", nargs="*", help="only these")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    models, refused = [], []
    with tempfile.TemporaryDirectory() as directory:
        for name, model_args in MODELS:
            if not args.models or name in args.models:
                models.append(exported(name, model_args, Path(directory), args.rounds))
                print(models[-1].name, *models[-1].cells, sep="  ", flush=True)
        if not args.models:
            refused = [refusal(name, model_args, Path(directory)) for name, model_args in REFUSED]
    table("models", COLUMNS, [(model.name, *model.cells) for model in models])
    table("refused", ("model", "what export says"), refused)
    if args.markdown is not None:
        args.markdown.write_text(markdown(models, refused))


if __name__ == "__main__":
    main()
