"""Runs as a table that fits the terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adc_edge.terminal import escaped, fitting_table, readable
from adc_edge.watch.report.words import size_text

Row = dict[str, Any]
_STYLES = {"running": "green", "waiting": "yellow", "finished": "", "interrupted": "yellow", "damaged": "red"}


def _harmless(text: str) -> str:
    """Return a text from outside without control characters."""
    return escaped(readable(text))


def _model(row: Row) -> str:
    return f"{row['model']}/{row['split']}" if row["model"] else "-"


def _setting(row: Row) -> str:
    if row["sessions"] is not None:
        return f"{row['sessions']} session{'s' * (row['sessions'] != 1)}"
    xi = f"{row['xi']:.2g} " if row["xi"] is not None else ""
    down = f":{row['gradient_precision']}" if row["gradient_precision"] else ""
    return f"{xi}{row['precision'] or ''}{down}" or "-"


def _steps(row: Row) -> str:
    return f"{row['steps']}/{row['steps_planned']}" if row["steps_planned"] else str(row["steps"])


def _accuracy(row: Row) -> str:
    return "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f} %"


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "run": lambda row: row["run"],
    "side": lambda row: row["side"] or "-",
    "model/split": _model,
    "setting": _setting,
    "steps": _steps,
    "accuracy": _accuracy,
    "bytes": lambda row: size_text(row["bytes_up"] + row["bytes_down"]),
    "state": lambda row: row["state"],
}
_LEAST_ROOM = 12  # columns of a name
_NUMBERS = {"steps", "accuracy", "bytes"}
# In a narrow terminal the model stands below the run, and the precisions below ξ.
_BESIDE: dict[str, Callable[[Row], str]] = {
    "setting": lambda row: _setting(row).replace(" ", "\n"),
    **{name: _COLUMNS[name] for name in ("steps", "accuracy", "bytes", "state")},
}


def print_table(rows: Sequence[Row], directory: Path) -> None:
    """Print a table of the runs below ``directory``, of fewer and higher columns in a narrow terminal."""
    if not rows:
        click.echo(f"no runs below {_harmless(str(directory))}")
        return
    console = Console()
    table = fitting_table((_table(rows, columns) for columns in (_COLUMNS, _BESIDE)), console.width)
    if len(table.columns) == len(_BESIDE):
        room = max(console.width - console.measure(table).maximum - 2, _LEAST_ROOM)  # padding and divider
        table = _table(rows, {"run, model/split": lambda row: _stacked(row, room), **_BESIDE})
    console.print(table)


def _stacked(row: Row, room: int) -> str:
    return "\n".join(line for text in (row["run"], _model(row)) for line in path_lines(_harmless(text), room))


def path_lines(path: str, room: int) -> list[str]:
    """Return a path in lines of at most ``room`` columns, broken behind ``/``; a longer name loses its middle."""
    lines = [""]
    for part in re.findall(r"[^/]*/|[^/]+", path):
        if len(part) > room:
            part = f"{part[: room // 2]}…{part[len(part) - (room - 1) // 2 :]}"
        if lines[-1] and len(lines[-1] + part) > room:
            lines.append("")
        lines[-1] += part
    return lines


def _table(rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        wide = name.startswith(("run", "model"))
        table.add_column(name, justify="right" if name in _NUMBERS else "left", no_wrap=not wide, overflow="fold")
    for row in rows:
        cells = [(name, "\n".join(map(_harmless, text(row).split("\n")))) for name, text in columns.items()]
        table.add_row(*(Text(cell, _STYLES[row["state"]] if name == "state" else "") for name, cell in cells))
    return table
