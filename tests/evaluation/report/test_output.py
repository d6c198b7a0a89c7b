"""The result files of a study: they read back, the plots are labelled, and the page loads nothing."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from adc_edge.errors import SettingError
from adc_edge.evaluation.report.groups import METHOD_GROUPS
from adc_edge.evaluation.report.output import write_all
from adc_edge.evaluation.report.page import page
from adc_edge.evaluation.report.plots import (
    CURVES_SIZE,
    DPI,
    SIZE,
    STYLES,
    curves_figure,
    figure,
    frontier,
    panels,
    svg,
)
from adc_edge.evaluation.report.tables import sheets, study_markdown
from adc_edge.evaluation.report.views import by_steps, views
from adc_edge.evaluation.study.records import Guess, Run, Study
from adc_edge.evaluation.totals.beside import Beside
from tests.evaluation.report.test_views import STUDY, a_run, rises, some_runs
from tests.evaluation.totals.test_frames import BESIDE, EVALUATION
from tests.evaluation.totals.test_frames import RUNS as TOTAL_RUNS

BUDGETS = (0.01, 0.05, 1.0)
RUNS = some_runs()
SEEN = views(STUDY, RUNS, BUDGETS)
SHOWN_BY_GROUP = {
    "adc-edge": "none/pca1:pca2",
    "ADC, the paper's": "adc@0.1",
    "plain quantization": "int2",
    "Top-K": "topk@0.05",
    "uncompressed": "none",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("study") / "new"
    files = write_all(STUDY, RUNS, BUDGETS, directory)
    assert sorted(files) == sorted(directory.iterdir())
    return directory


@pytest.fixture(scope="module")
def drawn() -> Figure:
    result = figure(STUDY, RUNS, SEEN, 0.05)
    FigureCanvasAgg(result).draw()  # type: ignore[no-untyped-call]
    return result


def line(axes: Axes, label: str) -> np.ndarray[Any, Any]:
    """x and y of the line that bears a label, ``[points, 2]``."""
    handles, labels = axes.get_legend_handles_labels()
    handle = dict(zip(labels, handles, strict=True))[label]
    found: Any = handle[0] if isinstance(handle, tuple) else handle  # of an error bar: its line
    return np.asarray(found.get_xydata())


def test_the_directory_holds_what_is_promised(written: Path) -> None:
    assert {p.name for p in written.iterdir()} == {
        "results.csv",
        "results.json",
        "results.md",
        "plot.png",
        "curves.png",
        "index.html",
    }


def test_the_tables_are_there_as_markdown(written: Path) -> None:
    assert (written / "results.md").read_text() == study_markdown(sheets(SEEN))


def test_the_csv_reads_back_as_every_point_of_every_run(written: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((written / "results.csv").read_text())))
    expected = [(run, point) for run in RUNS for point in run.curve]
    assert len(rows) == len(expected)
    for row, (run, point) in zip(rows, expected, strict=True):
        assert (row["setting"], int(row["seed"]), float(row["ratio"])) == (run.setting, run.seed, run.ratio)
        for name in ("step", "bytes_up", "bytes_down"):
            assert int(row[name]) == getattr(point, name)
        for name in ("epoch", "accuracy", "loss", "seconds"):
            assert float(row[name]) == getattr(point, name)
        assert row["accuracy_through"] == ""
    taken_apart = {row["setting"]: (row["method"], row["precision"], row["gradient_precision"]) for row in rows}
    assert taken_apart["none/pca1:pca2"] == ("none", "pca1", "pca2")
    assert taken_apart["adc@0.1"] == ("adc", "fp32", "fp32")


def test_the_csv_has_both_accuracies_where_both_were_measured(tmp_path: Path) -> None:
    run = a_run("topk@0.05", (0.1, 0.2, 0.3, 0.4), through=(0.2, 0.3, 0.4, 0.5), share=0.05)
    write_all(STUDY, [run], BUDGETS, tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert [float(row["accuracy_through"]) for row in rows] == [0.2, 0.3, 0.4, 0.5]


def test_the_json_is_strict_and_holds_study_views_and_machine(tmp_path: Path) -> None:
    one_seed = [run for run in RUNS if run.seed == 0]  # whose spread is not a number
    write_all(STUDY, one_seed, BUDGETS, tmp_path)

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    found = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert found["study"]["epochs"] == STUDY.epochs
    assert found["machines"] == [{"processor": "made up"}]
    steps = {row["setting"]: row for row in found["steps"]}
    assert (steps["int8"]["accuracy"], steps["int8"]["std"]) == (0.89, None)
    assert {row["budget"] for row in found["bytes"]} == set(BUDGETS)
    assert {row["view"] for row in found["standings"]} == {"steps", "bytes"}


@pytest.mark.parametrize(("name", "size"), [("plot.png", SIZE), ("curves.png", CURVES_SIZE)])
def test_pictures_are_png_of_their_size_and_not_blank(written: Path, name: str, size: tuple[float, float]) -> None:
    with Image.open(written / name) as image:
        assert image.format == "PNG"
        assert image.size == (round(size[0] * DPI), round(size[1] * DPI))
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 50


def test_axes_say_what_they_show_and_in_which_unit(drawn: Figure) -> None:
    left, right = drawn.axes
    assert left.get_xlabel() == "bytes of a step, both ways (% of uncompressed)"
    assert left.get_ylabel() == "test accuracy (%)"
    assert right.get_xlabel() == "bytes sent since the start, both ways"
    assert all(text.endswith(("B", "kB")) for text in (t.get_text() for t in right.get_xticklabels()) if text)
    assert (left.get_xscale(), right.get_xscale()) == ("log", "log")
    assert left.yaxis.get_major_formatter()(0.5, None) == "50"
    assert "4 epochs" in left.get_title()
    assert "5 %" in right.get_title()


def test_the_left_panel_has_a_line_and_its_spread_for_each_group(drawn: Figure) -> None:
    left = drawn.axes[0]
    assert set(left.get_legend_handles_labels()[1]) == {"adc-edge", "ADC, the paper's", "plain quantization", "Top-K"}
    points = line(left, "plain quantization")
    assert points[:, 0] == pytest.approx([0.05, 0.25])
    assert points[:, 1] == pytest.approx([0.72, 0.88])
    bars: Any = next(c for c in left.containers if c.get_label() == "plain quantization")
    segments = next(part for part in bars.lines[2] if isinstance(part, LineCollection)).get_segments()
    spread = [np.std(finals, ddof=1) for finals in ((0.70, 0.72, 0.74), (0.89, 0.90, 0.85))]
    assert [np.ptp(np.asarray(segment)[:, 1]) / 2 for segment in segments] == pytest.approx(spread)


def test_the_uncompressed_accuracy_is_a_dashed_line_across_and_is_named(drawn: Figure) -> None:
    left = drawn.axes[0]
    dashed = [ln for ln in left.lines if ln.get_linestyle() == "--"]
    assert [float(np.asarray(ln.get_ydata())[0]) for ln in dashed] == pytest.approx([0.9])
    assert "uncompressed 90.0%" in [text.get_text() for text in left.texts]


def test_the_right_panel_has_a_curve_and_a_band_for_the_best_of_each_group(drawn: Figure) -> None:
    right = drawn.axes[1]
    assert right.get_legend_handles_labels()[1] == [f"{group}: {setting}" for group, setting in SHOWN_BY_GROUP.items()]
    points = line(right, "adc-edge: none/pca1:pca2")
    finals = np.array((0.85, 0.88, 0.86))
    assert points[:, 0] == pytest.approx([500, 1000, 1500, 2000])
    assert points[:, 1] == pytest.approx(finals.mean() * np.array([0.5, 0.8, 0.9, 1.0]))
    band = right.collections[0].get_paths()[0].vertices
    at_the_end = np.asarray(band)[np.isclose(np.asarray(band)[:, 0], 2000), 1]
    assert at_the_end.min() == pytest.approx(finals.mean() - finals.std(ddof=1))
    assert at_the_end.max() == pytest.approx(finals.mean() + finals.std(ddof=1))


def test_the_legend_lies_within_the_picture_beside_the_panels_and_names_each_setting(drawn: Figure) -> None:
    legend = drawn.legends[0]
    box, whole = legend.get_window_extent(), drawn.bbox
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1
    assert whole.y0 <= box.y0 < box.y1 <= whole.y1
    assert box.x0 >= drawn.axes[1].get_window_extent().x1
    assert "adc-edge\nnone/pca1:pca2" in [text.get_text() for text in legend.get_texts()]


def test_a_line_goes_through_the_settings_that_no_other_matches_with_fewer_bytes() -> None:
    runs = [
        *rises(0.6, setting="c3sl@0.1", share=0.1),
        *rises(0.59, setting="c3sl@0.2", share=0.2),
        *rises(0.6, setting="c3sl@0.3", share=0.3),
        *rises(0.7, setting="c3sl@0.4", share=0.4),
    ]
    assert list(frontier(by_steps(STUDY, runs))["setting"]) == ["c3sl@0.1", "c3sl@0.4"]


def test_no_two_groups_look_alike() -> None:
    assert set(STYLES) == set(METHOD_GROUPS)
    assert len(set(STYLES.values())) == len(METHOD_GROUPS)


def test_the_uncompressed_curves_say_what_the_last_quarter_still_brought() -> None:
    axes = curves_figure(RUNS).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "test accuracy (%)")
    assert axes.get_title() == "Uncompressed: the last quarter of the epochs brings +9.0 points"  # 81 % to 90 %
    assert line(axes, "mean")[:, 1] == pytest.approx([0.45, 0.72, 0.81, 0.9])
    assert line(axes, "seed 1")[:, 1] == pytest.approx([0.46, 0.736, 0.828, 0.92])


def test_without_an_uncompressed_run_the_pictures_are_drawn_and_say_so() -> None:
    runs = [run for run in RUNS if run.setting != "none"]
    assert curves_figure(runs).axes[0].get_title() == "No uncompressed run"
    left = figure(STUDY, runs, views(STUDY, runs, BUDGETS), 0.05).axes[0]
    assert not [ln for ln in left.lines if ln.get_linestyle() == "--"]


class Page(HTMLParser):
    """The addresses that a page would load, and the texts that it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [f"{tag} {name}={value}" for name, value in attrs if name in {"src", "href", "srcset", "data"}]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(text: str) -> Page:
    found = Page()
    found.feed(text)
    return found


