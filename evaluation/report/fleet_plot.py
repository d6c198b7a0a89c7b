"""The plot of fleets: accuracy against the images that all devices have trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.figure import Figure

from adc_edge.evaluation.report.plots import ACCURACY, CURVES_SIZE, DPI, add_legend, clear_frame
from adc_edge.evaluation.report.views import learning_curve
from adc_edge.evaluation.study.records import Run

_COLOURS = {"parallel": "#0072B2", "averaged": "#D55E00", "sequential": "#009E73", "frozen": "#CC79A7"}
_DASHES = ("-", "--", ":", "-.")
_LEGEND = 3.4  # inches


def fleets_figure(runs: Sequence[Run]) -> Figure:
    """Draw a line for each setting and fleet: the mean over seeds. Colours are modes, dashes partitions."""
    result = Figure(figsize=(CURVES_SIZE[0] + _LEGEND, CURVES_SIZE[1]), dpi=DPI, layout="constrained")
    axes = result.subplots()
    clear_frame(axes)
    axes.set(xlabel="epochs of all images", ylabel=ACCURACY, title="Fleets: all devices together")
    partitions = list(dict.fromkeys(run.fleet.partition for run in runs if run.fleet))
    for label, same in _cases(runs):
        curve, fleet = learning_curve(same), same[0].fleet
        colour = "#222222" if fleet is None else _COLOURS[fleet.mode]
        dashes = "-" if fleet is None else _DASHES[partitions.index(fleet.partition) % len(_DASHES)]
        axes.plot(curve["epoch"], curve["accuracy"], dashes, color=colour, marker="o", markersize=3, label=label)
    add_legend(result, axes.get_legend_handles_labels()[0], loc="outside right upper")
    return result


def _cases(runs: Sequence[Run]) -> Iterator[tuple[str, list[Run]]]:
    """Runs that differ by their seed alone, with their name."""
    settings = {run.setting for run in runs}
    for setting, fleet in dict.fromkeys((run.setting, run.fleet) for run in runs):
        who = "one device" if fleet is None else str(fleet)
        label = who if len(settings) == 1 else f"{setting}: {who}"
        yield label, [run for run in runs if (run.setting, run.fleet) == (setting, fleet)]
