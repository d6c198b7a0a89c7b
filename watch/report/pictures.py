"""The main charts of a report as PNG, for a paper."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MultipleLocator, PercentFormatter

from adc_edge.files import write_atomic
from adc_edge.watch.reading.series import PHASE_NAMES
from adc_edge.watch.reading.state import WatchedRun
from adc_edge.watch.reading.totals import SPENDINGS
from adc_edge.watch.report.curves import POINTS, run_values
from adc_edge.watch.report.words import size_text, time_text

_DPI = 300
_SIZE = (5.2, 3.4)  # inches: a column and a half of a paper
_COLOURS = "#0b5cad #c2410c #1b7a43 #9a2f86 #8a6100 #00737d #b3123b #4f46c8 #4d6b00 #5f5f5f".split()
_PHASE_COLOURS = "#3b82c4 #7ab8e0 #e08a3c #b95f13 #57a773 #a1cf9c #a86bb8 #d3b0dc #8f8f8f #c9a227 #c76b8f".split()
_TRAINER = {"cloud": "trainer", "cloud_codec": "trainer's codec", "cloud_wait": "waiting at the trainer"}
_MARKS = {"outage": "#c62828", "plan": "#7a4fbf", "resume": "#1b6b35"}
_AXES = {"step": "steps", "bytes": "bytes sent, both ways", "elapsed": "wall time"}
_TIME_STEPS = (0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400)
_STYLE: Any = {
    "font.size": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.parse_math": False,  # a run's name may hold $ or an underscore
}


def draw(runs: Mapping[str, WatchedRun], where: Path) -> list[Path]:
    """Write the charts of runs, by their labels, into a directory, and return the files."""
    matplotlib.use("agg")
    values = {label: run_values(run, label, points=POINTS, few=POINTS) for label, run in runs.items()}
    pictures: dict[str, Figure] = {}
    with matplotlib.rc_context(_STYLE):
        for axis in _AXES:
            for name in ("loss", "accuracy"):
                pictures[f"{name}-by-{'time' if axis == 'elapsed' else axis}"] = _curves(values, name, axis)
        pictures["bytes"] = _bytes(values)
        for number, label in enumerate(runs):
            end = f"-{number + 1}-{_file_name(label)}" if len(runs) > 1 else ""
            if len(values[label]["phases"]) > 1:
                pictures[f"phases{end}"] = phases_figure(values[label])
            if len(values[label]["link"]) > 1:
                pictures[f"link{end}"] = _link(values[label])
        return [_write(where / f"{name}.png", figure) for name, figure in pictures.items()]


def _write(path: Path, figure: Figure) -> Path:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DPI)
    write_atomic(path, data.getvalue())
    return path


def _figure(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


def _curves(values: Mapping[str, Any], name: str, axis: str) -> Figure:
    title = "Training loss" if name == "loss" else "Accuracy: test (solid), training (dotted)"
    figure, axes = _figure(title, _AXES[axis], name)
    for (label, run), colour in zip(values.items(), _COLOURS * len(values), strict=False):
        curves, tests = run["curves"], run["tests"]
        if axis not in curves or name not in curves:
            continue
        x, dotted = curves[axis], name == "accuracy"
        axes.plot(x, _gaps(curves[name]), color=colour, lw=0.8 if dotted else 1.2, ls=":" if dotted else "-")
        axes.plot([], [], color=colour, lw=1.2, label=label)  # one entry for each run
        if f"{name}_low" in curves:
            axes.fill_between(
                x, _gaps(curves[f"{name}_low"]), _gaps(curves[f"{name}_high"]), color=colour, alpha=0.15, lw=0
            )
        if name in tests and name == "accuracy":
            axes.plot(tests[axis], _gaps(tests[name]), color=colour, lw=1.2, marker="o", ms=2.5)
        _draw_marks(axes, run["marks"], axis)
    _format(axes.xaxis, axis)
    if name == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if axes.lines:
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def phases_figure(run: Mapping[str, Any]) -> Figure:
    """Return the chart of a step's time by phase, of the values of a run."""
    figure, axes = _figure(f"Time of a step by phase, {run['label']}", "steps", "time")
    known = [phase for phase in PHASE_NAMES if phase in run["phases"]]
    heights = [[value or 0.0 for value in run["phases"][phase]] for phase in known]
    names = [_TRAINER.get(phase, phase) for phase in known]
    axes.stackplot(run["phases"]["step"], heights, labels=names, colors=_PHASE_COLOURS)
    _draw_marks(axes, run["marks"], "step")
    axes.yaxis.set_major_formatter(EngFormatter("s"))
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=4, fontsize=7)
    return figure


def _link(values: Mapping[str, Any]) -> Figure:
    link = values["link"]
    axis = "elapsed" if "elapsed" in link else "step"
    figure, axes = _figure(f"Link, {values['label']}", _AXES[axis], "Mbit/s")
    for name, colour, label in (("up_mbit_s", _COLOURS[0], "up"), ("down_mbit_s", _COLOURS[1], "down")):
        if name in link:
            axes.plot(link[axis], _gaps(link[name]), color=colour, lw=1.2, label=label)
    if "rtt_ms" in link:
        other = axes.twinx()
        other.plot(link[axis], _gaps(link["rtt_ms"]), color=_COLOURS[2], lw=1.0, ls="--", label="round trip")
        other.set(ylabel="ms", ylim=(0, None))
        other.spines["right"].set_visible(True)
    axes.set_ylim(bottom=0)
    _draw_marks(axes, values["marks"], axis)
    _format(axes.xaxis, axis)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _bytes(values: Mapping[str, Any]) -> Figure:
    figure, axes = _figure("Bytes by kind, both ways", "", "")
    labels = list(values)
    left = [0.0] * len(labels)
    for kind, colour in zip(SPENDINGS, _PHASE_COLOURS[::2], strict=False):
        widths = [float(run["bytes"][kind]) for run in values.values()]
        axes.barh(range(len(labels)), widths, left=left, color=colour, label=kind, height=0.6)
        left = [total + width for total, width in zip(left, widths, strict=True)]
    for place, (total, run) in enumerate(zip(left, values.values(), strict=True)):
        share = f", {100 * total / run['uncompressed']:.3g} % of fp32" if run["uncompressed"] else ""
        axes.annotate(f" {size_text(total)}{share}", (total, place), va="center", fontsize=7)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.margins(x=0.3)
    _format(axes.xaxis, "bytes")
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def _draw_marks(axes: Axes, marks: list[dict[str, Any]], axis: str) -> None:
    for mark in marks:
        place, colour = mark[axis], _MARKS[mark["kind"]]
        if place is None:
            continue
        if mark["kind"] == "outage":
            axes.axvspan(
                place, place + (mark["seconds"] or 0 if axis == "elapsed" else 0), color=colour, alpha=0.3, lw=1
            )
        else:
            axes.axvline(place, color=colour, lw=0.8, ls="--" if mark["kind"] == "plan" else "-")


def _format(axis: Any, place: str) -> None:
    texts: dict[str, Callable[[float], str]] = {"bytes": size_text, "elapsed": time_text}
    if place == "elapsed":
        low, high = axis.get_view_interval()
        axis.set_major_locator(MultipleLocator(next((s for s in _TIME_STEPS if high - low < 6 * s), (high - low) / 6)))
    if place in texts:
        axis.set_major_formatter(FuncFormatter(lambda value, _: texts[place](max(value, 0.0))))


def _gaps(column: list[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in column]


def _file_name(label: str) -> str:
    return re.sub(r"[^\w.-]+", "-", label)[:60]
