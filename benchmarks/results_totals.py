"""The table of whole trainings' bytes, from a study of `adc-edge evaluate`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from results_records import FORMAT, RESULTS, Pictures, Records, Source, Table, TotalsRow, TotalsTable, read_records
from results_taking import as_text

from adc_edge.errors import SettingError
from adc_edge.files import write_atomic

_UNCOMPRESSED = "none"
_ONCE = "the images as JPEG, once"
_MAY_DIFFER = {"epochs", "max_epochs", "budget", "evaluate_every", "store_drop", "store_mix", "trunk_lr"}
_OF_STUDY = "pictures.json of the study"
_Kind = TypeVar("_Kind")
LINES = {"own files": "files", "q90": "q90", "q75": "q75"}  # fields of results.json


class StudyTotals(msgspec.Struct, frozen=True):
    """The part of a study's results.json that the table needs; accuracies are in 0..1."""

    study: dict[str, Any]
    totals: list[dict[str, Any]]
    pictures: dict[str, Any]
    evaluation: dict[str, Any]
    bytes_weights: int


def take_totals(study: Path, into: str, table: str, name: str, source: Source, directory: Path = RESULTS) -> None:
    """Write a table of whole trainings anew from a study, the one of fewest bytes first.

    Rows that ``add_totals`` has added to it go.

    Args:
        study: the -o directory of an evaluation.
        into: the file, without .json; it is made if there is none.
        table: of the file.
        name: of the measurement, among the file's sources.
        source: the measurement.
        directory: holds the file.

    Raises:
        SettingError: the study has no results, or no uncompressed run.
    """
    path = directory / f"{into}.json"
    before = read_records(into, directory) if path.exists() else Records(FORMAT, {}, {})
    accuracies = _accuracies(study)
    made = _table(study, accuracies, accuracies.get(_UNCOMPRESSED), name, _further(before.tables.get(table)))
    made = msgspec.structs.replace(made, rows=[_standard(row) for row in made.rows])
    records = Records(before.format, {**before.sources, name: source}, {**before.tables, table: made})
    write_atomic(path, as_text(records))


def add_totals(
    study: Path, into: str, table: str, name: str, source: Source, against: Path, label: str, directory: Path = RESULTS
) -> None:
    """Add the rows of another length or with other options to a table of whole trainings, in place of those like them.

    Args:
        study: the -o directory of an evaluation.
        into: the file, without .json.
        table: of the file, which has it.
        name: of the measurement, among the file's sources.
        source: the measurement.
        against: the -o directory of the evaluation whose uncompressed runs the accuracies are compared with.
        label: what differs, after a comma behind each setting.
        directory: holds the file.

    Raises:
        SettingError: there is no such table or study; the name is that of rows that stay; ``against`` has no
            uncompressed run of a seed, or is of another task; or the table is of other images or another model.
    """
    before = read_records(into, directory)
    old = before.tables.get(table)
    if not isinstance(old, TotalsTable):
        raise SettingError(f"no table {table} of whole trainings", "one that a study has made", "leave --against out")
    whole = _accuracies(against).get(_UNCOMPRESSED)
    if not whole:
        raise SettingError(f"{against}: no uncompressed run", "the study that the table was made of", "name that one")
    _check_alike(study, against)
    accuracies = _accuracies(study)
    made = _table(study, accuracies, whole, name)
    mine, theirs = _task(made), _task(old)
    if mine != theirs:
        raise SettingError(f"a study of {mine}", f"{theirs}, as in the table", "take another study")
    for setting, runs in accuracies.items():
        if missing := sorted(runs.keys() - whole.keys()):
            raise SettingError(
                f"seed {missing[0]} of {setting}, which {against} has not",
                "its seeds",
                "run uncompressed training there",
            )
    added = [msgspec.structs.replace(row, setting=f"{row.setting}, {label}") for row in made.rows]
    others = [row for row in old.rows if row.setting not in {one.setting for one in added}]
    rows = [*others, *(row for other, one in before.tables.items() if other != table for row in one.rows)]
    if before.sources.get(name, source) != source and any(row.source == name for row in rows):
        raise SettingError(f"--name {name}, which other rows have", "a name of its own", "choose another one")
    merged = msgspec.structs.replace(old, rows=sorted([*others, *added], key=lambda row: row.kb_steps))
    records = Records(before.format, {**before.sources, name: source}, {**before.tables, table: merged})
    write_atomic(directory / f"{into}.json", as_text(records))


def _task(table: TotalsTable) -> str:
    """The task that two studies must share to stand in one table, in words."""
    own = "; ".join(one.name for one in table.pictures if one.source == _OF_STUDY)
    images = f"{table.images} training and {table.evaluated} test images"
    return f"{images}, {table.mb_weights} MB of weights, {own}"


