"""Activations that a real engine has computed, recorded once, as messages in any precision.

Recording needs torch, for the export. Reading a recording does not, and neither does encoding it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from adc_edge.arrays import Body, Float32
from adc_edge.codec.precision import Precision, encode
from adc_edge.storage.bundle import HEAD, Bundle

BUNDLE, CLASSES = "bundle", 10  # the digits, which come with adc-edge
_MESSAGES = "messages.npz"


class Model(NamedTuple):
    """The model whose activations are recorded."""

    name: str = "vit_tiny_patch16_224"
    args: Mapping[str, Any] = {"img_size": 112, "depth": 4}
    split: int = 3
    batch: int = 8

    def __str__(self) -> str:
        return f"{self.name} {json.dumps(self.args)}, split {self.split}, B={self.batch}"


class Recorded(NamedTuple):
    """A message of a micro-batch, without what its sender adds."""

    body: Body  # encoded activations, and label triples
    shape: tuple[int, int, int]  # T, k, D
    images: int
    triples: int
    precision: Precision
    gradient: Precision


def record(directory: Path, model: Model, count: int = 8) -> None:
    """Export a bundle, run its engine on ``count`` batches of digits, and write what the device would encode."""
    from adc_edge.data.loader import Loader
    from adc_edge.data.sources import load_dataset
    from adc_edge.edge_runtime.engines.onnxruntime import OnnxEngine
    from adc_edge.export.build import ExportSettings, export_bundle
    from adc_edge.method.labels import label_triples
    from adc_edge.method.ratio import Ratio
    from adc_edge.storage.bundle import CLIENT

    directory.mkdir(parents=True, exist_ok=True)
    path = directory / BUNDLE
    ratio = Ratio(xi=1.0)
    export_bundle(
        ExportSettings(model.name, model.split, path, ratio, model.batch, classes=CLASSES, model_args=model.args)
    )
    manifest = Bundle.load(path, need=(CLIENT,)).manifest
    shape = ratio.shape(model.batch, manifest.tokens, manifest.prefix)
    loader = Loader(load_dataset("digits").train, manifest.preprocessing, model.batch, workers=1)
    arrays: dict[str, npt.NDArray[Any]] = {}
    try:
        with OnnxEngine(path / CLIENT, manifest.trunk, threads=1) as engine:
            for number in range(count):
                batch = loader.batch(number)
                rows = loader.init_rows(number, shape.clusters, model.batch)
                sent = engine.compress(batch.images, rows, shape.kept - manifest.prefix)
                arrays[f"activations-{number}"] = sent.activations
                arrays[f"triples-{number}"] = label_triples(sent.assignment, batch.labels, CLASSES)
    finally:
        loader.close()
    np.savez(directory / _MESSAGES, **arrays)  # type: ignore[arg-type]


def bundle_of(directory: Path) -> Bundle:
    return Bundle.load(directory / BUNDLE, need=(HEAD,))


def recorded(directory: Path, precision: Precision, gradient: Precision) -> list[Recorded]:
    """The recorded messages, encoded in ``precision``, that ask for gradients in ``gradient``."""
    with np.load(directory / _MESSAGES) as arrays:
        count = len(arrays.files) // 2
        pairs = [(arrays[f"activations-{number}"], arrays[f"triples-{number}"]) for number in range(count)]
    return [_message(activations, triples, precision, gradient) for activations, triples in pairs]


def _message(
    activations: Float32, triples: npt.NDArray[np.int32], precision: Precision, gradient: Precision
) -> Recorded:
    body = encode(activations, precision, triples.tobytes())
    clusters, kept, dim = activations.shape
    return Recorded(body, (clusters, kept, dim), int(triples[:, 2].sum()), len(triples), precision, gradient)
