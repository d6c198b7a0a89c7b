"""The result files that `adc-edge evaluate` writes beside the runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from adc_edge.data.pictures import PICTURE_LINES, line_bytes
from adc_edge.errors import SettingError
from adc_edge.evaluation.report.fleet_plot import fleets_figure
from adc_edge.evaluation.report.fleets import main_runs, used_fields
from adc_edge.evaluation.report.groups import parts_of
from adc_edge.evaluation.report.page import is_drawn, machines, page
from adc_edge.evaluation.report.plots import curves_figure, figure, png
from adc_edge.evaluation.report.tables import sheets, study_markdown
from adc_edge.evaluation.report.views import Views, records, views
from adc_edge.evaluation.study.records import Run, Study
from adc_edge.evaluation.totals.beside import Beside
from adc_edge.evaluation.totals.frames import besides_of, evaluations_sent
from adc_edge.evaluation.totals.plot import totals_figure
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
_TOTAL_COLUMNS = ["bytes_evaluations", "bytes_weights", "bytes_total"]


def write_all(
    study: Study, runs: Sequence[Run], budgets: Sequence[float], directory: Path, beside: Beside | None = None
) -> list[Path]:
    """Write results.csv, results.json, results.md, plot.png, curves.png and index.html, each atomically.

    A study of fleets has fleets.png too, and one whose trunk is known totals.png.

    Args:
        study: the task of all runs.
        runs: the finished runs.
        budgets: shares of an uncompressed run's bytes; the plots of learning curves show each group's best setting at
            the middle one.
        directory: the place for the files; created if it is missing.
        beside: what is known of the study's images as pictures, its trunk and its evaluations.

    Returns:
        The paths of the files.

    Raises:
        SettingError: there is no run or no budget.
    """
    if not runs or not budgets:
        raise SettingError(f"{len(runs)} finished runs and {len(budgets)} budgets", "at least one each", "run more")
    beside = beside or Beside()
    seen, middle = views(study, runs, budgets, beside), sorted(budgets)[len(budgets) // 2]
    main = main_runs(runs)[0]
    files = {
        "results.csv": points(study, runs, beside).to_csv(index=False).encode(),
        "results.json": json_bytes(study_dict(study, runs, seen)),
        "results.md": study_markdown(sheets(seen)).encode(),
        "plot.png": png(figure(study, main, seen, middle)),
        "curves.png": png(curves_figure(main)),
        "index.html": readable(page(study, runs, seen, middle)).encode(),
    }
    if len(seen.fleets):
        files["fleets.png"] = png(fleets_figure(runs))
    if is_drawn(seen):
        files["totals.png"] = png(totals_figure(study, seen))
    for name, data in files.items():
        write_atomic(directory / name, data)
    return [directory / name for name in files]


def points(study: Study, runs: Sequence[Run], beside: Beside) -> pd.DataFrame:
    """One row for each evaluation of each run; accuracies and the ratio are in 0..1, bytes since the run's start.

    A study of fleets has their columns too. Where they are known there are the bytes of all evaluations until then, of
    the trunk's first weights and of everything, and those of the training images sent once.
    """
    fleets = any(run.fleet for run in runs)
    columns = _COLUMNS + _FLEET_COLUMNS * fleets + _TOTAL_COLUMNS * (beside.trunk is not None)
    columns += list(_pictures(beside))
    rows = (row | _totals(study, run, row, number, beside) for run in runs for number, row in enumerate(_points([run])))
    return pd.DataFrame(rows, columns=columns, dtype=object if fleets else None)  # integers beside empty cells


def study_dict(study: Study, runs: Sequence[Run], seen: Views) -> dict[str, Any]:
    """The study, its views and its machines as plain values for JSON, where NaN becomes null."""
    return {
        "study": msgspec.to_builtins(study),
        "note": seen.note,
        "steps": records(seen.steps),
        "bytes": records(seen.bytes),
        "standings": records(seen.standings),
        **({"fleet": seen.fleet, "fleets": records(seen.fleets)} if len(seen.fleets) else {}),
        **({"totals": records(seen.totals)} if len(seen.totals) else {}),
        **_about_bytes(seen),
        "machines": machines(runs),
    }


def _about_bytes(seen: Views) -> dict[str, Any]:
    """Return what the views of bytes rest on, as far as it is known."""
    beside, sent = seen.beside, {name: one._asdict() for name, one in seen.evaluations.items()}
    several = len(set(seen.evaluations.values())) > 1
    return {
        **({"pictures": msgspec.to_builtins(beside.pictures)} if beside.pictures else {}),
        **({"pictures_shares": dict(seen.pictures)} if seen.pictures else {}),
        **({"evaluation": next(iter(sent.values()))} if sent else {}),
        **({"evaluations": sent} if several else {}),
        **({"bytes_weights": beside.trunk.bytes_weights} if beside.trunk else {}),
        **({"pictures_note": beside.note} if beside.note else {}),
    }


def _pictures(beside: Beside) -> dict[str, int]:
    """Return the bytes of the training images sent once, by column."""
    sizes = line_bytes(beside.pictures.train) if beside.pictures else {}
    return {PICTURE_LINES[name].replace("bytes_", "bytes_pictures_"): size for name, size in sizes.items()}


def _totals(study: Study, run: Run, row: dict[str, Any], number: int, beside: Beside) -> dict[str, Any]:
    """Return the bytes of everything until a run's evaluation of a number from 0 on, and of the images."""
    besides = besides_of(run, study, beside)
    if besides is None:
        return _pictures(beside)
    evaluations = evaluations_sent(run, run.curve[number].step) * besides.evaluation
    total = row["bytes_up"] + row["bytes_down"] + evaluations + besides.weights
    sums = dict(zip(_TOTAL_COLUMNS, (evaluations, besides.weights, total), strict=True))
    return sums | _pictures(beside)


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
