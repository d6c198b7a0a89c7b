"""Plots of the views: accuracy against bytes at equal steps and along a run; uncompressed learning curves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, LogLocator, NullFormatter

from adc_edge.evaluation.report.groups import COMPONENTS, FROZEN, LOW_BITS, OURS, PAPER, RIVALS, UNCOMPRESSED
from adc_edge.evaluation.report.judging import full_bytes
from adc_edge.evaluation.report.views import Views, learning_curve, representatives
from adc_edge.evaluation.study.records import Run, Study
from adc_edge.evaluation.totals.lines import add_picture_lines

DPI = 150
SIZE, CURVES_SIZE, PANEL_SIZE = (12.0, 5.4), (7.0, 4.4), (5.4, 4.0)  # inches
ACCURACY = "test accuracy (%)"
SHARE = "bytes of a step, both ways (% of uncompressed)"
BYTES = "bytes sent since the start, both ways"
_GREY, _INK = "#8a8a8a", "#222222"
_TEXT = 9.0
LEGEND_LINE = 0.2  # inches


class Style(NamedTuple):
    """Colour, marker and line of a group; the colour-blind can tell the colours apart (Okabe-Ito, Tol)."""

    colour: str
    marker: str
    dashed: bool = False


_RIVAL_STYLES = {
    "Top-K": Style("#CC79A7", "v"),
    "RandTopK": Style("#E69F00", "P"),
    "C3-SL": Style("#332288", "X"),
    "BottleNet++": Style("#882255", "*"),
}
_SIZED_STYLES = {
    "AQ-SGD": Style("#AA4499", "h"),
    "TAH-Quant": Style("#117733", "p"),
    "low rank (NSC-SL)": Style("#88CCEE", "H"),
    "FedLite": Style("#DDCC77", "d"),
    "TSFLora": Style("#661100", ">"),
}
STYLES = {
    OURS: Style("#D55E00", "o"),
    FROZEN: Style("#D55E00", "8", dashed=True),
    PAPER: Style("#0072B2", "s"),
    "ADC" + LOW_BITS: Style("#56B4E9", "D"),
    "ADC, ablations": Style("#7F7F7F", "<"),
    "plain quantization": Style("#009E73", "^"),
    **{name: _RIVAL_STYLES[name] for name in RIVALS.values()},
    **{name + LOW_BITS: _RIVAL_STYLES[name]._replace(dashed=True) for name in RIVALS.values()},
    **_SIZED_STYLES,
    **{name + COMPONENTS: style._replace(dashed=True) for name, style in _SIZED_STYLES.items()},
    UNCOMPRESSED: Style(_INK, ".", dashed=True),
}


def figure(study: Study, runs: Sequence[Run], seen: Views, budget: float) -> Figure:
    """Two panels. Left: every setting after equal steps. Right: learning curves, one setting of each group.

    Args:
        study: the task.
        runs: the finished runs.
        seen: views of the runs.
        budget: a share of the uncompressed bytes; the right panel shows each group's best setting within it.
    """
    shown = representatives(seen, budget)
    result = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    left, right = result.subplots(1, 2, sharey=True)
    _draw_steps(left, study, seen)
    _draw_curves(right, study, runs, seen, budget)
    right.set_ylabel("")
    handles = [legend_line(group, group if group == UNCOMPRESSED else f"{group}\n{shown[group]}") for group in shown]
    title = "group, and its setting on the right"
    add_legend(result, handles, loc="outside right upper", title=title, title_fontsize=_TEXT, labelspacing=0.9)
    return result


def panels(study: Study, runs: Sequence[Run], seen: Views, budget: float) -> tuple[Figure, Figure]:
    """Both panels of ``figure`` as pictures of their own, with the legend below: a narrow screen shows them in turn."""
    shown = representatives(seen, budget)
    labels = [[group for group in shown if group != UNCOMPRESSED], [f"{group}: {shown[group]}" for group in shown]]
    heights = [PANEL_SIZE[1] + LEGEND_LINE * len(names) for names in labels]
    results = [Figure((PANEL_SIZE[0], height), layout="constrained") for height in heights]
    _draw_steps(results[0].subplots(), study, seen)
    _draw_curves(results[1].subplots(), study, runs, seen, budget)
    for result, names in zip(results, labels, strict=True):
        add_legend(result, list(map(legend_line, shown, names)), loc="outside lower left")
    return results[0], results[1]


def curves_figure(runs: Sequence[Run]) -> Figure:
    """Learning curves of the uncompressed runs over epochs: thin for each seed, thick for their mean."""
    chosen = [run for run in runs if run.setting == "none"]
    result = Figure(figsize=CURVES_SIZE, dpi=DPI, layout="constrained")
    axes = result.subplots()
    clear_frame(axes)
    axes.set(xlabel="epoch", ylabel=ACCURACY, title=_flattening(chosen))
    if not chosen:
        return result
    for run in chosen:
        seed = learning_curve([run])
        axes.plot(seed["epoch"], seed["accuracy"], color=_GREY, linewidth=0.9, label=f"seed {run.seed}")
    mean = learning_curve(chosen)
    axes.plot(mean["epoch"], mean["accuracy"], color=_INK, linewidth=2, marker="o", markersize=4, label="mean")
    last = mean.iloc[-1]
    place = (float(last["epoch"]), float(last["accuracy"]))
    axes.annotate(f"{place[1]:.1%}", place, (6, 0), textcoords="offset points", va="center", fontsize=_TEXT)
    axes.margins(x=0.08)
    return result


def png(picture: Figure) -> bytes:
    """The bytes of a PNG file."""
    file = io.BytesIO()
    picture.savefig(file, format="png")
    return file.getvalue()


def svg(picture: Figure) -> bytes:
    """The bytes of an SVG file; equal pictures give equal bytes."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "adc-edge"}):
        picture.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def frontier(settings: pd.DataFrame, size: str = "share") -> pd.DataFrame:
    """Select the settings of a group that no other one matches with fewer bytes, ordered by ``size``."""
    ordered = settings.sort_values([size, "accuracy"], ascending=[True, False])
    return ordered[ordered["accuracy"] > ordered["accuracy"].cummax().shift(fill_value=-1.0)]


