"""Tables of the views, for a terminal of any width and as Markdown. Accuracies and shares are in %."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from adc_edge.evaluation.report.claims import LEVEL
from adc_edge.evaluation.report.fleet_table import fleets_sheet
from adc_edge.evaluation.report.groups import METHOD_GROUPS, OURS
from adc_edge.evaluation.report.sheet import CLAIM, NONE, Section, Sheet, megabytes, percent, share_text, with_spread
from adc_edge.evaluation.report.views import Views, records
from adc_edge.evaluation.study.setting import FREEZE
from adc_edge.evaluation.totals.table import pictures_note, steps_section, totals_sheet
from adc_edge.markdown import markdown_table
from adc_edge.terminal import fitting_table

_BUDGETS = 5  # columns of one table
_STEPS_CAPTION = (
    "share: bytes of a step, both ways, relative to uncompressed. accuracy: mean ± standard deviation over seeds; sem: "
    "standard error of the mean; best: highest accuracy until then. *: a run ended with over 5 % of the steps left."
)
_BYTES_CAPTION = (
    "accuracy in %, mean ± standard deviation over seeds, at the last evaluation within a budget: a share of the bytes "
    f"of an uncompressed run. {NONE}: no evaluation within it. *: a run ended with over 5 % of the budget left."
)
_STANDINGS_CAPTION = (
    "accuracy: mean ± standard error over n seeds. tried: settings of the group within the budget. difference: accuracy"
    " of adc-edge's best minus this one's, in points: mean ± standard error over the seeds of both. claim: whether "
    f"adc-edge is ahead or behind by a paired t-test over seeds (p < {LEVEL:g}). *: a run ended early."
)


def study_tables(seen: Views, width: int) -> Iterator[Table]:
    """All tables, for a terminal of ``width`` columns."""
    for sheet in sheets(seen):
        yield study_table(sheet, width)


def sheets(seen: Views) -> list[Sheet]:
    """All tables: fleets if there are any, equal steps, whole trainings, equal bytes, and the standings of both."""
    whole = [totals_sheet(seen.totals, seen.beside, seen.evaluations)] if len(seen.totals) else []
    methods = [steps_sheet(seen), *whole, *bytes_sheets(seen), *standings_sheets(seen)]
    if seen.fleet:
        methods = [sheet._replace(title=f"{sheet.title}, {seen.fleet}") for sheet in methods]
    return [fleets_sheet(seen), *methods] if len(seen.fleets) else methods


def steps_sheet(seen: Views) -> Sheet:
    """The table of every setting after the study's epochs."""
    columns = ("setting", "seeds", "share %", "accuracy %", "sem", "best %", "MB up", "MB down")
    rows = [(row["group"], _steps_cells(row)) for row in records(seen.steps)]
    caption = _captioned(f"{seen.note} {_STEPS_CAPTION}" if seen.note else _STEPS_CAPTION, seen)
    optional = ("sem", "best %", "MB down", "MB up", "seeds")
    sections = [*steps_section(seen.beside, seen.pictures), *_sections(rows)]
    return Sheet("After equal steps", "group", columns, 1, sections, caption, optional)


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
        columns = ("setting", *(f"{share_text(budget)} %" for budget in shown))
        yield Sheet("After equal bytes", "group", columns, 1, _sections(rows), _captioned(_BYTES_CAPTION, seen))


def standings_sheets(seen: Views) -> Iterator[Sheet]:
    """Tables of the best setting of each group by budget, one for each view."""
    columns = ("group", "best setting", "share %", "accuracy %", "n", "tried", "difference", CLAIM)
    titles = {"steps": "After equal steps: the best at a share", "bytes": "After equal bytes: the best within a budget"}
    for view, title in titles.items():
        frame = seen.standings[seen.standings["view"] == view]
        rows = [(f"up to {share_text(row['budget'])} %", _standing_cells(row)) for row in records(frame)]
        sections = [Section(name, [cells for of, cells in rows if of == name]) for name in dict.fromkeys(dict(rows))]
        caption = _captioned(_STANDINGS_CAPTION, seen)
        yield Sheet(title, "budget", columns, 2, sections, caption, ("tried", "n", "share %", "accuracy %"))


