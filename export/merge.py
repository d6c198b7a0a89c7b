"""Merge of both halves of a run into one ordinary timm checkpoint."""

from __future__ import annotations

from pathlib import Path

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load, save

from adc_edge.errors import CheckpointError
from adc_edge.files import write_atomic
from adc_edge.method.split import create_vit
from adc_edge.storage.bundle import HEAD, MANIFEST, TRUNK, Manifest, parse_manifest

_TRAINED = "a run directory whose run has ended"


def merge_runs(device: Path, trainer: Path, output: Path) -> Manifest:
    """Join ``device``/trunk.safetensors and ``trainer``/head.safetensors; timm loads the result strictly.

    Raises:
        CheckpointError: a run has not ended, the runs are of different bundles, or the halves are not of one model.
    """
    manifests = [_manifest(run) for run in (device, trainer)]
    if msgspec.json.encode(manifests[0]) != msgspec.json.encode(manifests[1]):
        raise CheckpointError(
            f"{device} and {trainer} are runs of different bundles",
            "runs of one bundle",
            "name the two runs of one training",
        )
    try:
        state = load((device / TRUNK).read_bytes()) | load((trainer / HEAD).read_bytes())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"weights are missing: {error}", _TRAINED, "end both runs (Ctrl-C is enough)") from None
    manifest = manifests[0]
    vit = create_vit(manifest.model, manifest.model_args, manifest.classes)
    try:
        vit.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"the halves do not fit: {error}", "halves of one model", "name the right runs") from None
    write_atomic(output, save(vit.state_dict(), metadata={"model": manifest.model, "format": "pt"}))
    return manifest


def _manifest(run: Path) -> Manifest:
    path = run / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{run} is no run directory: {MANIFEST} is missing", _TRAINED, "check the path")
    return parse_manifest(path.read_bytes(), str(path))
