"""The plot of whole trainings: accuracy after the study's epochs against all bytes, with the images sent once."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from adc_edge.evaluation.report.groups import UNCOMPRESSED
from adc_edge.evaluation.report.plots import (
    ACCURACY,
    DPI,
    LEGEND_LINE,
    PANEL_SIZE,
    add_legend,
    clear_frame,
    draw_groups,
    legend_line,
    logarithmic,
)
from adc_edge.evaluation.report.views import Views
from adc_edge.evaluation.study.records import Study
from adc_edge.evaluation.totals.frames import whole_pictures
from adc_edge.evaluation.totals.lines import add_picture_lines

TOTAL = "bytes of a whole training: steps, evaluations, first weights"


def totals_figure(study: Study, seen: Views) -> Figure:
    """Draw a point for each setting of ``seen.totals``, a line through the best of each group, and the images' lines.

    The lines are at the bytes of the training images and of those evaluated.
    """
    groups = [group for group in dict.fromkeys(seen.totals["group"]) if group != UNCOMPRESSED]
    result = Figure((PANEL_SIZE[0], PANEL_SIZE[1] + LEGEND_LINE * len(groups)), dpi=DPI, layout="constrained")
    axes = result.subplots()
    clear_frame(axes)
    axes.set(xlabel=TOTAL, ylabel=ACCURACY, title=f"Everything sent in {study.epochs:g} epochs")
    logarithmic(axes, EngFormatter(unit="B"))
    totals = seen.totals["bytes_total"]
    axes.set_xlim(0.7 * totals.min(), 1.3 * totals.max())
    draw_groups(axes, seen.totals, "bytes_total")
    add_picture_lines(axes, whole_pictures(seen.beside))
    add_legend(result, [legend_line(group, group) for group in groups], loc="outside lower left")
    return result
