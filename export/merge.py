"""Merge of both halves of a run into one ordinary timm checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from adc_edge.errors import CheckpointError
from adc_edge.export.classes import CLASS_NAMES
from adc_edge.files import write_atomic
from adc_edge.method.split import create_vit
from adc_edge.storage.bundle import HEAD, MANIFEST, TRUNK, Manifest, parse_manifest
from adc_edge.storage.run_dir import CLASSES, LearnedClasses

_TRAINED = "a run directory whose run has ended"


def merge_runs(device: Path, trainer: Path, output: Path) -> tuple[Manifest, list[str]]:
    """Join ``device``/trunk.safetensors and ``trainer``/head.safetensors; timm loads the result strictly.

    Returns:
        The manifest, and the names of the head's classes as far as the run knows them.

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
        state = load_file(device / TRUNK) | load_file(trainer / HEAD)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"weights are missing: {error}", _TRAINED, "end both runs (Ctrl-C is enough)") from None
    manifest = manifests[0]
    vit = create_vit(manifest.model, manifest.model_args, manifest.classes)
    try:
        vit.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"the halves do not fit: {error}", "halves of one model", "name the right runs") from None
    names = _class_names(manifest, trainer)
    known = {CLASS_NAMES: json.dumps(names)} if names else {}
    write_atomic(output, save(vit.state_dict(), metadata={"model": manifest.model, "format": "pt", **known}))
    return manifest, names


def _class_names(manifest: Manifest, trainer: Path) -> list[str]:
    """Return the head's class names: those that the trainer's run has learned, or else the bundle's."""
    path = trainer / CLASSES
    if not path.is_file():
        return manifest.class_names
    try:
        found = msgspec.json.decode(path.read_bytes(), type=LearnedClasses)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {error}", "class names as the trainer wrote them", "restore it") from None
    return [] if found.positions else found.head


def _manifest(run: Path) -> Manifest:
    path = run / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{run} is no run directory: {MANIFEST} is missing", _TRAINED, "check the path")
    return parse_manifest(path.read_bytes(), str(path))
