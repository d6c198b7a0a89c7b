"""Results of `bench` as a table on a terminal, as Markdown and as JSON, and the next command."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE
from rich.table import Table

from adc_edge.edge_runtime import board
from adc_edge.edge_runtime.bench.cases import Bench, BenchResult
from adc_edge.machine.description import describe_machine, installed_version
from adc_edge.machine.processor import SLOW_INT8
from adc_edge.markdown import markdown_table
from adc_edge.terminal import fitting_table, readable

NOT_MEASURED = "not measured"
COLUMNS = (
    "backend",
    "compute",
    "B",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "images/s",
    "refresh ms",
    "peak MB",
    "mJ/image",
    "size MB",
    "agreement",
    "status",
)
# From which width on all columns are shown, and those to leave out below it: the first four, then one by one.
_WIDE, _NOT_NARROW = 98, ("p90 ms", "p99 ms", "peak MB", "size MB", "mJ/image", "refresh ms", "agreement")
_WORDS = {"backend", "compute", "agreement", "status"}  # columns that are no numbers
_CAPTION = (
    "agreement with the golden pair: assignments, tokens, largest difference. refresh: new weights, and what the next "
    "batch takes more with them. peak MB: of the process. size MB: of the file it is made from."
)


def header(bench: Bench) -> dict[str, str]:
    """Return the facts that the numbers depend on."""
    facts, before, after = bench.facts, bench.before, bench.after
    manifest = bench.bundle.manifest
    jetpack = f", JetPack {facts.jetpack or '?'} (L4T {facts.l4t})" if facts.l4t else ""
    gpus = f", {', '.join(facts.gpus)}" if facts.gpus else ""
    size = "x".join(map(str, manifest.trunk.image_size))
    lines = {
        "board": f"{facts.name}{jetpack}{gpus}",
        "system": f"{facts.system}, {facts.architecture}, {facts.cores_online} of {facts.cores} cores",
        "versions": _versions(),
        "power mode": before.power_mode or "not told",
        "clocks": "; ".join(map(str, before.clocks)) or "not told",
        "temperature": _temperature(before, after),
        "throttling": _throttling(before, after),
        "model": f"{manifest.model}, split {manifest.split} of {manifest.depth}, {size} px",
        "batches": _batches(bench.results, manifest.tokens),
    }
    if rails := {result.rails for result in bench.results if result.rails}:
        lines["energy"] = f"{'; '.join(rails)}, beyond what it draws when idle"
    return lines


def bench_table(bench: Bench, width: int = _WIDE) -> Table:
    """Return a table for a terminal; a narrow one lacks some columns."""
    if width >= _WIDE:
        return _table(bench, ())
    return fitting_table((_table(bench, _NOT_NARROW[:number]) for number in range(4, len(_NOT_NARROW) + 1)), width)


def _table(bench: Bench, left_out: Sequence[str]) -> Table:
    more = f" --markdown and a terminal of {_WIDE} columns have {', '.join(left_out)} too." if left_out else ""
    result = Table(box=SIMPLE, padding=(0, 1, 0, 0), caption=_CAPTION + more, caption_justify="left", pad_edge=False)
    shown = [name for name in COLUMNS[2:] if name not in left_out]
    for name in ("engine", *shown):
        number = name not in _WORDS | {"engine"}
        result.add_column(name.replace(" ", "\n"), justify="right" if number else "left", no_wrap=name != "status")
    for row in bench.results:
        by_name = dict(zip(COLUMNS, cells(row), strict=True))
        engine = " ".join((by_name["backend"], by_name["compute"])).replace(" ", "\n", 1)
        texts = [text if name == "status" else text.replace(" ", "\n") for name in shown for text in [by_name[name]]]
        result.add_row(engine, *texts, style="" if row.good else "red")
    return result


def bench_notes(bench: Bench) -> list[str]:
    """Return why rows lack numbers, and which cases are not possible here."""
    found = [f"{_name(row)}: {row.status}: {row.reason}" for row in bench.results if row.reason]
    energy = dict.fromkeys(row.energy_note for row in bench.results if row.energy_note)
    refresh = [f"{_name(row)}: refresh {row.refresh_note}" for row in bench.results if len(row.refresh_note) > 1]
    slow = [f"{_name(row)}: {SLOW_INT8}" for row in bench.results if SLOW_INT8 in row.where]
    return (
        found
        + slow
        + [f"mJ/image {note}" for note in energy]
        + refresh
        + [f"not here: {text}" for text in bench.absent]
    )


def bench_markdown(bench: Bench) -> str:
    """Return a page in Markdown, to paste into an issue."""
    align = "".join("l" if name in _WORDS else "r" for name in COLUMNS)
    parts = [
        "# adc-edge bench\n",
        *(f"- {name}: {text}" for name, text in header(bench).items()),
        "",
        markdown_table(COLUMNS, map(cells, bench.results), align),
        "",
        f"{_CAPTION[0].upper()}{_CAPTION[1:]}\n",
        *(f"- {note}" for note in bench_notes(bench)),
    ]
    return "\n".join(parts) + "\n"


def bench_dict(bench: Bench) -> dict[str, Any]:
    """Return plain values for JSON."""
    return {
        "header": header(bench),
        "machine": describe_machine(),
        "bundle": bench.bundle.digest,
        "settings": msgspec.to_builtins(bench.settings, enc_hook=str),
        "board": asdict(bench.facts),
        "before": asdict(bench.before),
        "after": asdict(bench.after),
        "results": [msgspec.to_builtins(row) for row in bench.results],
        "not_here": list(bench.absent),
    }


def next_command(bench: Bench, torch: bool | None = None) -> str | None:
    """Return the `serve` command with the fastest engine that passed; None if none did.

    A trunk that trains needs torch and weights that can be refreshed. On the CPU its step also depends on what is
    recomputed, which `serve --engine auto` measures.

    Args:
        bench: the run.
        torch: whether it is installed; None looks.
    """
    trains = importlib.util.find_spec("torch") is not None if torch is None else torch
    good = [row for row in bench.results if row.good and (row.refresh_ms is not None or not trains)]
    if not good:
        return None
    case = max(good, key=lambda row: row.images_s or 0.0).case
    on_cpu = case.provider == "cpu" and case.engine != "tensorrt" and case.compute == "fp32"
    if trains and on_cpu and {"onnxruntime", "torch"} <= {row.case.engine for row in good}:
        how = "--engine auto"
    else:
        provider = f" --provider {case.provider}" if case.engine == "onnxruntime" else ""
        how = f"--engine {case.engine}{provider}" + (f" --compute {case.compute}" if case.engine != "torch" else "")
    frozen = "" if trains else " --trunk frozen"
    place = shlex.quote(str(bench.settings.bundle))
    return (
        f"adc-edge serve --bundle {place} --trainer tcp://HOST:5700 --data folder:PHOTOS "
        f"--batch-size {case.batch_size} {how}{frozen}"
    )


def cells(row: BenchResult) -> tuple[str, ...]:
    """Return one row, in the order of COLUMNS."""
    times = (row.p50_ms, row.p90_ms, row.p99_ms, row.images_s)
    failed = row.p50_ms is None
    unknown = "–" if failed else NOT_MEASURED
    agreement = (
        unknown if row.assignment is None else f"{row.assignment:.0%} {row.tokens:.0%} {_difference(row.difference)}"
    )
    return (
        row.case.backend,
        row.case.compute,
        str(row.case.batch_size),
        *(_number(value, unknown) for value in times),
        "–" if row.refresh_note == "–" else _number(row.refresh_ms, unknown),
        _number(row.peak_mb, unknown),
        _number(row.mj_image, unknown),
        _number(row.size_mb, unknown),
        agreement,
        row.status,
    )


def _number(value: float | None, unknown: str) -> str:
    """Return three significant digits."""
    if value is None:
        return unknown
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _difference(value: float | None) -> str:
    return "–" if value is None else f"{value:.0e}" if value else "0"


def _name(row: BenchResult) -> str:
    return f"{row.case.backend} {row.case.compute} B={row.case.batch_size}"


def _versions() -> str:
    found = describe_machine()
    names = ("adc-edge", "python", "onnxruntime", "numpy", "torch")
    tensorrt = installed_version("tensorrt")
    here = [f"{name} {found[name]}" for name in names if name in found]
    return ", ".join([*here, *([f"tensorrt {tensorrt}"] if tensorrt else [])])


def _temperature(before: board.BoardState, after: board.BoardState) -> str:
    """Return the temperature of the sensor that is hottest at the end, at start and end."""
    if after.hottest is None:
        return "not told"
    name, value = after.hottest
    start = before.temperatures_c.get(name)
    return f"{name} {'?' if start is None else f'{start:.1f}'} → {value:.1f} °C"


def _throttling(before: board.BoardState, after: board.BoardState) -> str:
    if not after.throttling_told:
        return "not told"
    return ", ".join(board.throttled(before, after)) or "none"


def _batches(results: Sequence[BenchResult], tokens: int) -> str:
    shapes = {(row.case.batch_size, row.clusters, row.kept): row for row in results if row.p50_ms is not None}
    return "; ".join(
        f"{images} images to {clusters} clusters, {kept} of {tokens} tokens (ξ={clusters * kept / images / tokens:.3f})"
        for images, clusters, kept in shapes
    )


def save(bench: Bench, markdown_file: Path | None, json_file: Path | None) -> None:
    """Write the files that were asked for."""
    from adc_edge.files import json_bytes, write_atomic

    if markdown_file is not None:
        write_atomic(markdown_file, readable(bench_markdown(bench)).encode())
    if json_file is not None:
        write_atomic(json_file, json_bytes(bench_dict(bench)))
