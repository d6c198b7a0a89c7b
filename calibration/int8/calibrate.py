"""Calibration: images -> ranges -> client.int8.onnx, compared with the float graph before anything is written.

The manifest and the bundle's digest, which device and trainer compare, do not change. client.int8.onnx is written
before calibration.json, which holds its SHA-256: after a kill in between, the bundle says so and opens no INT8 graph.
"""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path

import msgspec
import onnx

from adc_edge import __version__
from adc_edge.calibration.int8.compare import Graphs, compare, load_head
from adc_edge.calibration.int8.graph import frozen, kept_in_float, linears, quantise, tapped, zero_points
from adc_edge.calibration.int8.images import CalibrationImages
from adc_edge.calibration.int8.ranges import Method, collect
from adc_edge.calibration.int8.report import CalibrationReport, Quality
from adc_edge.data.classes import label_for_head
from adc_edge.data.loader import test_batches
from adc_edge.data.sources import load_dataset
from adc_edge.data.unreadable import check_images
from adc_edge.errors import EngineError, SettingError
from adc_edge.files import json_bytes, sha256, write_atomic
from adc_edge.onnx.session import cpu_session
from adc_edge.onnx.tensorrt_lint import fits, lint, summary
from adc_edge.storage.bundle import BUNDLE_FORMAT, CALIBRATION, CLIENT, CLIENT_INT8, HEAD, Bundle, Calibration

logger = logging.getLogger(__name__)
PERCENTILE = 99.99
_LEAST_IMAGES = 8
_PACKAGES = ("numpy", "onnx", "onnxruntime")


class CalibrationSettings(msgspec.Struct, frozen=True):
    """The options of `adc-edge calibrate`."""

    bundle: Path
    data: str
    images: int = 256
    method: Method = "percentile"
    percentile: float | None = None
    max_drop: float = 1.0
    eval_images: int = 1000
    seed: int = 0
    allow_broken: bool = False

    @property
    def covered(self) -> float:
        """The percentile of values that the range covers, for the method of this name."""
        return PERCENTILE if self.percentile is None else self.percentile

    def check(self) -> None:
        """Raise SettingError unless the options make sense, also together."""
        if self.images < _LEAST_IMAGES:
            raise SettingError(
                f"--images {self.images}", f"at least {_LEAST_IMAGES}; 32 to 256 suffice", "leave --images out"
            )
        if self.percentile is not None and self.method != "percentile":
            raise SettingError(
                f"--percentile {self.percentile} with --method {self.method}",
                "a percentile with --method percentile alone",
                "leave one of them out",
            )


def calibrate_bundle(settings: CalibrationSettings) -> CalibrationReport:
    """Write client.int8.onnx and calibration.json into the bundle, in place of older ones; return the report.

    Raises:
        SettingError: options that make no sense.
        BundleError: a file that is missing or changed.
        DataError: a source that cannot be read, too few images or too many broken ones, labels outside of the classes.
        EngineError: values that are not finite, a graph that TensorRT refuses, a golden pair that differs too much, or
            a drop of top-1 by more than ``max_drop`` points. Nothing is written.
    """
    settings.check()
    has_head = (settings.bundle / HEAD).exists()  # a device's copy may lack it
    bundle = Bundle.load(settings.bundle, (CLIENT, HEAD) if has_head else (CLIENT,))
    dataset = load_dataset(settings.data)
    manifest = bundle.manifest
    label_for_head(dataset, manifest.class_names, manifest.classes, manifest.classifier_kept)
    check_images(dataset, settings.allow_broken)
    preprocessing = bundle.manifest.preprocessing
    sample = CalibrationImages(dataset.train, preprocessing, settings.images, settings.seed, settings.allow_broken)
    graphs = _quantise(bundle, sample, settings)
    lines = _check_lines(graphs)
    fitting = ", ".join(lines) or "takes it in no release"
    logger.info("int8     %d linears, %s; TensorRT %s", len(graphs.chosen), settings.method, fitting)
    size = bundle.manifest.batch_size
    batches = test_batches(dataset.test, preprocessing, settings.eval_images, size, settings.allow_broken)
    quality = compare(bundle, graphs, batches, load_head(bundle) if has_head else None, settings.seed)
    _check_drop(quality, settings)
    content = graphs.int8.SerializeToString()
    report = _report(bundle, settings, sample.broken, graphs, lines, quality)
    write_atomic(bundle.path / CLIENT_INT8, content)
    calibration = Calibration(
        BUNDLE_FORMAT,
        bundle.manifest.files[CLIENT],
        sha256(bundle.path / CLIENT_INT8),
        settings.method,
        settings.images,
        msgspec.to_builtins(report),
    )
    write_atomic(bundle.path / CALIBRATION, json_bytes(calibration))
    return report


def _quantise(bundle: Bundle, sample: CalibrationImages, settings: CalibrationSettings) -> Graphs:
    manifest = bundle.manifest
    model = onnx.load(bundle.path / CLIENT)
    chosen = linears(model, manifest.trunk)
    fixed = frozen(model)
    session = cpu_session(tapped(fixed, [linear.input for linear in chosen]))
    names = {linear.name: linear.input for linear in chosen}
    reaches = collect(session, names, sample, manifest.trunk.patches, manifest.prefix)
    broken = f", {sample.broken} broken ones replaced" if sample.broken else ""
    logger.info("ranges   %d images%s", settings.images, broken)
    scales = {name: reach.scale(settings.method, settings.covered) for name, reach in reaches.items()}
    return Graphs(fixed, quantise(fixed, chosen, scales), chosen)


def _check_lines(graphs: Graphs) -> tuple[str, ...]:
    """Return the releases of TensorRT that the INT8 graph fits; raise EngineError if the float graph fits more."""
    found = lint(graphs.int8)
    lost = set(fits(lint(graphs.float32))) - set(fits(found))
    if lost:
        raise EngineError(
            f"the INT8 graph fits fewer releases of TensorRT than its FP32 graph: {summary(found)}",
            f"TensorRT {', '.join(sorted(lost))} too",
            "report it with the model's name; nothing was written",
        )
    return fits(found)


def _check_drop(quality: Quality, settings: CalibrationSettings) -> None:
    found = quality.accuracy
    if found is not None and found.judged and found.drop_points > settings.max_drop:
        raise EngineError(
            f"top-1 falls by {found.drop_points:.1f} points in INT8, "
            f"from {found.top1:.1%} to {found.top1_int8:.1%} of {found.images} images",
            f"at most {settings.max_drop:g} (--max-drop)",
            "calibrate on more --images or by another --method, judge by more --eval-images, "
            "or keep the float trunk (--compute fp32); nothing was written",
        )


def _report(
    bundle: Bundle, settings: CalibrationSettings, broken: int, graphs: Graphs, lines: tuple[str, ...], quality: Quality
) -> CalibrationReport:
    return CalibrationReport(
        method=settings.method,
        percentile=settings.covered if settings.method == "percentile" else None,
        images=settings.images,
        broken=broken,
        seed=settings.seed,
        quantised=[linear.name for linear in graphs.chosen],
        float32=kept_in_float(bundle.manifest.trunk),
        zero_points=sorted({int(value) for points in zero_points(graphs.int8) for value in points.flat}),
        tensorrt=list(lines),
        client_bytes=(bundle.path / CLIENT).stat().st_size,
        int8_bytes=graphs.int8.ByteSize(),
        quality=quality,
        versions={"adc-edge": __version__, **{name: version(name) for name in _PACKAGES}},
    )
