"""Fleets of devices compared with one device that has all images, after equal steps and so after equal images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pandas as pd

from adc_edge.defaults import COMMON_MODES
from adc_edge.evaluation.fleet.setting import StudyFleet
from adc_edge.evaluation.report.claims import Comparison, compare
from adc_edge.evaluation.report.judging import judged_by_steps
from adc_edge.evaluation.study.records import Run, Study

FLEET_FIELDS = StudyFleet.__struct_fields__
_MEANS = "accuracy lowest highest bytes_up bytes_down bytes_trunk left_out".split()


def main_runs(runs: Sequence[Run]) -> tuple[list[Run], str]:
    """Return the runs that the views of methods are of, all with the same devices, and their fleet in words.

    They are those with one device (in words: nothing), or if there are none, those of the first fleet.
    """
    alone = [run for run in runs if run.fleet is None]
    if alone or not runs:
        return alone, ""
    return [run for run in runs if run.fleet == runs[0].fleet], str(runs[0].fleet)


def by_fleet(study: Study, runs: Sequence[Run]) -> pd.DataFrame:
    """One row for each setting and fleet, with every run judged after the study's epochs; none if there is no fleet.

    Columns: setting; the fields of ``StudyFleet``, as far as they are used; seeds (their number); means over
    seeds of accuracy (the trunks' mean), lowest and highest (of the trunks), bytes_up, bytes_down, bytes_trunk (of
    both, those of the trunk's changes) and left_out; std and sem of accuracy; and the fields of ``Comparison``, of
    accuracy minus that of one device with the same setting.
    """
    columns = ["setting", *FLEET_FIELDS, "seeds", *_MEANS, "std", "sem", *Comparison._fields]
    if not any(run.fleet for run in runs):
        return pd.DataFrame(columns=columns)
    rows = []
    for setting in dict.fromkeys(run.setting for run in runs):
        mine = [run for run in runs if run.setting == setting]
        alone = judged_by_steps(study, [run for run in mine if run.fleet is None])
        for fleet in sorted(dict.fromkeys(run.fleet for run in mine), key=lambda fleet: fleet is not None):
            judged = judged_by_steps(study, [run for run in mine if run.fleet == fleet])
            if len(judged):
                rows.append({"setting": setting} | _row(fleet, judged, alone))
    return pd.DataFrame(rows, columns=columns, dtype=object)


def _row(fleet: StudyFleet | None, judged: pd.DataFrame, alone: pd.DataFrame) -> dict[str, Any]:
    found = used_fields(fleet)
    found |= {"seeds": len(judged), "std": judged["accuracy"].std(), "sem": judged["accuracy"].sem()}
    found |= {name: judged[name].mean() for name in _MEANS}
    if fleet is None or alone.empty:
        return found
    mine, theirs = (frame.set_index("seed")["accuracy"] for frame in (judged, alone))
    return found | compare(mine, theirs, int(judged["images"].min()))._asdict()


def used_fields(fleet: StudyFleet | None) -> dict[str, Any]:
    """Return the fields of a fleet that its mode uses; None is one device with all images."""
    if fleet is None:
        return {"devices": 1}
    names = {"devices", "mode"} | ({"partition"} if fleet.devices > 1 else set())
    names |= {"every", "precision"} if fleet.mode in COMMON_MODES else set()
    names |= {"robust", "guard"} if fleet.mode == "averaged" else set()
    return {name: value for name, value in msgspec.to_builtins(fleet).items() if name in names}
