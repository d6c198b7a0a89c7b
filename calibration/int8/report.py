"""The report of `calibrate`, for calibration.json and as tables."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from rich.table import Table

_SHOWN = 12  # tensors; calibration.json has them all


class TensorError(msgspec.Struct, frozen=True):
    """Signal to quantisation noise of a tensor; None where nothing differs."""

    name: str
    sqnr_db: float | None


class Accuracy(msgspec.Struct, frozen=True):
    """Top-1 as shares in 0..1. ``judged``: the float model beats chance, so --max-drop was applied."""

    images: int
    top1: float
    top1_int8: float
    drop_points: float
    agreement: float
    judged: bool


class ChoiceAgreement(msgspec.Struct, frozen=True):
    """Shares of equal clusters and tokens; ``difference`` is None if no cluster has the same images and tokens."""

    images: int
    assignment: float
    tokens: float
    difference: float | None


class Speed(msgspec.Struct, frozen=True):
    """Median times on the calibrating machine for a batch at the bundle's ratio.

    ``slow_products``: the fast 8-bit products of this processor saturate; exact ones ran, whose time does not count.
    """

    images: int
    fp32_ms: float
    int8_ms: float
    ratio: float
    slow_products: bool


class Quality(msgspec.Struct, frozen=True):
    """Quality of INT8 against FP32. ``choice`` is at the bundle's ratio; ``accuracy`` is None without a head."""

    tensors: list[TensorError]  # worst first
    choice: ChoiceAgreement | None
    accuracy: Accuracy | None
    speed: Speed
    golden: ChoiceAgreement | None


class CalibrationReport(msgspec.Struct, frozen=True):
    """Settings and results of a calibration."""

    method: str
    percentile: float | None
    images: int
    broken: int
    seed: int
    quantised: list[str]
    float32: dict[str, str]  # linears left in FP32, and the reason
    zero_points: list[int]  # each value once
    tensorrt: list[str]  # releases that the graph fits
    client_bytes: int
    int8_bytes: int
    quality: Quality
    versions: dict[str, str]


def calibration_tables(report: CalibrationReport) -> Iterator[Table]:
    """Yield the report's tables for a terminal."""
    summary = Table("", title="INT8 beside FP32")
    for name in ("FP32", "INT8", "INT8 v FP32"):
        summary.add_column(name, justify="right")
    for row in _rows(report):
        summary.add_row(*row)
    yield summary
    more = len(report.quality.tensors) - _SHOWN
    noise = Table(
        "tensor",
        title="Signal to quantisation noise, worst first",
        caption=f"{more} more in calibration.json" if more > 0 else None,
    )
    noise.add_column("dB", justify="right")
    for tensor in report.quality.tensors[:_SHOWN]:
        noise.add_row(tensor.name, "exact" if tensor.sqnr_db is None else f"{tensor.sqnr_db:.1f}")
    yield noise
    floats = Table("linear", "reason (DeiT-T, split 6)", title="Linears left in FP32")
    for name, why in report.float32.items():
        floats.add_row(name, why)
    yield floats


def calibration_notes(report: CalibrationReport) -> Iterator[str]:
    """Yield notes on how to read the numbers."""
    accuracy = report.quality.accuracy
    if accuracy is None:
        yield "no head.safetensors here: top-1 was not measured and --max-drop not applied"
    elif not accuracy.judged:
        yield "the float model is no better than chance on these images: --max-drop was not applied"
    if report.quality.speed.slow_products:
        yield (
            "the fast INT8 products of this processor saturate (no VNNI), so INT8 ran with exact but slower ones; "
            "results are those of VNNI, ARM and TensorRT, its time here does not count"
        )
    yield "INT8 is forward only (--trunk frozen): its scales do not follow weights that learn"


def _rows(report: CalibrationReport) -> Iterator[tuple[str, str, str, str]]:
    quality, speed = report.quality, report.quality.speed
    accuracy, choice = quality.accuracy, quality.choice
    if accuracy is not None:
        shares = (f"{accuracy.top1:.1%}", f"{accuracy.top1_int8:.1%}", f"{-accuracy.drop_points:+.1f} points")
        yield f"top-1 of {accuracy.images} images", *shares
        yield "the same class", "", "", f"{accuracy.agreement:.1%}"
    if choice is not None:
        yield f"the same cluster, {choice.images} images", "", "", f"{choice.assignment:.1%}"
        yield "the same tokens (Jaccard)", "", "", f"{choice.tokens:.1%}"
    times = (f"{speed.fp32_ms:.1f} ms", f"{speed.int8_ms:.1f} ms", f"{speed.ratio:.2f}")
    yield f"forward of {speed.images} images, " + ("slow INT8 products" if speed.slow_products else "here"), *times
    sizes = (f"{report.client_bytes / 1e6:.1f} MB", f"{report.int8_bytes / 1e6:.1f} MB")
    yield "file", *sizes, f"{report.int8_bytes / report.client_bytes:.2f}"
    yield "zero points", "", ", ".join(map(str, report.zero_points)), ""
    yield "fits TensorRT", "", ", ".join(report.tensorrt) or "none", ""
