"""Speeds of the answers' model on this machine: a device of one thread, and a head on one core, merged passes too."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from scale_work import COPIES

from adc_edge.defaults import Precision
from adc_edge.method.ratio import Ratio, Shape
from adc_edge.planning.profile import Profile

MODEL, SPLIT, BATCH = "deit_tiny_patch16_224", 6, 32
RATIO = Ratio(batch=0.5, token=0.5)
UP: Precision = "pca1"
DOWN: Precision = "pca0.25"
PASSES = (1, 2, 4, 8, 16)  # messages
_ROUNDS = 3
_LONGEST_S = 3.0  # of the passes with the largest number of messages, all rounds


class Speeds(msgspec.Struct, frozen=True):
    """A profile as `adc-edge profile` has it, and what it does not have."""

    profile: Profile
    shape: Shape
    merged: dict[str, float]  # messages in a pass: seconds of forward and backward, on one core
    parameter_bytes: int  # of the head
    head_bytes: int  # in a checkpoint


def calibrate_profile() -> Speeds:
    """Measure with one thread."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch

    from adc_edge.cloud_trainer.head import HeadTraining
    from adc_edge.cloud_trainer.profile.head_speed import measure_head
    from adc_edge.edge_runtime.profile.device import DeviceMeasurement
    from adc_edge.edge_runtime.settings import ServeSettings
    from adc_edge.export.build import ExportSettings, export_bundle
    from adc_edge.method.split import head_from_manifest
    from adc_edge.optimizer.settings import OptimizerSettings
    from adc_edge.planning.timing import finished

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "bundle"
        export_bundle(ExportSettings(MODEL, SPLIT, path, RATIO, BATCH, UP, classes=10))
        settings = ServeSettings(path, "tcp://127.0.0.1:1", engine="onnxruntime", threads=1, insecure=True)
        measurement = DeviceMeasurement(settings)
        device, manifest = measurement.run(), measurement.bundle.manifest
        training = HeadTraining(head_from_manifest(manifest), OptimizerSettings())
        trainer = finished(measure_head(training, manifest, 1.5))
    shape = RATIO.shape(BATCH, manifest.tokens, manifest.prefix)
    size = 4 * sum(parameter.numel() for parameter in training.parameters)
    merged = merged_seconds(training, shape, manifest.dim, manifest.classes)
    return Speeds(Profile(device, trainer), shape, merged, size, COPIES * size)


def merged_seconds(training: Any, shape: Shape, dim: int, classes: int) -> dict[str, float]:
    """Seconds of a pass of m messages; sizes that take too long here are left out."""
    import torch

    from adc_edge.cloud_trainer.accumulator import StepAccumulator
    from adc_edge.cloud_trainer.scheduling.merged import Merging

    merging, soft = Merging("sum", 10**9), np.full((shape.clusters, classes), 1 / classes, np.float32)
    z, found = torch.randn(shape.clusters, shape.kept, dim), dict[str, float]()
    for messages in PASSES:
        times = []
        for _ in range(_ROUNDS):
            inputs = [(z.clone(), soft, shape.images) for _ in range(messages)]
            begun = time.perf_counter()
            merging.learn(training, inputs, [StepAccumulator(1) for _ in inputs])
            times.append(time.perf_counter() - begun)
        found[str(messages)] = statistics.median(times)
        if sum(times) > _LONGEST_S:
            break
    return found
