"""The plot of a measured link: rates above, round trips below, over time. Imports matplotlib when it draws."""

from __future__ import annotations

import io
import itertools
from typing import TYPE_CHECKING

from adc_edge.calibration.link.report import LinkMoment, LinkReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_UP, _DOWN, _GREY = "#0072b2", "#d55e00", "#777777"
_LOADS = {"idle": "no load", "up": "load up", "down": "load down", "both": "both loads"}


def draw_link(report: LinkReport, form: str) -> bytes:
    """Return the bytes of a picture; ``form`` is png or svg."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    rate, trip = figure.subplots(2, 1, sharex=True)
    stages = [list(group) for _, group in itertools.groupby(report.series, key=lambda moment: moment.load)]
    for number, stage in enumerate(stages):
        _stage(rate, trip, stage, labelled=number == len(stages) - 1)
    rate.set_ylabel("rate (Mbit/s)")
    rate.legend(frameon=False, fontsize=9, loc="lower left")
    trip.set(ylabel="round trip (ms)", xlabel="time (s)")
    for axes in (rate, trip):
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
    figure.suptitle(f"link to {report.trainer}, {report.time}", fontsize=11)
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "adc-edge"}):
        figure.savefig(file, format=form, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()


def _stage(rate: Axes, trip: Axes, stage: list[LinkMoment], labelled: bool) -> None:
    """Draw one stage, shaded and named."""
    times = [moment.t for moment in stage]
    for axes in (rate, trip):
        axes.axvspan(times[0], times[-1], color="#f5f5f5", linewidth=0)
    above = rate.get_xaxis_transform()
    middle = (times[0] + times[-1]) / 2
    rate.text(middle, 1.01, _LOADS[stage[0].load], transform=above, ha="center", va="bottom", fontsize=9, color=_GREY)
    for colour, name, values in (
        (_UP, "up", [moment.up_mbit_s for moment in stage]),
        (_DOWN, "down", [moment.down_mbit_s for moment in stage]),
    ):
        if any(value is not None for value in values):
            drawn = [float("nan") if value is None else value for value in values]
            rate.plot(times, drawn, color=colour, linewidth=1.5, label=name if labelled else None)
    trips = [float("nan") if moment.rtt_ms is None else moment.rtt_ms for moment in stage]
    trip.plot(times, trips, color=_GREY, marker=".", markersize=3, linewidth=1)
