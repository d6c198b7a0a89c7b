"""Examine a bundle: its digests, its precisions, TensorRT's support for it, and its golden pair."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from adc_edge.data.classes import short_list
from adc_edge.edge_runtime.doctor.report import DoctorRow
from adc_edge.errors import AdcEdgeError
from adc_edge.machine.processor import SLOW_INT8, int8_saturates, processor_name
from adc_edge.storage.bundle import CLIENT, GOLDEN, HEAD, TRUNK, Bundle, Compute

_ABSENT = {HEAD: "the trainer's alone", TRUNK: "without it only --trunk frozen"}


def examine_bundle(path: Path, tensorrt: str | None, golden: bool) -> Iterator[DoctorRow]:
    """Yield rows about the bundle at ``path``.

    Args:
        path: the bundle's directory.
        tensorrt: the installed version, if any.
        golden: whether to compute the golden pair, under ONNX Runtime on the CPU.
    """
    try:
        bundle = Bundle.load(path, (CLIENT,))
    except AdcEdgeError as error:
        yield _bad(str(path), error)
        return
    manifest = bundle.manifest
    text = f"{manifest.model}, split {manifest.split} of {manifest.depth}, {manifest.classes} classes"
    text += f": {short_list(manifest.class_names)}" if manifest.class_names else ""
    yield DoctorRow("bundle", "model", "ok", text, needed=True)
    yield from _files(bundle)
    yield from _computes(bundle)
    if tensorrt is not None:
        yield _tensorrt(manifest.opset, tensorrt)
    if golden:
        yield _golden(bundle)


def _bad(name: str, error: AdcEdgeError) -> DoctorRow:
    return DoctorRow("bundle", name, "bad", error.received, error.remedy, needed=True)


def _files(bundle: Bundle) -> Iterator[DoctorRow]:
    """Yield rows for the files: a changed one is bad, one that only other commands need may be absent."""
    intact = []
    for name in bundle.manifest.files:
        if not (bundle.path / name).exists():
            yield DoctorRow("bundle", name, "missing", f"not here: {_ABSENT.get(name, 'some engines need it')}")
            continue
        try:
            bundle.file(name)
            intact.append(name)
        except AdcEdgeError as error:
            yield _bad(name, error)
    yield DoctorRow(
        "bundle", "digests", "ok" if intact else "bad", f"right: {', '.join(intact) or 'none'}", needed=True
    )


def _computes(bundle: Bundle) -> Iterator[DoctorRow]:
    here, others = [], []
    computes: tuple[Compute, ...] = ("fp32", "fp16", "int8")
    for compute in computes:
        try:
            bundle.client(compute)
            here.append(compute)
        except AdcEdgeError as error:
            others.append(f"{compute}: {error.remedy}")
    yield DoctorRow("bundle", "computes in", "ok", ", ".join(here), "; ".join(others) or None)
    if "int8" in here and int8_saturates():
        remedy = "compare them here: adc-edge bench --compute int8 --compute fp32"
        yield DoctorRow("bundle", "int8", "warning", f"{processor_name()}: {SLOW_INT8}", remedy)


def _tensorrt(opset: int, version: str) -> DoctorRow:
    from adc_edge.onnx.tensorrt_support import opset_window_of

    try:
        least, most = opset_window_of(version)
    except AdcEdgeError as error:
        return DoctorRow("bundle", "TensorRT", "warning", error.received, error.remedy)
    text = f"opset {opset}; TensorRT {version} takes {least} to {most}"
    remedy = None if least <= opset <= most else "export the model again with this adc-edge"
    return DoctorRow("bundle", "TensorRT", "warning" if remedy else "ok", text, remedy)


def _golden(bundle: Bundle) -> DoctorRow:
    from adc_edge.edge_runtime.engines.onnxruntime import OnnxEngine
    from adc_edge.onnx.golden import check_golden

    if GOLDEN not in bundle.manifest.files:
        return DoctorRow(
            "bundle", "golden pair", "missing", "this bundle has none", "export it again with this adc-edge"
        )
    start = time.perf_counter()
    try:
        with OnnxEngine(bundle.path / CLIENT, bundle.manifest.trunk) as engine:
            found = check_golden(bundle, engine)
    except AdcEdgeError as error:
        return _bad("golden pair", error)
    except Exception as error:  # ONNX Runtime's own have no common class
        text = " ".join(f"ONNX Runtime: {error}".split())
        return DoctorRow("bundle", "golden pair", "bad", text, "pip install --force-reinstall onnxruntime", needed=True)
    text = (
        f"ONNX Runtime on the CPU: {found.assignment:.0%} of assignments and {found.tokens:.0%} of tokens are the "
        f"exporting machine's, difference {found.difference:.1e} ({time.perf_counter() - start:.1f} s)"
    )
    return DoctorRow("bundle", "golden pair", "ok", text, needed=True)