def test_the_page_holds_both_plots_the_tables_the_study_and_the_machine_and_loads_nothing(written: Path) -> None:
    text = (written / "index.html").read_text()
    found = read(text)
    assert found.loads[0] == "link href=data:,"  # or a browser would ask for an icon
    assert [load.partition(",")[0] for load in found.loads[1:]] == ["img src=data:image/svg+xml;base64"] * 2
    assert not [style for style in found.texts if "url(" in style or "@import" in style]
    assert "script" not in found.tags
    assert len(text) < 500_000
    for expected in ("none/pca1:pca2", "80.0 ± 1.0", "After equal bytes", "deit_tiny_patch16_224", "made up"):
        assert expected in found.texts


def test_the_page_shows_each_panel_as_a_picture_with_its_own_legend() -> None:
    steps, curves = panels(STUDY, RUNS, SEEN, 0.05)
    legends = [[text.get_text() for text in shown.legends[0].get_texts()] for shown in (steps, curves)]
    assert legends[0] == [group for group in SHOWN_BY_GROUP if group != "uncompressed"]  # it is named in the plot
    assert legends[1] == [f"{group}: {setting}" for group, setting in SHOWN_BY_GROUP.items()]
    assert line(steps.axes[0], "plain quantization") == pytest.approx(np.array([(0.05, 0.72), (0.25, 0.88)]))
    points = line(curves.axes[0], "uncompressed: none")
    assert points == pytest.approx(np.array([(10_000, 0.45), (20_000, 0.72), (30_000, 0.81), (40_000, 0.9)]))
    assert svg(steps).startswith(b"<?xml")


