"""Tables of the views, for a terminal of 80 columns or more and as Markdown. Accuracies and shares are in %."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from adc_edge.evaluation.report.views import METHOD_GROUPS, OURS, Views, records, views
from adc_edge.evaluation.study.records import Run, Study
from adc_edge.markdown import markdown_table

NONE = "–"
_BUDGETS = 5  # columns of one table
_WIDE = 100  # columns of a terminal on which every table has its full form
_STEPS_CAPTION = (
    "share: bytes of a step, both ways, relative to uncompressed. accuracy: mean ± standard deviation over seeds; sem: "
    "standard error of the mean; best: highest accuracy until then. *: a run ended with over 5 % of the steps left."
)
_BYTES_CAPTION = (
    "accuracy in %, mean ± standard deviation over seeds, at the last evaluation within a budget: a share of the bytes "
    f"of an uncompressed run. {NONE}: no evaluation within it. *: a run ended with over 5 % of the budget left."
)
_STANDINGS_CAPTION = (
    "accuracy: mean ± standard error over n seeds. tried: settings of the group within the budget. ahead: accuracy of "
    "adc-edge's best minus this one's, in points and in standard errors of the difference (σ). paired: the same for "
    "the differences seed by seed. *: a run ended early."
)


class Section(NamedTuple):
    """Rows under one title; every cell is text."""

    title: str
    rows: list[tuple[str, ...]]


class Sheet(NamedTuple):
    """A table in sections."""

    title: str
    kind: str  # of the sections' titles: group or budget
    columns: tuple[str, ...]
    words: int  # number of leading columns that hold text
    sections: list[Section]
    caption: str


def study_tables(study: Study, runs: Sequence[Run], budgets: Sequence[float], width: int = _WIDE) -> Iterator[Table]:
    """All tables, for a terminal of ``width`` columns."""
    for sheet in sheets(views(study, runs, budgets)):
        yield study_table(sheet, narrow=width < _WIDE)


def sheets(seen: Views) -> list[Sheet]:
    """All tables: equal steps, equal bytes, and the standings of both."""
    return [steps_sheet(seen), *bytes_sheets(seen), *standings_sheets(seen)]


def steps_sheet(seen: Views) -> Sheet:
    """The table of every setting after the study's epochs."""
    columns = ("setting", "seeds", "share %", "accuracy %", "sem", "best %", "MB up", "MB down")
    rows = [(row["group"], _steps_cells(row)) for row in records(seen.steps)]
    return Sheet("After equal steps", "group", columns, 1, _sections(rows), _STEPS_CAPTION)


def bytes_sheets(seen: Views) -> Iterator[Sheet]:
    """Tables of every setting at each budget, five budgets to a table."""
    cells = {(row["setting"], row["budget"]): _accuracy(row, "std") for row in records(seen.bytes)}
    settings = pd.concat([frame[["group", "setting"]] for frame in (seen.steps, seen.bytes) if len(frame)] or [_NOBODY])
    settings = settings.drop_duplicates("setting")
    for first in range(0, len(seen.budgets), _BUDGETS):
        shown = seen.budgets[first : first + _BUDGETS]
        rows = [
            (row["group"], (row["setting"], *(cells.get((row["setting"], budget), NONE) for budget in shown)))
            for row in records(settings)
        ]
        columns = ("setting", *(f"{_share(budget)} %" for budget in shown))
        yield Sheet("After equal bytes", "group", columns, 1, _sections(rows), _BYTES_CAPTION)


def standings_sheets(seen: Views) -> Iterator[Sheet]:
    """Tables of the best setting of each group by budget, one for each view."""
    columns = ("group", "best setting", "share %", "accuracy %", "n", "tried", "ahead", "paired")
    titles = {"steps": "After equal steps: the best at a share", "bytes": "After equal bytes: the best within a budget"}
    for view, title in titles.items():
        frame = seen.standings[seen.standings["view"] == view]
        rows = [(f"up to {_share(row['budget'])} %", _standing_cells(row)) for row in records(frame)]
        sections = [Section(name, [cells for of, cells in rows if of == name]) for name in dict.fromkeys(dict(rows))]
        yield Sheet(title, "budget", columns, 2, sections, _STANDINGS_CAPTION)


