"""Runs judged at equal steps or at equal bytes: one row for each run, and their means over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from adc_edge.evaluation.report.groups import METHOD_GROUPS, group_of, parts_of
from adc_edge.evaluation.study.records import Point, Run, Study

FITS = 1.02  # largest share of a budget that counts as within: its last step may overshoot it
SHORT = 0.95  # a run that ended below this share of a budget ended early
_JUDGED = (
    "setting group method ratio precision seed epoch share spent bytes_up bytes_down accuracy best ended images chance "
    "lowest highest bytes_trunk left_out evaluations"
).split()
SUMMARY = (
    "setting group method precision seeds share spent epoch bytes_up bytes_down accuracy std sem best ended".split()
)


def full_bytes(study: Study, run: Run) -> int:
    """Bytes of an uncompressed run of the study's epochs, both ways: a budget of 1."""
    return run.uncompressed_step_bytes * _planned_steps(study, run)


def _planned_steps(study: Study, run: Run) -> int:
    return max(1, round(study.epochs * run.steps_per_epoch))


def judged_by_steps(study: Study, runs: Sequence[Run]) -> pd.DataFrame:
    """One row for each run, judged after the study's epochs."""
    return _judged(runs, lambda run, point: point.step / _planned_steps(study, run), 1.0)


def judged_by_bytes(study: Study, runs: Sequence[Run], budget: float) -> pd.DataFrame:
    """One row for each run with an evaluation within ``budget``, judged at its last one."""

    def spent(run: Run, point: Point) -> float:
        return (point.bytes_up + point.bytes_down) / (full_bytes(study, run) * budget)

    return _judged(runs, spent, FITS)


def _judged(runs: Sequence[Run], spent: Callable[[Run, Point], float], most: float) -> pd.DataFrame:
    """One row for each run that has a point of at most ``most``, with the values of its last such point."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        within = [point for point in run.curve if spent(run, point) <= most]
        if not within:
            continue
        last, parts = within[-1], parts_of(run.setting)
        total = last.bytes_up + last.bytes_down
        rows.append(
            {
                "setting": run.setting,
                "group": group_of(run.setting),
                "method": parts.method,
                "ratio": run.ratio,
                "precision": parts.precision,
                "seed": run.seed,
                "epoch": last.epoch,
                "share": total / (last.step * run.uncompressed_step_bytes),
                "spent": spent(run, last),
                "bytes_up": last.bytes_up,
                "bytes_down": last.bytes_down,
                "accuracy": last.best,
                "best": max(point.best for point in within),
                "ended": last is run.curve[-1] and spent(run, last) < SHORT,
                "images": run.guess.images if run.guess else 0,
                "chance": run.guess.chance if run.guess else 0.0,
                "lowest": last.best if last.accuracy_lowest is None else last.accuracy_lowest,
                "highest": last.best if last.accuracy_highest is None else last.accuracy_highest,
                "bytes_trunk": last.bytes_trunk_up + last.bytes_trunk_down,
                "left_out": last.left_out,
                "evaluations": len(within),
            }
        )
    return pd.DataFrame(rows, columns=_JUDGED)


def summary_of(judged: pd.DataFrame) -> pd.DataFrame:
    """One row for each setting: groups in their order, largest share first within a group."""
    if judged.empty:
        return pd.DataFrame(columns=SUMMARY)
    means = ("share", "spent", "epoch", "bytes_up", "bytes_down", "accuracy", "best")
    settings = judged.groupby("setting", sort=False)
    frame = settings[["group", "method", "precision"]].first()
    frame["seeds"] = settings["seed"].count()
    for name in means:
        frame[name] = settings[name].mean()
    frame["std"] = settings["accuracy"].std()
    frame["sem"] = settings["accuracy"].sem()
    frame["ended"] = settings["ended"].any()
    frame["order"] = frame["group"].map(METHOD_GROUPS.index)
    frame = frame.sort_values(["order", "share"], ascending=[True, False], kind="stable").reset_index()
    return frame[SUMMARY]
