"""The front as a picture: accuracy against the time and the bytes of a step."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from adc_edge.calibration.plan.make import Made
from adc_edge.planning.choice import Candidate

_SIZE, _DPI = (10.0, 5.0), 130
_LOWEST = -10.0  # points
_FAR = 10.0
_FRONT, _CHOSEN, _GREY, _INK = "#0072B2", "#D55E00", "#8a8a8a", "#222222"  # the colour-blind can tell them apart


def plan_picture(made: Made, kind: str) -> bytes:
    """Return the picture as the bytes of a PNG or SVG file (``kind``)."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "adc-edge"}):
        _figure(made).savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else {})
    return file.getvalue()


def _figure(made: Made) -> Figure:
    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw(left, made, "seconds", lambda one: one.prediction.seconds)
    _draw(right, made, "bytes", lambda one: float(one.bytes))
    left.set(
        xlabel="time of a step" if made.compute_known else "time of a step, of the link alone",
        ylabel="accuracy (points above uncompressed training)",
    )
    right.set(xlabel="bytes of a step, both ways")
    _scale(left, [one.prediction.seconds for one in made.front], "s")
    _scale(right, [one.bytes for one in made.front], "B")
    _cut_below(left, made)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _scale(axes: Axes, values: Sequence[float], unit: str) -> None:
    """Make the axis logarithmic where the values are far apart, or else begin at 0."""
    if max(values) > _FAR * min(values) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(unit))


def _cut_below(axes: Axes, made: Made) -> None:
    """Leave out what is far less accurate than the chosen setting, and say how many settings that are."""
    points = [one.accuracy.value for one in made.front if one.accuracy is not None]
    chosen = made.choice.candidate.accuracy
    lowest = min(_LOWEST, chosen.value if chosen is not None else 0.0) * 1.2
    if left_out := sum(value < lowest for value in points):
        axes.set_ylim(bottom=lowest)
        axes.text(0.02, 0.02, f"less accurate, not shown: {left_out}", transform=axes.transAxes, color=_GREY)


def _draw(axes: Axes, made: Made, quantity: str, place: Callable[[Candidate], float]) -> None:
    """Draw the front over time or bytes, the chosen setting and the limits."""
    measured = [(place(one), one.accuracy) for one in made.front if one.accuracy is not None]
    places, points = [at for at, _ in measured], [found.value for _, found in measured]
    spreads = [found.spread or 0.0 for _, found in measured]
    axes.errorbar(
        places, points, spreads, fmt="o", color=_FRONT, ecolor=_GREY, elinewidth=0.7, markersize=5, label="not beaten"
    )
    chosen = made.choice.candidate
    if chosen.accuracy is not None:
        label = "chosen" if made.choice.met else "nearest"
        axes.plot([place(chosen)], [chosen.accuracy.value], "*", color=_CHOSEN, markersize=17, label=label)
    axes.axhline(0.0, color=_INK, linewidth=0.8, linestyle="--", label="uncompressed training")
    for number, goal in enumerate(one for one in made.goals if one.quantity in (quantity, "accuracy")):
        line = axes.axhline if goal.quantity == "accuracy" else axes.axvline
        line(goal.limit, color=_GREY, linestyle=":", label="" if number else "limit")
    axes.spines[["top", "right"]].set_visible(False)
