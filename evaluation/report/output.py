"""The result files that `adc-edge evaluate` writes beside the runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from adc_edge.errors import SettingError
from adc_edge.evaluation.report.fleet_plot import fleets_figure
from adc_edge.evaluation.report.fleets import main_runs, used_fields
from adc_edge.evaluation.report.groups import parts_of
from adc_edge.evaluation.report.page import machines, page
from adc_edge.evaluation.report.plots import curves_figure, figure, png
from adc_edge.evaluation.report.tables import sheets, study_markdown
from adc_edge.evaluation.report.views import Views, records, views
from adc_edge.evaluation.study.records import Run, Study
from adc_edge.files import json_bytes, write_atomic
from adc_edge.terminal import readable

_COLUMNS = (
    "setting method ratio precision gradient_precision seed step epoch bytes_up bytes_down accuracy accuracy_through "
    "loss seconds".split()
)
_FLEET_COLUMNS = (
    "devices partition mode average_every average_precision robust guard accuracy_lowest accuracy_highest "
    "bytes_trunk_up bytes_trunk_down left_out".split()
)


def write_all(study: Study, runs: Sequence[Run], budgets: Sequence[float], directory: Path) -> list[Path]:
    """Write results.csv, results.json, results.md, plot.png, curves.png and index.html, each atomically.

    A study of fleets has fleets.png too.

    Args:
        study: the task of all runs.
        runs: the finished runs.
        budgets: shares of an uncompressed run's bytes; the plots of learning curves show each group's best setting at
            the middle one.
        directory: the place for the files; created if it is missing.

    Returns:
        The paths of the files.

    Raises:
        SettingError: there is no run or no budget.
    """
    if not runs or not budgets:
        raise SettingError(f"{len(runs)} finished runs and {len(budgets)} budgets", "at least one each", "run more")
    seen, middle = views(study, runs, budgets), sorted(budgets)[len(budgets) // 2]
    main = main_runs(runs)[0]
    files = {
        "results.csv": points(runs).to_csv(index=False).encode(),
        "results.json": json_bytes(study_dict(study, runs, seen)),
        "results.md": study_markdown(sheets(seen)).encode(),
        "plot.png": png(figure(study, main, seen, middle)),
        "curves.png": png(curves_figure(main)),
        "index.html": readable(page(study, runs, seen, middle)).encode(),
    }
    if len(seen.fleets):
        files["fleets.png"] = png(fleets_figure(runs))
    for name, data in files.items():
        write_atomic(directory / name, data)
    return [directory / name for name in files]


def points(runs: Sequence[Run]) -> pd.DataFrame:
    """One row for each evaluation of each run; accuracies and the ratio are in 0..1, bytes since the run's start.

    A study of fleets has their columns too.
    """
    fleets = any(run.fleet for run in runs)
    if not fleets:
        return pd.DataFrame(_points(runs), columns=_COLUMNS)
    return pd.DataFrame(_points(runs), columns=_COLUMNS + _FLEET_COLUMNS, dtype=object)  # integers beside empty cells


def study_dict(study: Study, runs: Sequence[Run], seen: Views) -> dict[str, Any]:
    """The study, its views and its machines as plain values for JSON, where NaN becomes null."""
    return {
        "study": msgspec.to_builtins(study),
        "note": seen.note,
        "steps": records(seen.steps),
        "bytes": records(seen.bytes),
        "standings": records(seen.standings),
        **({"fleet": seen.fleet, "fleets": records(seen.fleets)} if len(seen.fleets) else {}),
        "machines": machines(runs),
    }


def _points(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    for run in runs:
        parts = parts_of(run.setting)
        about = {
            "setting": run.setting,
            "method": parts.method,
            "ratio": run.ratio,
            "precision": parts.up,
            "gradient_precision": parts.down,
            "seed": run.seed,
            **_devices(run),
        }
        for point in run.curve:
            yield about | msgspec.to_builtins(point)


def _devices(run: Run) -> dict[str, Any]:
    fields = used_fields(run.fleet)
    return {f"average_{name}" if name in ("every", "precision") else name: value for name, value in fields.items()}