def study_table(sheet: Sheet, width: int) -> Table:
    """One table in the first form that a terminal of ``width`` columns holds, without a broken word if there is one.

    Columns lie closer, then settings stand below their groups, long cells take several lines, and columns are left out.
    """
    return fitting_table(_forms(sheet), width)


def _forms(sheet: Sheet) -> Iterator[Table]:
    yield _table(sheet, roomy=True)
    yield _table(sheet)
    if sheet.columns[:2] == ("group", "best setting"):
        sheet = _stacked(sheet)
        yield _table(sheet)
    sheet = _in_lines(sheet)
    yield _table(sheet)
    caption = sheet.caption
    for number, name in enumerate(sheet.optional, 1):
        gone = f"Left out of this narrow table: {', '.join(sheet.optional[:number])}; index.html has them."
        sheet = _without(sheet, name)._replace(caption=f"{caption} {gone}")
        yield _table(sheet)


def _table(sheet: Sheet, roomy: bool = False) -> Table:
    result = Table(
        title=sheet.title,
        box=SIMPLE_HEAD,
        show_edge=roomy,
        padding=(0, 1 if roomy else 0, 0, 0),
        pad_edge=False,
        caption=sheet.caption,
        caption_justify="left",
    )
    for number, name in enumerate(sheet.columns):
        side: Literal["left", "right"] = "left" if number < sheet.words or name == CLAIM else "right"
        result.add_column(name, justify=side, no_wrap=True, overflow="fold")
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


def _in_lines(sheet: Sheet) -> Sheet:
    """The sheet with precisions below their method, and claims in two lines."""
    sections = [
        Section(
            title, [tuple(_broken(cell.replace("/", "\n   /").replace(": ", ":\n")) for cell in row) for row in rows]
        )
        for title, rows in sheet.sections
    ]
    return sheet._replace(sections=sections)


def _broken(cell: str) -> str:
    """The cell with precisions that change by epoch in two lines, and a freeze in a third."""
    if not _BY_EPOCH.search(cell):
        return cell
    return cell.replace(":", ":\n    ").replace(FREEZE, f"\n   {FREEZE}")


def _without(sheet: Sheet, name: str) -> Sheet:
    at = sheet.columns.index(name)
    sections = [Section(title, [row[:at] + row[at + 1 :] for row in rows]) for title, rows in sheet.sections]
    return sheet._replace(columns=sheet.columns[:at] + sheet.columns[at + 1 :], sections=sections)


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


def _captioned(caption: str, seen: Views) -> str:
    """The caption with the bytes of the images sent once, or why they are not known."""
    return caption + pictures_note(seen.beside, seen.pictures)


_BY_EPOCH = re.compile(r",[a-z]")  # within a list of precisions: in sentences a space follows, in numbers a digit
_NOBODY = pd.DataFrame(columns=["group", "setting"])


def _sections(rows: Sequence[tuple[str, tuple[str, ...]]]) -> list[Section]:
    """Sections of rows by group, in the order of METHOD_GROUPS."""
    by_group = [Section(group, [cells for name, cells in rows if name == group]) for group in METHOD_GROUPS]
    return [section for section in by_group if section.rows]


def _steps_cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["setting"],
        str(row["seeds"]),
        share_text(row["share"]),
        _accuracy(row, "std"),
        percent(row["sem"], 2),
        percent(row["best"]),
        megabytes(row["bytes_up"]),
        megabytes(row["bytes_down"]),
    )


def _standing_cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["group"],
        row["setting"],
        share_text(row["share"]),
        _accuracy(row, "sem"),
        str(row["seeds"]),
        str(row["tried"]),
        _difference(row),
        row["claim"] if isinstance(row["claim"], str) else "",
    )


def _accuracy(row: dict[str, Any], spread: str) -> str:
    """Text as ``77.3 ± 0.4``, the spread only if it is known; a star first if a run ended early."""
    return ("*" if row["ended"] else "") + with_spread(row["accuracy"], row[spread])


def _difference(row: dict[str, Any]) -> str:
    """Text as ``+24.3 ± 1.7``, over common seeds if there are any; nothing beside adc-edge itself."""
    points = row["paired"] if row["paired_seeds"] else row["difference"]
    if math.isnan(points):
        return ""
    error = "" if math.isnan(row["paired_sem"]) else f" ± {percent(row['paired_sem'])}"
    return f"{round(100 * points, 1) + 0.0:+.1f}{error}"  # + 0.0: never -0.0