def study_table(sheet: Sheet, narrow: bool = False) -> Table:
    """One table for a terminal. If it is ``narrow``, a setting stands below its group, and columns lie closer."""
    if narrow and sheet.words > 1:
        sheet = _stacked(sheet)
    result = Table(
        title=sheet.title,
        box=SIMPLE_HEAD,
        show_edge=not narrow,
        padding=(0, 0 if narrow else 1, 0, 0),
        pad_edge=False,
        caption=sheet.caption,
        caption_justify="left",
    )
    for number, name in enumerate(sheet.columns):
        setting = name.endswith("setting")  # the only column that may be wrapped
        result.add_column(
            name, justify="left" if number < sheet.words else "right", no_wrap=not setting, overflow="fold"
        )
    for section in sheet.sections:
        result.add_row(f"[bold]{escape(section.title)}[/]")
        for row in section.rows:
            style = "green" if OURS in (row[0].partition("\n")[0], section.title) else ""
            result.add_row(*map(escape, row), style=style)
        result.add_section()
    return result


def _stacked(sheet: Sheet) -> Sheet:
    """The sheet with its two leading columns in one, each cell in lines of its own."""
    sections = [
        Section(title, [(f"{group}\n  {setting}", *rest) for group, setting, *rest in rows])
        for title, rows in sheet.sections
    ]
    return sheet._replace(columns=("group and setting", *sheet.columns[2:]), words=1, sections=sections)


def study_markdown(shown: Sequence[Sheet]) -> str:
    """All tables as GitHub Markdown under headings of third rank, for docs/results.md."""
    return "\n".join(_markdown(sheet) for sheet in shown)


def _markdown(sheet: Sheet) -> str:
    rows = [(section.title, *row) for section in sheet.sections for row in section.rows]
    cells = [[_escaped(cell) for cell in row] for row in ((sheet.kind, *sheet.columns), *rows)]
    table = markdown_table(cells[0], cells[1:], "l" * (sheet.words + 1) + "r")
    caption = sheet.caption[0].upper() + sheet.caption[1:]
    return f"### {sheet.title}\n\n{table}\n\n{_escaped(caption)}\n"


def _escaped(text: str) -> str:
    return text.replace("*", "\\*").replace("|", "\\|")


_NOBODY = pd.DataFrame(columns=["group", "setting"])


def _sections(rows: Sequence[tuple[str, tuple[str, ...]]]) -> list[Section]:
    """Sections of rows by group, in the order of METHOD_GROUPS."""
    by_group = [Section(group, [cells for name, cells in rows if name == group]) for group in METHOD_GROUPS]
    return [section for section in by_group if section.rows]


def _steps_cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["setting"],
        str(row["seeds"]),
        _share(row["share"]),
        _accuracy(row, "std"),
        _percent(row["sem"], 2),
        _percent(row["best"]),
        _megabytes(row["bytes_up"]),
        _megabytes(row["bytes_down"]),
    )


def _standing_cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["group"],
        row["setting"],
        _share(row["share"]),
        _accuracy(row, "sem"),
        str(row["seeds"]),
        str(row["tried"]),
        _ahead(row["ahead"], row["ahead_sigmas"]),
        _ahead(row["paired"], row["paired_sigmas"]),
    )


def _accuracy(row: dict[str, Any], spread: str) -> str:
    """Text as ``77.3 ± 0.4``, the spread only if it is known; a star first if a run ended early."""
    error = "" if math.isnan(row[spread]) else f" ± {_percent(row[spread])}"
    return ("*" if row["ended"] else "") + _percent(row["accuracy"]) + error


def _ahead(difference: float, sigmas: float) -> str:
    if math.isnan(difference):
        return ""
    points = f"{round(100 * difference, 1) + 0.0:+.1f}"  # + 0.0: never -0.0
    return points if math.isnan(sigmas) else f"{points} ({round(sigmas, 1) + 0.0:.{0 if abs(sigmas) >= 10 else 1}f} σ)"


def _percent(share: float, digits: int = 1) -> str:
    return NONE if math.isnan(share) else f"{100 * share:.{digits}f}"


def _share(share: float) -> str:
    """A share as percent with three significant digits."""
    return f"{100 * share:.3g}"


def _megabytes(size: float) -> str:
    """Bytes as megabytes with three significant digits."""
    value = size / 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
