"""The table of fleets. Accuracies are in %, bytes in MB."""

from __future__ import annotations

from typing import Any

import pandas as pd

from adc_edge.evaluation.report.claims import LEVEL
from adc_edge.evaluation.report.fleets import FLEET_FIELDS
from adc_edge.evaluation.report.sheet import CLAIM, NONE, Section, Sheet, megabytes, percent, with_spread
from adc_edge.evaluation.report.views import Views, records
from adc_edge.evaluation.totals.table import pictures_note

_WORDS = ("partition", "mode")
_TITLES = {"every": "every", "precision": "changes", "robust": "rule", "guard": "guard"}
_CAPTION = (
    "accuracy: mean ± standard deviation over seeds; where devices have trunks of their own, the trunks' mean. sem: "
    "standard error of the mean. lowest, highest: of the trunks, means over seeds. MB trunk: of MB up and MB down, "
    "those of the trunk's changes. difference: accuracy minus that of one device with all images, in points: mean ± "
    f"standard error over common seeds. claim: by a paired t-test over seeds (p < {LEVEL:g})."
)


def fleets_sheet(seen: Views) -> Sheet:
    """Return the table of every fleet after the study's epochs; it names of the fleets what differs."""
    rows = records(seen.fleets)
    named = [name for name in FLEET_FIELDS if _differs(seen.fleets, name)] or list(FLEET_FIELDS[:3])
    columns = (
        *(_TITLES.get(name, name) for name in named),
        *("seeds", "accuracy %", "sem", "lowest %", "highest %", "MB up", "MB down", "MB trunk", "difference", CLAIM),
    )
    settings = dict.fromkeys(row["setting"] for row in rows)
    sections = [Section(name, [_cells(row, named) for row in rows if row["setting"] == name]) for name in settings]
    optional = ("seeds", "highest %", "lowest %", "MB trunk", "MB down", "MB up", "sem")
    caption = _CAPTION + pictures_note(seen.beside, seen.pictures)
    return Sheet("Fleets after equal images", "setting", columns, len(named), sections, caption, optional)


def _differs(fleets: pd.DataFrame, name: str) -> bool:
    """Whether a field has several values, where it is used."""
    return int(fleets[name].nunique(dropna=True)) > 1 or (name in _WORDS and bool(fleets[name].isna().any()))


def _cells(row: dict[str, Any], named: list[str]) -> tuple[str, ...]:
    return (
        *(_told(row[name]) for name in named),
        str(row["seeds"]),
        with_spread(row["accuracy"], row["std"]),
        percent(row["sem"], 2),
        percent(row["lowest"]),
        percent(row["highest"]),
        megabytes(row["bytes_up"]),
        megabytes(row["bytes_down"]),
        megabytes(row["bytes_trunk"]),
        *_compared(row),
    )


def _compared(row: dict[str, Any]) -> tuple[str, str]:
    if pd.isna(row["claim"]):
        return "", ""
    if pd.isna(row["paired"]):
        return "", row["claim"]
    error = "" if pd.isna(row["paired_sem"]) else f" ± {percent(row['paired_sem'])}"
    return f"{round(100 * row['paired'], 1) + 0.0:+.1f}{error}", row["claim"]


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return NONE if pd.isna(value) else str(value)
