"""Accuracy against reconstructed images at fixed shares of the bytes: docs/results/privacy-front.json and its figure.

    python benchmarks/privacy_front.py

A point is a setting whose accuracy and whose SSIM (of the reconstruction attack) were both measured on one task:
CIFAR-10, 4,000 images, 64 px, DeiT-Tiny, split 3, B=128, accuracy after 4 epochs. Nothing is interpolated.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import msgspec
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from results_records import RESULTS, BudgetsTable, CasesTable, LeaksTable, read_records, steps_table
from results_tables import spread

from adc_edge.files import json_bytes, write_atomic
from adc_edge.markdown import markdown_table
from adc_edge.planning.accuracy.frontier import read_setting

FRONT = RESULTS / "privacy-front.json"
FIGURE = RESULTS.parent / "privacy-front.svg"
LIMITS = (1.0, 2.0, 10.0, 100.0)  # % of the uncompressed bytes
_FITS = 1.05  # 1.03 % counts as 1 %, as in the tables
_SHARE_OF_BUDGET = 10.0  # the level of a run at a tenth of the bytes: after 4 epochs
_PRESETS = {"private": "adc@0.5x1/pca1:pca0.25"}  # of `adc-edge export`
_HALF_TOKENS = "adc@1x0.5/pca1:pca0.25"  # shown beside the preset
_LOOKS = {  # colour and marker by what is left out of a message
    "all images, all tokens": ("#D55E00", "o"),
    "fewer tokens": ("#0072B2", "s"),
    "images merged": ("#009E73", "^"),
    "images merged, fewer tokens": ("#56B4E9", "D"),
    "Top-K": ("#CC79A7", "v"),
}


class FrontPoint(msgspec.Struct, frozen=True):
    """A setting with its accuracy in % and the SSIM of its reconstructions.

    ``limits`` are the shares of bytes at which no measured setting is as accurate and reveals as little; ``front``
    tells whether the smallest one that the setting fits is among them.
    """

    setting: str
    share: float
    accuracy: float
    sem: float | None
    seeds: int
    accuracy_from: str
    ssim: float
    ssim_seeds: int
    ssim_from: str
    limits: list[float] = []
    front: bool = False

    def is_beaten_by(self, other: FrontPoint) -> bool:
        """Whether ``other`` is as good in both and better in one."""
        mine, theirs = (-self.accuracy, self.ssim), (-other.accuracy, other.ssim)
        return mine != theirs and all(a >= b for a, b in zip(mine, theirs, strict=True))


class Front(msgspec.Struct, frozen=True):
    """The file: the measured settings of one task."""

    format: int
    task: str
    made_by: str
    ssim_of_mean_image: float
    presets: dict[str, str]
    points: list[FrontPoint]


def measured(directory: Path = RESULTS) -> Front:
    """Join accuracy and SSIM of the settings that have both."""
    leaks = {}
    table = read_records("privacy", directory).tables["leaks"]
    assert isinstance(table, LeaksTable)
    for row in table.rows:
        leaks[way_up(row.setting)] = row
    mean = next(leaks.pop(name) for name in list(leaks) if name.startswith("the mean image"))
    points = [
        FrontPoint(setting, share, accuracy, sem, seeds, source, leak.ssim, leak.seeds, "privacy.json")
        for setting, share, accuracy, sem, seeds, source in accuracies(directory)
        if (leak := leaks.get(way_up(setting))) is not None
    ]
    task = "CIFAR-10, 4,000 images, 64 px, DeiT-Tiny, split 3, B=128; accuracy after 4 epochs, an inverter of 20 epochs"
    return Front(1, task, "python benchmarks/privacy_front.py", mean.ssim, _PRESETS, judged(points))


def way_up(setting: str) -> str:
    """The part of a setting that an attacker sees: method, ratio and precision of activations."""
    method, _, precisions = setting.partition("/")
    if not precisions and (read := read_setting(setting)) is not None and read[0].xi == 1.0:
        method, precisions = "none", read[1]
    up = precisions.partition(":")[0]
    return method if up in ("", "fp32") else f"{method}/{up}"


def accuracies(directory: Path) -> Iterable[tuple[str, float, float, float | None, int, str]]:
    """Setting, share, accuracy, standard error, seeds and file of each measurement after 4 epochs."""
    ablations = read_records("ablations", directory).tables
    for name in ("about-1", "about-2", "about-5"):
        table = ablations[name]
        assert isinstance(table, CasesTable)
        for row in table.rows:
            sem = None if row.deviation is None else round(row.deviation / row.seeds**0.5, 2)
            yield row.name, row.share, row.accuracy, sem, row.seeds, "ablations.json"
    long = read_records("equal-bytes", directory).tables["long"]
    assert isinstance(long, BudgetsTable)
    for run in long.rows:
        share = 100.0 if run.setting == "none" else _SHARE_OF_BUDGET
        level = run.levels[long.budgets.index(share)]
        if level is not None and (run.setting == "none" or run.setting.endswith("@0.1")):
            sem = None if level.deviation is None else round(level.deviation / run.seeds**0.5, 2)
            yield run.setting, share, level.accuracy, sem, run.seeds, "equal-bytes.json"


def judged(points: Sequence[FrontPoint]) -> list[FrontPoint]:
    """The points with the limits at which they are on the front, ordered by share."""
    result = []
    for point in sorted(points, key=lambda one: (one.share, one.ssim)):
        fitting = [limit for limit in LIMITS if fits(point, limit)]
        limits = [
            limit for limit in fitting if not any(point.is_beaten_by(other) for other in points if fits(other, limit))
        ]
        result.append(msgspec.structs.replace(point, limits=limits, front=fitting[0] in limits))
    return result


def fits(point: FrontPoint, limit: float) -> bool:
    return point.share <= limit * _FITS


def front_table(directory: Path = RESULTS) -> str:
    """The table of the points, from the committed file."""
    front = msgspec.json.decode((directory / FRONT.name).read_bytes(), type=Front)
    header = ("setting", "share %", "accuracy %", "seeds", "SSIM †", "on the front at")
    rows = [
        (
            one.setting,
            f"{one.share:.3g}",
            spread(one.accuracy, one.sem),
            str(one.seeds),
            f"{one.ssim:.3f}",
            ", ".join(f"{limit:g} %" for limit in one.limits) or "–",
        )
        for one in front.points
    ]
    words = f"accuracy: mean ± standard error. †: one seed; the mean image has {front.ssim_of_mean_image:.3f}."
    return f"{markdown_table(header, rows, 'lr')}\n\n{words}"


def preset_table(directory: Path = RESULTS) -> str:
    """The table of the preset ``private`` beside the default, uncompressed training and half of the tokens."""
    front = msgspec.json.decode((directory / FRONT.name).read_bytes(), type=Front)
    large = {one.setting: one for one in steps_table("cifar10-224px", directory).rows}
    names = {"uncompressed": "none", "the default": "none/pca1:pca0.25", "`private`": front.presets["private"]}
    names["half of the tokens"] = _HALF_TOKENS
    rows = []
    for words, setting in names.items():
        here, there = next(one for one in front.points if one.setting == setting), large[setting]
        sizes = [f"{spread(one.accuracy, one.sem)} ({one.seeds})" for one in (here, there)]
        rows.append((words, f"`{setting}`", f"{there.share:.3g}", f"{here.ssim:.3f}", *sizes))
    header = ("", "setting", "share % at 224 px", "SSIM at 64 px †", "accuracy % at 64 px", "accuracy % at 224 px")
    words = f"accuracy: mean ± standard error (seeds). †: one seed; the mean image has {front.ssim_of_mean_image:.3f}."
    return f"{markdown_table(header, rows, 'llr')}\n\n{words}"


def kind(setting: str) -> str:
    """The way in which a setting sends less."""
    read = read_setting(setting)
    if read is None:
        return "Top-K"
    ratio = read[0]
    if ratio.xi == 1.0 or ratio.batch == ratio.token == 1.0:
        return "all images, all tokens"
    if ratio.batch == 1.0:
        return "fewer tokens"
    return "images merged" if ratio.token == 1.0 else "images merged, fewer tokens"


def figure(front: Front) -> Figure:
    """A panel for each share of the bytes; filled points on a line are the front."""
    shown = LIMITS[:-1]
    result = Figure(figsize=(12.5, 4.8), layout="constrained")
    for axes, limit in zip(result.subplots(1, len(shown), sharex=True, sharey=True), shown, strict=True):
        _draw(axes, front, limit)
    used = {kind(point.setting) for point in front.points}
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=name)
        for name, (colour, marker) in _LOOKS.items()
        if name in used
    ]
    handles.append(Line2D([], [], color="#555555", linewidth=1.2, label="Pareto front"))
    result.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return result


def _draw(axes: Axes, front: Front, limit: float) -> None:
    points = [point for point in front.points if fits(point, limit)]
    best = sorted((point for point in points if limit in point.limits), key=lambda point: point.ssim)
    axes.plot([p.ssim for p in best], [p.accuracy for p in best], color="#555555", linewidth=1.2, zorder=1)
    for point in points:
        colour, marker = _LOOKS[kind(point.setting)]
        face = colour if point in best else "white"
        axes.errorbar(
            point.ssim, point.accuracy, yerr=point.sem, fmt=marker, color=colour, mfc=face, ms=7, capsize=2, lw=1
        )
        left = point.ssim > 0.45 or kind(point.setting).startswith("images merged,")
        place, side = ((-7, -4), "right") if left else ((7, -4), "left")
        if point.ssim > 0.55:  # below, where the point to the left has its own label beside it
            place, side = (4, -14), "center"
        axes.annotate(
            point.setting, (point.ssim, point.accuracy), place, textcoords="offset points", fontsize=7.5, ha=side
        )
    whole = next(point for point in front.points if point.setting == "none")
    axes.axhline(whole.accuracy, color="#8a8a8a", linewidth=1, linestyle="--", zorder=0)
    axes.annotate(f"uncompressed: {whole.accuracy:.1f} %, SSIM {whole.ssim:.3f}", (0.98, whole.accuracy), (0, 3),
                  axes.get_yaxis_transform(), "offset points", fontsize=8, color="#555555", ha="right")  # fmt: skip
    axes.axvline(front.ssim_of_mean_image, color="#8a8a8a", linewidth=1, linestyle=":", zorder=0)
    axes.annotate("mean image", (front.ssim_of_mean_image, 0.6), (3, 0), axes.get_xaxis_transform(), "offset points",
                  fontsize=8, color="#555555", rotation=90, va="bottom")  # fmt: skip
    axes.set(title=f"up to {limit:g} % of the bytes", xlabel="SSIM of the attack (lower: more private)")
    axes.set_xlim(0.16, 0.63)
    axes.set_ylim(15, 68)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if limit == LIMITS[0]:
        axes.set_ylabel("test accuracy (%)")


def drawn(front: Front) -> bytes:
    """The SVG file, with the digest of the values that it shows as the description in its metadata."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "adc-edge"}):
        figure(front).savefig(file, format="svg", metadata={"Date": None, "Description": digest(front)})
    return file.getvalue()


def digest(front: Front) -> str:
    """Name of the values in a figure: the SHA-256 of the file of records."""
    return f"{FRONT.name} sha256:{hashlib.sha256(json_bytes(front)).hexdigest()}"


if __name__ == "__main__":
    found = measured()
    write_atomic(FRONT, json_bytes(found))
    write_atomic(FIGURE, drawn(found))
