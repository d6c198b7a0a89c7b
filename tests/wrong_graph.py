"""Graphs that compute something else than they should."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from onnx import numpy_helper

from adc_edge.files import sha256
from adc_edge.storage.bundle import CLIENT, MANIFEST

Array = npt.NDArray[Any]


def change_weight(source: Path, target: Path, name: str, change: Callable[[Array], Array]) -> None:
    """Write ``source`` to ``target`` with one weight changed."""
    model = onnx.load(source)
    weight = next(i for i in model.graph.initializer if i.name == name)
    value = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(change(value).astype(value.dtype), name))
    onnx.save(model, target)


def spoil(bundle: Path) -> None:
    """Make a bundle's client.onnx another function, and its digest right."""
    change_weight(bundle / CLIENT, bundle / CLIENT, "blocks.0.mlp.fc1.weight", lambda weight: -weight)
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"][CLIENT] = sha256(bundle / CLIENT)
    (bundle / MANIFEST).write_text(json.dumps(manifest))
