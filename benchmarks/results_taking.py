"""Rows of a study of `adc-edge evaluate` put into a file of records, in place of rows of the same settings.

The rows that are replaced stay in a table of their own, those of the oldest study first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from results_records import (
    RESULTS,
    BudgetsRow,
    BudgetsTable,
    Level,
    Records,
    Source,
    StepsRow,
    StepsTable,
    Table,
    read_records,
)

from adc_edge.errors import SettingError
from adc_edge.files import write_atomic

BEFORE = "-before"  # ends the name of a table of rows that a later study replaced


class StudyResults(msgspec.Struct, frozen=True):
    """The part of a study's results.json that tables need; accuracies and shares are in 0..1."""

    steps: list[dict[str, Any]]
    bytes: list[dict[str, Any]]
    machines: list[dict[str, Any]] = []


def take_study(study: Path, into: str, name: str, source: Source, directory: Path = RESULTS) -> None:
    """Put a study's rows into a file of records.

    Args:
        study: the -o directory of an evaluation.
        into: the file, without .json.
        name: of the measurement, among the file's sources.
        source: the measurement.
        directory: holds the file.

    Raises:
        SettingError: the study has no results, or a table lacks a row to replace.
    """
    found = _results(study)
    records = read_records(into, directory)
    tables: dict[str, Table] = {}
    for key, table in records.tables.items():
        if key.endswith(BEFORE):
            tables.setdefault(key, table)
            continue
        tables[key] = _replaced(table, found, name)
        if tables[key] != table:
            tables[key + BEFORE] = _gone(table, tables[key], records.tables.get(key + BEFORE))
    write_atomic(
        directory / f"{into}.json", as_text(Records(records.format, {**records.sources, name: source}, tables))
    )


def version_of(study: Path) -> str:
    """The version of adc-edge that made a study's runs.

    Raises:
        SettingError: the study has no results, or its runs are of no known version, or of several.
    """
    found = sorted({str(one.get("adc-edge")) for one in _results(study).machines})
    if len(found) != 1 or found == ["None"]:
        received = f"{study} of {'versions ' + ', '.join(found) if found else 'no known version'}"
        raise SettingError(received, "runs of one version", "give --version")
    return found[0]


def _results(study: Path) -> StudyResults:
    try:
        return msgspec.json.decode((study / "results.json").read_bytes(), type=StudyResults)
    except (OSError, msgspec.MsgspecError) as error:
        raise SettingError(f"{study}: {error}", "the -o directory of `adc-edge evaluate`", "name such a one") from None


def _gone(old: Table, new: Table, before: Table | None) -> Table:
    """The table of the rows that were replaced, after those of former studies: they were true of their version."""
    earlier = [] if before is None else before.rows
    rows = [*earlier, *(row for row, other in zip(old.rows, new.rows, strict=True) if row != other)]
    if isinstance(old, StepsTable):
        return msgspec.structs.replace(old, rows=rows, pictures=[])
    return msgspec.structs.replace(old, rows=rows)


def _replaced(table: Table, found: StudyResults, name: str) -> Table:
    if isinstance(table, StepsTable):
        return msgspec.structs.replace(table, rows=_merged(table.rows, [steps_row(row, name) for row in found.steps]))
    if isinstance(table, BudgetsTable):
        fresh = [budgets_row(row, found.bytes, table.budgets, name) for row in found.steps]
        return msgspec.structs.replace(table, rows=_merged(table.rows, fresh))
    return table


def _merged(old: Sequence[Any], fresh: Sequence[Any]) -> list[Any]:
    """The old rows with the fresh ones in the places of their settings."""
    by_setting = {row.setting: row for row in fresh}
    if unknown := by_setting.keys() - {row.setting for row in old}:
        remedy = "add such rows to the file first, where they belong"
        raise SettingError(f"a study of {', '.join(sorted(unknown))}", "settings that the table has", remedy)
    return [by_setting.get(row.setting, row) for row in old]


def steps_row(row: Mapping[str, Any], source: str) -> StepsRow:
    """A row of the table of equal steps."""
    return StepsRow(
        source=source,
        seeds=row["seeds"],
        group=row["group"],
        setting=row["setting"],
        share=float(f"{100 * row['share']:.3g}"),
        accuracy=_percent(row["accuracy"], 1),
        deviation=_percent_or_none(row["std"], 1),
        sem=_percent_or_none(row["sem"], 2),
        best=_percent(row["best"], 1),
        mb_up=_megabytes(row["bytes_up"]),
        mb_down=_megabytes(row["bytes_down"]),
    )


def budgets_row(
    row: Mapping[str, Any], levels: Sequence[Mapping[str, Any]], budgets: Sequence[float], source: str
) -> BudgetsRow:
    """A row of the table of equal bytes.

    Args:
        row: the setting after equal steps.
        levels: of all settings and budgets.
        budgets: in %, those of the table.
        source: a name among the file's sources.
    """
    mine = {round(100 * one["budget"], 6): one for one in levels if one["setting"] == row["setting"]}
    found = [mine.get(budget) for budget in budgets]
    return BudgetsRow(
        source=source,
        seeds=row["seeds"],
        group=row["group"],
        setting=row["setting"],
        levels=[None if one is None else _level(one) for one in found],
    )


def _level(one: Mapping[str, Any]) -> Level:
    return Level(_percent(one["accuracy"], 1), _percent_or_none(one["std"], 1), one["ended"])


def _percent(share: float, digits: int) -> float:
    return round(100 * share, digits)


def _percent_or_none(share: float | None, digits: int) -> float | None:
    return None if share is None else _percent(share, digits)


def _megabytes(size: float) -> float:
    value = size / 1e6
    return float(round(value)) if value >= 100 else float(f"{value:.3g}")


def as_text(records: Records) -> bytes:
    """The file of records: a line for each source and each row."""
    plain = msgspec.to_builtins(records)
    sources = ",\n".join(f"  {_line(name)}: {_line(one)}" for name, one in plain["sources"].items())
    tables = ",\n".join(f"  {_line(name)}: {_table(one)}" for name, one in plain["tables"].items())
    text = f'{{\n "format": {records.format},\n "sources": {{\n{sources}\n }},\n "tables": {{\n{tables}\n }}\n}}\n'
    return text.encode()


def _table(table: Mapping[str, Any]) -> str:
    head = "".join(f"\n   {_line(name)}: {_line(value)}," for name, value in table.items() if name != "rows")
    rows = ",\n    ".join(_line(row) for row in table["rows"])
    return f'{{{head}\n   "rows": [\n    {rows}\n   ]\n  }}'


def _line(value: Any) -> str:
    """JSON on one line, with spaces after colons and commas."""
    return json.dumps(value, ensure_ascii=False)
