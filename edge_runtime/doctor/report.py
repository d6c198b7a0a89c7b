"""The report of `doctor`: rows for a person, a line for a health check, JSON for everything else."""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import click

from adc_edge import __version__
from adc_edge.terminal import LAYOUT, command_lines, escaped

Kind = Literal["ok", "info", "missing", "warning", "bad"]
START_TRAINER = "start `adc-edge trainer` there, and let its port through firewalls"  # a remedy
MARKS: dict[Kind, str] = {"ok": "✓", "info": " ", "missing": "–", "warning": "!", "bad": "✗"}
_COLOURS: dict[Kind, str] = {"ok": "green", "warning": "yellow", "bad": "red"}
_NAME_WIDTH = 17


@dataclass(frozen=True)
class DoctorRow:
    """One fact. Without what is ``needed`` a device cannot `serve`."""

    section: str
    name: str
    kind: Kind
    text: str
    remedy: str | None = None
    needed: bool = False

    @property
    def fault(self) -> bool:
        """Whether this keeps the device from serving."""
        return self.needed and self.kind == "bad"


@dataclass(frozen=True)
class DoctorReport:
    """All rows of `doctor`, and their details.

    Args:
        rows: in the order in which they are shown.
        trains: whether the trunk can be trained here; if not, it can be frozen.
        details: plain values that the rows only sum up.
    """

    rows: tuple[DoctorRow, ...]
    trains: bool
    details: dict[str, Any]

    @property
    def faults(self) -> tuple[DoctorRow, ...]:
        """The rows that keep this device from serving."""
        return tuple(row for row in self.rows if row.fault)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        rows = [asdict(row) for row in self.rows]
        serves = {"can_serve": not self.faults, "can_train_trunk": not self.faults and self.trains}
        return {"adc-edge": __version__, **serves, "rows": rows, **self.details}


def lines(report: DoctorReport, width: int, following: str) -> Iterator[str]:
    """The report for a person, ending with the verdict and the ``following`` command."""
    yield f"adc-edge {__version__} doctor"
    for section, rows in groupby(report.rows, key=lambda row: row.section):
        yield ""
        yield click.style(section, bold=True)
        for row in rows:
            yield from _row(row, width)
    yield ""
    yield from _verdict(report, width, following)


def health_line(report: DoctorReport) -> str:
    """The verdict with the first fault."""
    if not report.faults:
        return f"ok: adc-edge {__version__} can serve" + ("" if report.trains else " a frozen trunk")
    row = report.faults[0]
    more = f" (and {len(report.faults) - 1} more)" if len(report.faults) > 1 else ""
    return " ".join(escaped(f"bad: {row.name}: {row.text}{more}", LAYOUT).split())


def _row(row: DoctorRow, width: int) -> Iterator[str]:
    mark = click.style(MARKS[row.kind], fg=_COLOURS.get(row.kind), bold=True)
    indent = " " * (_NAME_WIDTH + 4)
    room = max(30, width - len(indent))
    first, *rest = [*_wrap(row.text, room), *([] if row.remedy is None else _wrap(f"→ {row.remedy}", room))]
    gap = "" if len(row.name) < _NAME_WIDTH else f"\n{indent}"
    yield f"  {mark} {row.name:{_NAME_WIDTH if not gap else 0}}{gap}{first}"
    yield from (indent + line for line in rest)


def _wrap(text: str, room: int) -> list[str]:
    return textwrap.wrap(escaped(text, LAYOUT), room, break_on_hyphens=False) or [""]


def serve_command(bundle: Path | None, trainer: str | None, keys: Path | None, insecure: bool, data: str | None) -> str:
    """Return the `serve` command for what was examined, with capitals in place of what was not."""
    place = shlex.quote(str(bundle)) if bundle else "BUNDLE"
    source = shlex.quote(data) if data else "folder:PHOTOS"
    more = f" --keys {shlex.quote(str(keys))}" if keys else " --insecure" if insecure else ""
    return f"adc-edge serve --bundle {place} --trainer {trainer or 'tcp://HOST:5700'} --data {source}{more}"


def _verdict(report: DoctorReport, width: int, following: str) -> Iterator[str]:
    if report.faults:
        names = ", ".join(row.name for row in report.faults)
        yield click.style(f"this device cannot serve: {names}", fg="red", bold=True)
        return
    how = "serve, and train its trunk" if report.trains else "serve with a frozen trunk"
    yield click.style(f"this device can {how}", fg="green", bold=True)
    command = following + ("" if report.trains else " --trunk frozen")
    yield from command_lines(command, width if sys.stdout.isatty() else None, "next: ")
