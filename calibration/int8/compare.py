"""Comparison of the INT8 graph with the float graph on the test split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import onnx

from adc_edge.arrays import Float32, Int64
from adc_edge.calibration.int8.graph import Linear, tapped
from adc_edge.calibration.int8.quality import Client, TopOne, medians_ms, noise, taps
from adc_edge.calibration.int8.report import Accuracy, ChoiceAgreement, Quality, Speed, TensorError
from adc_edge.data.loader import Batch
from adc_edge.machine.processor import int8_saturates
from adc_edge.onnx.agreement import Agreement, agreement
from adc_edge.onnx.golden import GOLDEN_IMAGES, check_golden
from adc_edge.storage.bundle import CLIENT, GOLDEN, HEAD, Bundle, Manifest

_INSPECTED = 32  # images whose tensors are compared
_CHOICES = 8  # batches whose clusters and tokens are compared
HeadFunction = Callable[[Float32], Float32]  # [B, N, D] -> logits [B, classes]


class Graphs(NamedTuple):
    """The same graph in FP32 with constant weights and in INT8, and the linears that differ."""

    float32: onnx.ModelProto
    int8: onnx.ModelProto
    chosen: Sequence[Linear]


def load_head(bundle: Bundle) -> HeadFunction:
    """Return the bundle's head as a function, computed by PyTorch."""
    import torch
    from safetensors.torch import load

    from adc_edge.method.split import head_from_manifest

    head = head_from_manifest(bundle.manifest).eval()
    head.vit.load_state_dict(load((bundle.path / HEAD).read_bytes()))

    def logits(activations: Float32) -> Float32:
        with torch.inference_mode():
            return head(torch.from_numpy(activations)).numpy()  # type: ignore[no-any-return]

    return logits


def compare(bundle: Bundle, graphs: Graphs, batches: Iterable[Batch], head: HeadFunction | None, seed: int) -> Quality:
    """Run both graphs on test images and return the quality of INT8.

    Args:
        bundle: the bundle; accuracy, choice and speed are compared with its client.onnx.
        graphs: the graphs to compare.
        batches: at least one batch of images, none empty; without a head only the first few are used.
        head: the head, for top-1.
        seed: random seed of the rows that start k-means.

    Raises:
        EngineError: the INT8 graph does not meet the bundle's golden pair.
    """
    manifest = bundle.manifest
    theirs = Client((bundle.path / CLIENT).read_bytes(), manifest.trunk)
    ours = Client(graphs.int8.SerializeToString(), manifest.trunk)
    golden = _golden(bundle, ours) if GOLDEN in manifest.files else None
    top = TopOne(manifest.classes)
    choices: list[tuple[int, Agreement]] = []
    inspected = np.empty((0, manifest.trunk.channels, *manifest.trunk.image_size), np.float32)
    for number, (images, labels) in enumerate(batches):
        if len(choices) < _CHOICES and len(images) > 1:
            inputs = (images, *_rows(manifest, len(images), seed + number))
            choices.append((len(images), agreement(ours.compress(*inputs), theirs.compress(*inputs))))
        inspected = np.concatenate([inspected, images[: _INSPECTED - len(inspected)]])
        if head is not None:
            top.add(labels, head(theirs.full_output(images)), head(ours.full_output(images)))
        elif number + 1 == _CHOICES:
            break
    return Quality(
        tensors=_tensors(manifest, graphs, inspected),
        choice=_choice(choices),
        accuracy=_accuracy(top) if top.images else None,
        speed=_speed(manifest, ours, theirs, inspected),
        golden=None if golden is None else _choice([golden]),
    )


def _golden(bundle: Bundle, ours: Client) -> tuple[int, Agreement]:
    """The golden pair, and how many images it has; in INT8 two runs rarely keep all the same tokens of any cluster."""
    remedy = "images like those that the model was made for, more of them, or another --method; nothing was written"
    return GOLDEN_IMAGES, check_golden(bundle, ours, "int8", remedy)


def _rows(manifest: Manifest, images: int, seed: int) -> tuple[Int64, int]:
    """Return the rows that start k-means, and S, for a batch of this size at the bundle's ratio."""
    shape = manifest.ratio.shape(images, manifest.tokens, manifest.prefix)
    rows = np.random.default_rng(seed).permutation(images)[: shape.clusters]
    return rows.astype(np.int64), shape.kept - manifest.prefix


def _tensors(manifest: Manifest, graphs: Graphs, images: Float32) -> list[TensorError]:
    compared = taps(graphs.float32, graphs.chosen, manifest.trunk)
    names = [tap.tensor for tap in compared]
    ours, theirs = (Client(tapped(graph, names), manifest.trunk) for graph in (graphs.int8, graphs.float32))
    found = noise(ours, theirs, compared, images)
    return [TensorError(label, sqnr if math.isfinite(sqnr) else None) for label, sqnr in found.items()]


def _choice(found: Sequence[tuple[int, Agreement]]) -> ChoiceAgreement | None:
    """Return the mean shares over batches, and the largest difference."""
    if not found:
        return None
    images = [count for count, _ in found]
    shares = np.array([each[:2] for _, each in found]).mean(axis=0)
    differences = [each.difference for _, each in found if not math.isnan(each.difference)]
    return ChoiceAgreement(sum(images), float(shares[0]), float(shares[1]), max(differences, default=None))


def _accuracy(top: TopOne) -> Accuracy:
    share, share_int8, same = (count / top.images for count in (top.right, top.right_int8, top.same))
    return Accuracy(top.images, share, share_int8, top.drop_points, same, top.knows)


def _speed(manifest: Manifest, ours: Client, theirs: Client, images: Float32) -> Speed:
    """Return the speed on a batch of the bundle's size, in which images may repeat."""
    batch = images[np.arange(manifest.batch_size) % len(images)]
    times = medians_ms({"fp32": theirs, "int8": ours}, batch, *_rows(manifest, len(batch), 0))
    return Speed(len(batch), times["fp32"], times["int8"], times["int8"] / times["fp32"], int8_saturates())
