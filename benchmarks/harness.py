"""Tools of all benchmarks: named results with a reference from the same run, as a table and as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table


class Result(NamedTuple):
    """A measured value and its reference. ``ratio`` is value / reference, both from the same run."""

    name: str
    value: float
    reference: float
    ratio: float
    unit: str


def compare(name: str, value: float, reference: float, unit: str) -> Result:
    return Result(name, value, reference, value / reference, unit)


def medians_ms(cases: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 2) -> dict[str, float]:
    """Median time of each case. The cases take turns in random order, because machines are shared and noisy."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    order = list(cases)
    rng = random.Random(0)
    for turn in range(warm_up + rounds):
        rng.shuffle(order)
        for name in order:
            start = time.perf_counter()
            cases[name]()
            if turn >= warm_up:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--json", type=Path, help="JSON file for the results")
    return parser


def show(title: str, results: list[Result], file: Path | None) -> None:
    """Print a table that names the machine, and write the results as JSON."""
    table = Table(
        title=title, caption=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    for column in Result._fields:
        table.add_column(column, justify="left" if column in ("name", "unit") else "right")
    for result in results:
        numbers = (f"{result.value:.4g}", f"{result.reference:.4g}", f"{result.ratio:.3f}")
        table.add_row(result.name, *numbers, result.unit)
    Console().print(table)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([result._asdict() for result in results], indent=2) + "\n")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with a first column of names and further columns of numbers."""
    details = Table(title=title)
    for number, column in enumerate(columns):
        details.add_column(column, justify="right" if number else "left")
    for row in rows:
        details.add_row(*row)
    Console().print(details)
