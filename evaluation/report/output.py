"""The result files that `adc-edge evaluate` writes beside the runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from adc_edge.errors import SettingError
from adc_edge.evaluation.report.page import machines, page
from adc_edge.evaluation.report.plots import curves_figure, figure, png
from adc_edge.evaluation.report.tables import sheets, study_markdown
from adc_edge.evaluation.report.views import Views, parts_of, records, views
from adc_edge.evaluation.study.records import Run, Study
from adc_edge.files import json_bytes, write_atomic
from adc_edge.terminal import readable

_COLUMNS = (
    "setting method ratio precision gradient_precision seed step epoch bytes_up bytes_down accuracy accuracy_through "
    "loss seconds".split()
)


def write_all(study: Study, runs: Sequence[Run], budgets: Sequence[float], directory: Path) -> list[Path]:
    """Write results.csv, results.json, results.md, plot.png, curves.png and index.html, each atomically.

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
    files = {
        "results.csv": points(runs).to_csv(index=False).encode(),
        "results.json": json_bytes(study_dict(study, runs, seen)),
        "results.md": study_markdown(sheets(seen)).encode(),
        "plot.png": png(figure(study, runs, seen, middle)),
        "curves.png": png(curves_figure(runs)),
        "index.html": readable(page(study, runs, seen, middle)).encode(),
    }
    for name, data in files.items():
        write_atomic(directory / name, data)
    return [directory / name for name in files]


def points(runs: Sequence[Run]) -> pd.DataFrame:
    """One row for each evaluation of each run; accuracies and the ratio are in 0..1, bytes since the run's start."""
    return pd.DataFrame(_points(runs), columns=_COLUMNS)


def study_dict(study: Study, runs: Sequence[Run], seen: Views) -> dict[str, Any]:
    """The study, its views and its machines as plain values for JSON, where NaN becomes null."""
    return {
        "study": msgspec.to_builtins(study),
        "note": seen.note,
        "steps": records(seen.steps),
        "bytes": records(seen.bytes),
        "standings": records(seen.standings),
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
        }
        for point in run.curve:
            yield about | msgspec.to_builtins(point)