def test_a_study_that_has_learned_nothing_says_so_on_the_page_and_in_the_json(tmp_path: Path) -> None:
    runs = [msgspec.structs.replace(run, guess=Guess(200, 0.1)) for run in rises(0.1, 0.12, setting="none", share=1.0)]
    write_all(STUDY, runs, BUDGETS, tmp_path)
    text = re.sub("<[^>]*>", "", (tmp_path / "index.html").read_text())
    note = "Nothing was learned yet: uncompressed training has 11.0 % of 200 test images right"
    assert text.index(note) < text.index("After equal steps")
    assert json.loads((tmp_path / "results.json").read_text())["note"].startswith(note)
    assert "Nothing was learned" not in page(STUDY, RUNS, SEEN, 0.05)


def test_a_name_that_looks_like_a_tag_is_text() -> None:
    study = Study(data="folder:<script>alert(1)</script>", epochs=4.0)
    assert "<script>alert" not in page(study, RUNS, SEEN, 0.05)


@pytest.mark.slow
def test_the_same_runs_give_the_same_page() -> None:
    assert page(STUDY, RUNS, SEEN, 0.05) == page(STUDY, RUNS, SEEN, 0.05)


@pytest.mark.parametrize("runs", [[], RUNS])
def test_without_runs_or_budgets_nothing_is_written(tmp_path: Path, runs: list[Run]) -> None:
    with pytest.raises(SettingError, match="at least one each"):
        write_all(STUDY, runs, () if runs else BUDGETS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_file_has_the_images_sent_once_and_the_bytes_of_everything(tmp_path: Path) -> None:
    runs = [run for run in TOTAL_RUNS if run.seed == 0]
    names = {path.name for path in write_all(STUDY, runs, BUDGETS, tmp_path, BESIDE)}
    assert "totals.png" in names
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    second = next(row for row in rows if (row["setting"], row["epoch"]) == ("none/pca1:pca2", "2.0"))
    assert int(second["bytes_evaluations"]) == 2 * EVALUATION
    assert int(second["bytes_total"]) == 4_000 + 2 * EVALUATION + 5_000
    assert (second["bytes_pictures_files"], second["bytes_pictures_q75"]) == ("30000", "4000")
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["pictures"]["train"]["bytes_q90"] == 9_000
    assert found["pictures_shares"]["JPEG q90"] == 0.225
    totals = {row["setting"]: row for row in found["totals"]}
    assert (totals["none/pca1:pca2"]["passes_q75"], totals["none/pca1:pca2"]["passes_files"]) == (2.0, None)
    assert (found["evaluation"]["precision"], found["bytes_weights"]) == ("pca4", 5_000)
    assert found["evaluations"]["none/pca1:pca2"]["precision"] == "pca1"
    text = (tmp_path / "index.html").read_text()
    assert text.count("data:image/svg+xml") == 3
    for expected in ("Bytes of a whole training", "The images, sent once", "the images, sent once", "below"):
        assert expected in read(text).texts


def test_a_study_without_pictures_writes_the_columns_of_before(written: Path, tmp_path: Path) -> None:
    before = (written / "results.csv").read_text().partition("\n")[0]
    assert "bytes_total" not in before
    assert "pictures" not in before
    lost = Beside(None, BESIDE.trunk, note="The data are gone.")
    write_all(STUDY, TOTAL_RUNS, BUDGETS, tmp_path, lost)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["pictures_note"] == "The data are gone."
    assert "pictures" not in found
    assert "The data are gone." in (tmp_path / "index.html").read_text()
    head = (tmp_path / "results.csv").read_text().partition("\n")[0]
    assert "bytes_total" in head
    assert "pictures" not in head
