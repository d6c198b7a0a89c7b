"""The studies that `adc-edge plan` takes accuracy and SSIM from, read from the records of docs/results.

Food-101 at 64 px is left out: uncompressed training reaches 18 % there, so that differences are small whatever is sent.
Writes adc_edge/planning/accuracy/measured.json. Run it again when one of these records changes.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from results_records import BudgetsTable, CasesTable, LeaksTable, StepsRow, StepsTable, read_records
from results_taking import BEFORE

from adc_edge.files import json_bytes, write_atomic
from adc_edge.planning.accuracy.frontier import MeasuredPoint, MeasuredStudy, read_setting
from adc_edge.planning.accuracy.studies import SHIPPED, difference

MODEL = "deit_tiny_patch16_224"


class Tables(NamedTuple):
    """Tables of one task, and how it was measured."""

    page: str  # of docs/results, which shows them
    file: str  # of records, without .json
    names: tuple[str, ...]  # of its tables
    data: str
    tokens: int
    batch_size: int
    epochs: float
    uncompressed: tuple[str, str] | None = None  # file and table of the uncompressed run, if these tables lack it


CIFAR_64 = "CIFAR-10, 4,000 images, 64 px"
TASKS = (
    Tables("cifar10-224px.md", "cifar10-224px", ("steps",), "CIFAR-10, 4,000 images, 224 px", 197, 128, 4),
    Tables("food101.md", "food101-224px", ("steps",), "Food-101, 5,050 images, 224 px", 197, 128, 12),
    Tables("cifar10-64px.md", "cifar10-64px", ("steps",), "CIFAR-10, 2,000 images, 64 px", 17, 64, 8),
    Tables(
        *("ablations.md", "ablations", ("about-1", "about-2", "about-5"), CIFAR_64, 17, 128, 4),
        uncompressed=("equal-bytes", "long"),
    ),
    Tables("ablations.md", "ablations", ("grid",), CIFAR_64, 17, 128, 8),
)


class Row(NamedTuple):
    setting: str
    accuracy: float  # 0..1
    sem: float | None
    seeds: int
    source: str


def row(setting: str, accuracy: float, deviation: float | None, seeds: int, source: str) -> Row:
    """A row from numbers in %."""
    grid = re.fullmatch(r"([\d.]+) x ([\d.]+)", setting)
    if grid:
        setting = "none" if grid[1] == grid[2] == "1" else f"adc@{grid[1]}x{grid[2]}"
    return Row(setting, accuracy / 100, None if deviation is None else deviation / 100 / seeds**0.5, seeds, source)


def rows(tables: Tables) -> Iterator[Row]:
    """The settings of a task."""
    known = read_records(tables.file).tables
    for name in tables.names:
        table = known.get(name)
        if table is None and name.endswith(BEFORE):
            return
        assert isinstance(table, StepsTable | CasesTable)
        for one in table.rows:
            setting = one.setting if isinstance(one, StepsRow) else one.name
            yield row(setting, one.accuracy, one.deviation, one.seeds, one.source)
    if tables.uncompressed is not None:
        file, name = tables.uncompressed
        table = read_records(file).tables[name]
        assert isinstance(table, BudgetsTable)
        last = next(one for one in table.rows if one.setting == "none")
        level = last.levels[-1]
        assert level is not None
        yield row("none", level.accuracy, level.deviation, last.seeds, last.source)


def accuracy_study(tables: Tables) -> MeasuredStudy:
    """The tables of one task as one study; rows older than its uncompressed run are compared with the one before it."""
    found = list(rows(tables))
    known = next(one for one in found if one.setting == "none")
    before = next((one for one in rows(tables._replace(names=(f"steps{BEFORE}",))) if one.setting == "none"), known)
    points = [
        difference(one, known if one.source == known.source else before)
        for one in found
        if read_setting(one.setting) is not None
    ]
    rounded = [
        MeasuredPoint(p.setting, round(p.value, 2), None if p.spread is None else round(p.spread, 2), p.seeds)
        for p in points
    ]
    where, task = f"docs/results/{tables.page}", (tables.tokens, 3, tables.batch_size, tables.epochs)
    return MeasuredStudy("accuracy", where, tables.data, MODEL, *task, round(100 * known.accuracy, 1), rounded)


def privacy_study() -> MeasuredStudy:
    table = read_records("privacy").tables["leaks"]
    assert isinstance(table, LeaksTable)
    leaks = {one.setting: one.ssim for one in table.rows}
    mean = next(leaks.pop(name) for name in list(leaks) if name.startswith("the mean image"))
    points = [MeasuredPoint(setting, ssim) for setting, ssim in leaks.items() if read_setting(setting) is not None]
    return MeasuredStudy("ssim", "docs/results/privacy.md", CIFAR_64, MODEL, 17, 3, 128, 20, mean, points)


def studies() -> list[MeasuredStudy]:
    return [*map(accuracy_study, TASKS), privacy_study()]


def content() -> bytes:
    note = (
        "Made by benchmarks/measured_frontier.py from the tables of docs/results. value: points of test accuracy above "
    )
    note += "uncompressed training, or SSIM of an inverter; spread: its standard error over seeds, null for one seed."
    return json_bytes({"format": 1, "note": note, "studies": studies()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=SHIPPED)
    write_atomic(parser.parse_args().output, content())
