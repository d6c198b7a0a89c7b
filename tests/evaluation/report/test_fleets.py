"""Fleets in a study's table, plot, page and files, compared with values computed by hand."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

from adc_edge.evaluation.fleet.setting import StudyFleet
from adc_edge.evaluation.report.fleet_plot import fleets_figure
from adc_edge.evaluation.report.fleets import by_fleet, main_runs
from adc_edge.evaluation.report.output import write_all
from adc_edge.evaluation.report.tables import sheets, study_tables
from adc_edge.evaluation.report.views import records, views
from adc_edge.evaluation.study.records import Run
from tests.evaluation.report.test_views import STUDY, rises, some_runs

PARALLEL, AVERAGED = StudyFleet(4), StudyFleet(4, "dirichlet:0.3", "averaged", every=20)
FINALS = {None: (0.90, 0.92, 0.88), PARALLEL: (0.80, 0.82, 0.81), AVERAGED: (0.89, 0.91, 0.88)}


def in_fleet(run: Run, fleet: StudyFleet | None) -> Run:
    apart = {"accuracy_lowest": 0.5, "accuracy_highest": 0.85} if fleet == PARALLEL else {}
    changes = {"bytes_trunk_up": 1000, "bytes_trunk_down": 2000} if fleet == AVERAGED else {}
    curve = [msgspec.structs.replace(point, **apart, **changes) for point in run.curve]
    return msgspec.structs.replace(run, curve=tuple(curve), fleet=fleet, device_images=(10,) * 4 if fleet else ())


RUNS = [in_fleet(run, fleet) for fleet, finals in FINALS.items() for run in rises(*finals, setting="none", share=1.0)]


def test_a_fleet_is_compared_with_one_device_seed_by_seed() -> None:
    one, parallel, averaged = records(by_fleet(STUDY, RUNS))
    assert [row["devices"] for row in (one, parallel, averaged)] == [1, 4, 4]
    assert (parallel["partition"], averaged["partition"]) == ("iid", "dirichlet:0.3")
    assert (averaged["every"], averaged["bytes_trunk"]) == (20, 3000)
    assert (parallel["lowest"], parallel["highest"]) == (0.5, 0.85)
    assert averaged["lowest"] == pytest.approx(np.mean(FINALS[AVERAGED]))
    apart = np.subtract(FINALS[PARALLEL], FINALS[None])
    assert parallel["paired"] == pytest.approx(apart.mean())
    assert parallel["paired_sem"] == pytest.approx(apart.std(ddof=1) / math.sqrt(3))
    assert (parallel["claim"], averaged["claim"]) == ("behind", "within noise")


def test_the_table_names_of_fleets_what_differs() -> None:
    first = sheets(views(STUDY, RUNS, (1.0,)))[0]
    assert first.columns[:4] == ("devices", "partition", "mode", "seeds")
    rows = [row for section in first.sections for row in section.rows]
    assert [row[:3] for row in rows] == [("1", "–", "–"), ("4", "iid", "parallel"), ("4", "dirichlet:0.3", "averaged")]
    assert rows[1][-2:] == ("-9.0 ± 1.0", "behind")
    others = [in_fleet(run, msgspec.structs.replace(AVERAGED, every=5)) for run in RUNS[:1]]
    assert "every" in sheets(views(STUDY, RUNS + others, (1.0,)))[0].columns


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_table_fits_every_terminal(width: int) -> None:
    for table in study_tables(views(STUDY, RUNS, (1.0,)), width):
        assert table.columns


def test_methods_are_compared_among_runs_with_the_same_devices() -> None:
    assert main_runs(RUNS) == (RUNS[:3], "")
    assert main_runs(RUNS[3:]) == (RUNS[3:6], "4 devices, iid, parallel")
    seen = views(STUDY, RUNS, (1.0,))
    assert [(row["setting"], row["seeds"]) for row in records(seen.steps)] == [("none", 3)]
    assert records(seen.steps)[0]["accuracy"] == pytest.approx(0.9)
    assert sheets(views(STUDY, RUNS[3:], (1.0,)))[1].title == "After equal steps, 4 devices, iid, parallel"


def test_the_files_have_the_fleets_and_those_of_a_study_without_fleets_have_none(tmp_path: Path) -> None:
    names = {path.name for path in write_all(STUDY, RUNS, (1.0,), tmp_path / "fleets")}
    without = {path.name for path in write_all(STUDY, some_runs(), (1.0,), tmp_path / "methods")}
    assert names - without == {"fleets.png"}
    rows = list(csv.DictReader(io.StringIO((tmp_path / "fleets" / "results.csv").read_text())))
    last = rows[-1]
    assert (last["devices"], last["partition"], last["mode"], last["average_every"]) == (
        "4", "dirichlet:0.3", "averaged", "20",
    )  # fmt: skip
    assert last["bytes_trunk_down"] == "2000"
    assert "devices" not in (tmp_path / "methods" / "results.csv").read_text()
    found = json.loads((tmp_path / "fleets" / "results.json").read_text())
    assert [row["mode"] for row in found["fleets"]] == [None, "parallel", "averaged"]
    assert "fleets" not in json.loads((tmp_path / "methods" / "results.json").read_text())
    assert "Fleets after equal images" in (tmp_path / "fleets" / "index.html").read_text()


def test_the_plot_has_a_line_for_each_fleet() -> None:
    axes = fleets_figure(RUNS).axes[0]
    lines = dict(zip(axes.get_legend_handles_labels()[1], axes.lines, strict=True))
    assert set(lines) == {"one device", str(PARALLEL), str(AVERAGED)}
    assert np.asarray(lines[str(AVERAGED)].get_ydata())[-1] == pytest.approx(np.mean(FINALS[AVERAGED]))
    assert axes.get_xlabel() == "epochs of all images"