def _check_alike(study: Path, against: Path) -> None:
    """Raise SettingError if two studies differ in more than their length and what is stored."""
    one, other = (_read(where, "study.json", dict[str, Any])["study"] for where in (study, against))
    names = sorted(key for key in {**one, **other} if key not in _MAY_DIFFER and one.get(key) != other.get(key))
    if names:
        key = names[0]
        received = f"{study}: {key} {one.get(key)!r}"
        raise SettingError(received, f"{other.get(key)!r}, as in {against}", "name the study that it belongs to")


def _read(study: Path, name: str, kind: type[_Kind]) -> _Kind:
    """Return a file of a study; raises SettingError if there is none, or it is another one."""
    try:
        return msgspec.json.decode((study / name).read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError) as error:
        raise SettingError(f"{study}: {error}", "the -o directory of `adc-edge evaluate`", "name such a one") from None


def _accuracies(study: Path) -> dict[str, dict[int, float]]:
    """The last accuracy by setting and seed."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted((study / "runs").glob("*.json")):
        run = msgspec.json.decode(path.read_bytes())
        found.setdefault(run["setting"], {})[run["seed"]] = run["curve"][-1]["accuracy"]
    return found


def _further(before: Table | None) -> list[Pictures]:
    """Pictures of a table that are not the study's own: they stay."""
    return [] if not isinstance(before, TotalsTable) else [one for one in before.pictures if one.source != _OF_STUDY]


def _table(
    study: Path,
    accuracies: Mapping[str, Mapping[int, float]],
    whole: Mapping[int, float] | None,
    source: str,
    further: Sequence[Pictures] = (),
) -> TotalsTable:
    """The table of a study, whose accuracies are compared by seed with ``whole``, those of uncompressed runs."""
    found = _read(study, "results.json", StudyTotals)
    train = found.pictures["train"]
    images = train["images"]
    lines = {name: field for name, field in LINES.items() if train.get(f"bytes_{field}") is not None}
    if whole is None:
        raise SettingError("a study without uncompressed runs", "--setting none", "run it with that setting too")
    rows = [
        _row(one, accuracies.get(one["setting"], {}), whole, images, source, list(lines.values()))
        for one in sorted(found.totals, key=lambda one: one["bytes_training"])
    ]
    sizes = {field: float(round(train[f"bytes_{field}"] / images)) for field in lines.values()}
    side = found.pictures["size"][0]
    pictures = [Pictures(f"{_ONCE} (q90 / q75), at {side} px", [sizes["q90"], sizes["q75"]], _OF_STUDY)]
    if "files" in sizes:
        pictures.append(Pictures(f"{_ONCE}: their own files", [sizes["files"]], _OF_STUDY))
    return TotalsTable(
        rows=rows,
        epochs=found.study["epochs"],
        images=images,
        mb_evaluation=round((found.evaluation["up"] + found.evaluation["down"]) / 1e6, 3),
        evaluated=found.evaluation["images"],
        mb_weights=round(found.bytes_weights / 1e6, 3),
        lines=list(lines),
        pictures=[*pictures, *further],
    )


def _standard(row: TotalsRow) -> TotalsRow:
    """The row, without a difference if it is the one that all are compared with."""
    is_it = row.setting == _UNCOMPRESSED
    return msgspec.structs.replace(row, difference=None, difference_sem=None) if is_it else row


def _row(
    one: Mapping[str, Any],
    mine: Mapping[int, float],
    whole: Mapping[int, float],
    images: int,
    source: str,
    lines: Sequence[str],
) -> TotalsRow:
    if len(mine) != one["seeds"]:
        received = f"{len(mine)} runs of {one['setting']}, of which results.json knows {one['seeds']}"
        raise SettingError(received, "a study that has ended", "run the same `adc-edge evaluate` again to its end")
    paired = [100 * (mine[seed] - whole[seed]) for seed in mine.keys() & whole.keys()]
    return TotalsRow(
        source=source,
        seeds=one["seeds"],
        setting=one["setting"],
        accuracy=round(100 * one["accuracy"], 1),
        deviation=None if one["std"] is None else round(100 * one["std"], 1),
        difference=round(statistics.mean(paired), 1) if paired else None,
        difference_sem=round(_sem(paired), 1) if len(paired) > 1 else None,
        kb_steps=float(f"{one['bytes_training'] / images / 1e3:.3g}"),
        passes=[None if one[f"passes_{line}"] is None else round(one[f"passes_{line}"], 3) for line in lines],
    )


def _sem(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))
