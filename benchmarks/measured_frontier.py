"""The studies that `adc-edge plan` takes accuracy and SSIM from, read from the tables of docs/results.

Food-101 at 64 px is left out: uncompressed training reaches 18 % there, so that differences are small whatever is sent.
Writes adc_edge/planning/accuracy/measured.json. Run it again when one of these tables changes.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from adc_edge.files import json_bytes, write_atomic
from adc_edge.planning.accuracy.frontier import MeasuredPoint, MeasuredStudy, read_setting
from adc_edge.planning.accuracy.studies import SHIPPED, difference

RESULTS = Path(__file__).parents[1] / "docs" / "results"
MODEL = "deit_tiny_patch16_224"


class Source(NamedTuple):
    """A table of a page, and the task that it was measured on."""

    page: str
    heading: str  # the table stands below this one
    data: str
    tokens: int
    batch_size: int
    epochs: float
    uncompressed: tuple[float, float, int] | None = (
        None  # accuracy in %, its standard deviation, seeds: of another table
    )


CIFAR_64 = "CIFAR-10, 4,000 images, 64 px"
LONG = (62.7, 3.3, 3)
SOURCES = (
    Source("cifar10-224px.md", "## After equal steps", "CIFAR-10, 4,000 images, 224 px", 197, 128, 4),
    Source("food101.md", "### After equal steps", "Food-101, 5,050 images, 224 px", 197, 128, 12),
    Source("cifar10-64px.md", "## After equal steps", "CIFAR-10, 2,000 images, 64 px", 17, 64, 8),
    Source("ablations.md", "### about 1 %", CIFAR_64, 17, 128, 4, LONG),
    Source("ablations.md", "### about 2 %", CIFAR_64, 17, 128, 4, LONG),
    Source("ablations.md", "### about 5 %", CIFAR_64, 17, 128, 4, LONG),
    Source("ablations.md", "### T/B x k/N", CIFAR_64, 17, 128, 8),
)


class Row(NamedTuple):
    setting: str
    accuracy: float  # 0..1
    sem: float | None
    seeds: int


def table(page: str, heading: str) -> Iterator[dict[str, str]]:
    """The rows of the first table below a heading."""
    lines = iter((RESULTS / page).read_text().partition(f"\n{heading}\n")[2].splitlines())
    names = next(cells(line) for line in lines if line.startswith("| "))
    next(lines)
    for line in lines:
        if not line.startswith("|"):
            return
        yield dict(zip(names, cells(line), strict=True))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def row(setting: str, accuracy: str, seeds: int) -> Row:
    mean, _, deviation = accuracy.replace("*", "").replace("\\", "").partition(" ± ")
    return Row(setting, float(mean) / 100, float(deviation) / 100 / seeds**0.5 if deviation else None, seeds)


def rows(source: Source) -> list[Row]:
    found = []
    for one in table(source.page, source.heading):
        setting = one.get("setting") or one[""]
        grid = re.fullmatch(r"([\d.]+) x ([\d.]+)", setting)
        if grid:
            setting = "none" if grid[1] == grid[2] == "1" else f"adc@{grid[1]}x{grid[2]}"
        found.append(row(setting, one["accuracy %"], int(one["seeds"])))
    return found


def accuracy_study(sources: list[Source]) -> MeasuredStudy:
    """The tables of one task as one study."""
    first, found = sources[0], [one for source in sources for one in rows(source)]
    if first.uncompressed is not None:
        mean, deviation, seeds = first.uncompressed
        found.append(row("none", f"{mean} ± {deviation}", seeds))
    known = next(one for one in found if one.setting == "none")
    points = [difference(one, known) for one in found if read_setting(one.setting) is not None]
    rounded = [
        MeasuredPoint(p.setting, round(p.value, 2), None if p.spread is None else round(p.spread, 2), p.seeds)
        for p in points
    ]
    where, task = f"docs/results/{first.page}", (first.tokens, 3, first.batch_size, first.epochs)
    return MeasuredStudy("accuracy", where, first.data, MODEL, *task, round(100 * known.accuracy, 1), rounded)


def privacy_study() -> MeasuredStudy:
    leaks = {one["setting"]: float(one["SSIM"]) for one in table("privacy.md", "")}
    mean = next(leaks.pop(name) for name in list(leaks) if name.startswith("the mean image"))
    points = [MeasuredPoint(setting, ssim) for setting, ssim in leaks.items() if read_setting(setting) is not None]
    return MeasuredStudy("ssim", "docs/results/privacy.md", CIFAR_64, MODEL, 17, 3, 128, 20, mean, points)


def studies() -> list[MeasuredStudy]:
    tasks: dict[tuple[str, str, float], list[Source]] = {}
    for source in SOURCES:
        tasks.setdefault((source.page, source.data, source.epochs), []).append(source)
    return [*map(accuracy_study, tasks.values()), privacy_study()]


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