def clear_frame(axes: Axes) -> None:
    """Set light horizontal lines, no frame, and accuracy in %."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(color=_GREY, labelsize=_TEXT, labelleft=True)
    axes.title.set_fontsize(11)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))


def logarithmic(axes: Axes, formatter: Formatter | None = None) -> None:
    """Set a logarithmic x axis; without a formatter it shows shares in %."""
    formatter = formatter or FuncFormatter(lambda value, _: f"{100 * value:.3g}")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=10))
    axes.xaxis.set_major_formatter(formatter)
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_steps(axes: Axes, study: Study, seen: Views) -> None:
    """Draw every setting after equal steps."""
    clear_frame(axes)
    axes.set(xlabel=SHARE, ylabel=ACCURACY, title=f"After {study.epochs:g} epochs of every method")
    logarithmic(axes)
    axes.set_xlim(0.8 * seen.steps["share"].min(), 1.2)
    draw_groups(axes, seen.steps, "share")
    add_picture_lines(axes, seen.pictures)


def draw_groups(axes: Axes, every: pd.DataFrame, size: str) -> None:
    """Draw a point for each setting, and a line through the best of each group.

    Args:
        axes: a plot with a logarithmic x axis.
        every: one row for each setting, with group, accuracy, std and ``size``.
        size: the column along the x axis: bytes, or a share of them.
    """
    for group, style in STYLES.items():
        settings = every[every["group"] == group]
        if settings.empty:
            continue
        if group == UNCOMPRESSED:
            level = float(settings["accuracy"].iloc[0])
            axes.axhline(level, color=style.colour, linewidth=1.2, linestyle="--", zorder=1)
            axes.annotate(
                f"uncompressed {level:.1%}", (0, level), (2, 4), axes.get_yaxis_transform(), "offset points",
                fontsize=_TEXT, color=style.colour,
            )  # fmt: skip
            continue
        best = frontier(settings, size)
        rest = settings.drop(best.index)
        axes.plot(rest[size], rest["accuracy"], style.marker, color=style.colour, markersize=4, alpha=0.35)
        axes.errorbar(
            best[size],
            best["accuracy"],
            yerr=best["std"].fillna(0.0),
            **_look(group),
            elinewidth=1,
            capsize=2,
            label=group,
        )


def _draw_curves(axes: Axes, study: Study, runs: Sequence[Run], seen: Views, budget: float) -> None:
    """Draw means over seeds with a band of one standard deviation each way, and a dotted line at the budget."""
    clear_frame(axes)
    title = f"Along a run: each group's best at {100 * budget:.3g} % (dotted)"
    axes.set(xlabel=BYTES, ylabel=ACCURACY, title=title)
    logarithmic(axes, EngFormatter(unit="B"))
    for group, setting in representatives(seen, budget).items():
        style = STYLES[group]
        curve = learning_curve([run for run in runs if run.setting == setting])
        std = curve["std"].fillna(0.0)
        low, high = curve["accuracy"] - std, curve["accuracy"] + std
        axes.fill_between(curve["bytes"], low, high, color=style.colour, alpha=0.15, linewidth=0)
        axes.plot(
            curve["bytes"],
            curve["accuracy"],
            **_look(group, markersize=4),
            markevery=max(1, len(curve) // 8),
            label=f"{group}: {setting}",
        )
    whole = full_bytes(study, runs[0])
    axes.axvline(budget * whole, color=_GREY, linewidth=1, linestyle=":", zorder=1)
    add_picture_lines(axes, {name: share * whole for name, share in seen.pictures.items()})


def add_legend(picture: Figure, handles: list[Artist], **changes: Any) -> None:
    """Add a legend without a frame; ``changes`` are other arguments of `Figure.legend`."""
    picture.legend(handles=handles, frameon=False, fontsize=_TEXT, alignment="left", **changes)


def legend_line(group: str, label: str) -> Artist:
    """Return the line of a group for a legend."""
    return Line2D([], [], **_look(group), label=label)


def _look(group: str, markersize: int = 6) -> dict[str, Any]:
    """Properties of a group's line; adc-edge's is the thickest, in front of the others."""
    colour, marker, dashed = STYLES[group]
    width, order = (2.4, 4) if group == OURS else (1.4, 3)
    return {
        "color": colour,
        "marker": marker,
        "markersize": markersize,
        "linestyle": "--" if dashed else "-",
        "linewidth": width,
        "zorder": order,
    }


def _flattening(uncompressed: Sequence[Run]) -> str:
    """The title: accuracy gained in the last quarter of the epochs."""
    if not uncompressed:
        return "No uncompressed run"
    curve = learning_curve(uncompressed)
    before = curve[curve["epoch"] <= 0.75 * curve["epoch"].max()]
    if before.empty:
        return "Uncompressed"
    gain = 100 * (curve["accuracy"].iloc[-1] - before["accuracy"].iloc[-1])
    return f"Uncompressed: the last quarter of the epochs brings {gain:+.1f} points"
