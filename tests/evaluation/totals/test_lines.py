"""The lines of the images sent once in the plots of bytes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adc_edge.evaluation.report.plots import figure
from adc_edge.evaluation.report.views import views
from adc_edge.evaluation.totals.lines import joined_names
from adc_edge.evaluation.totals.plot import totals_figure
from tests.evaluation.report.test_views import STUDY
from tests.evaluation.totals.test_frames import BESIDE, EVALUATION, RUNS

SEEN = views(STUDY, RUNS, (0.05, 1.0), BESIDE)
NAMES = ["images once: JPEG q75", "images once: JPEG q90", "images once: own files"]


def upright(axes: Axes) -> list[float]:
    """Places of the lines of the images."""
    xs = [np.asarray(line.get_xdata(), float) for line in axes.lines if line.get_color() == "#6b4c9a"]
    return sorted(float(x[0]) for x in xs)


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_text().startswith("images once")]


def test_both_panels_have_a_named_line_at_each_kind_of_picture() -> None:
    left, right = figure(STUDY, RUNS, SEEN, 0.05).axes
    assert upright(left) == pytest.approx([0.1, 0.225, 0.75])
    assert upright(right) == pytest.approx([4_000, 9_000, 30_000])
    assert texts(left) == texts(right) == NAMES
    assert left.get_xlim()[0] < 0.1


def test_the_plot_of_whole_trainings_has_every_setting_and_the_lines_of_all_images() -> None:
    axes = totals_figure(STUDY, SEEN).axes[0]
    assert upright(axes) == pytest.approx([6_000, 13_500, 45_000])
    assert texts(axes) == NAMES
    handles, labels = axes.get_legend_handles_labels()
    points = np.asarray(dict(zip(labels, handles, strict=True))["adc-edge"][0].get_xydata())
    assert points == pytest.approx(np.array([(8_000 + 4 * EVALUATION + 5_000, 0.865)]))
    assert "first weights" in axes.get_xlabel()


def test_the_axis_holds_lines_far_from_all_settings_and_no_label_leaves_the_picture() -> None:
    far = SEEN._replace(pictures={"own files": 30.0, "JPEG q75": 0.0004})
    result = figure(STUDY, RUNS, far, 0.05)
    FigureCanvasAgg(result).draw()  # type: ignore[no-untyped-call]
    left = result.axes[0]
    assert left.get_xlim()[0] < 0.0004 < 30.0 < left.get_xlim()[1]
    frame = left.get_window_extent()
    for text in left.texts:
        box = text.get_window_extent()
        assert frame.x0 <= box.x0 < box.x1 <= frame.x1
        assert frame.y0 <= box.y0 < box.y1 <= frame.y1


def test_labels_never_overlap_and_lines_that_are_close_share_one() -> None:
    assert joined_names({"a": 10.0, "b": 10.5, "c": 100.0}, 1.0, 1000.0) == [
        (10.0, "images once: a, b"),
        (100.0, "images once: c"),
    ]
    result = figure(STUDY, RUNS, SEEN, 0.05)
    FigureCanvasAgg(result).draw()  # type: ignore[no-untyped-call]
    for axes in result.axes:
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text() in NAMES]
        assert all(one.x1 <= other.x0 + 1 for one, other in itertools.pairwise(boxes))


def test_without_pictures_there_is_no_line() -> None:
    plain: Figure = figure(STUDY, RUNS, views(STUDY, RUNS, (0.05,)), 0.05)
    assert [upright(axes) for axes in plain.axes] == [[], []]
