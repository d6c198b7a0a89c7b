"""Tables for a terminal of any width, and the same as Markdown."""

from __future__ import annotations

import io
import re

import msgspec
import numpy as np
import pytest
from rich.console import Console

from adc_edge.evaluation.report.sheet import Sheet
from adc_edge.evaluation.report.tables import sheets, study_markdown, study_table, study_tables
from adc_edge.evaluation.report.views import views
from adc_edge.evaluation.study.records import Guess, Run
from tests.evaluation.report.test_views import STUDY, a_run, rises, some_runs

BUDGETS = (0.01, 0.02, 0.05, 0.1, 1.0)
LONGEST = "adc-batch@0.125/pca0.5:pca0.75"


LONG = [
    *some_runs(),
    *rises(0.8, 0.82, setting=LONGEST, share=0.02),
    *rises(0.1, setting="bottlenetpp@0.05/fp16", share=0.05),
]


def guessing(*finals: float, setting: str) -> list[Run]:
    """Runs judged on 200 test images of ten classes."""
    return [msgspec.structs.replace(run, guess=Guess(200, 0.1)) for run in rises(*finals, setting=setting, share=0.05)]


def all_sheets(runs: list[Run] | None = None, budgets: tuple[float, ...] = BUDGETS) -> list[Sheet]:
    return sheets(views(STUDY, runs or some_runs(), budgets))


def cells(sheet: Sheet, section: str, first: str) -> dict[str, str]:
    """A row as its columns name it."""
    rows = next(s.rows for s in sheet.sections if s.title == section)
    return dict(zip(sheet.columns, next(row for row in rows if row[0] == first), strict=True))


def printed(runs: list[Run], width: int = 100) -> str:
    screen = io.StringIO()
    console = Console(file=screen, width=width)
    for shown in study_tables(views(STUDY, runs, BUDGETS), width):
        console.print(shown)
    return screen.getvalue()


def test_equal_steps_in_percent_with_the_spread_over_seeds() -> None:
    finals = (0.80, 0.81, 0.79)
    shown = cells(all_sheets()[0], "ADC, the paper's", "adc@0.1")
    assert shown["accuracy %"] == "80.0 ± 1.0"
    assert shown["sem"] == f"{100 * np.std(finals, ddof=1) / np.sqrt(3):.2f}" == "0.58"
    assert (shown["share %"], shown["seeds"], shown["best %"]) == ("10", "3", "80.0")


def test_bytes_are_megabytes_with_three_digits() -> None:
    run = a_run("int8", (0.5, 0.6, 0.7, 0.8), share=0.25 * 1e6)  # 250 MB a step, 3 fifths of them up
    shown = cells(all_sheets([run])[0], "plain quantization", "int8")
    assert (shown["MB up"], shown["MB down"]) == ("6,000", "4,000")
    shown = cells(all_sheets([a_run("int8", (0.5, 0.6, 0.7, 0.8), share=150.0)])[0], "plain quantization", "int8")
    assert (shown["MB up"], shown["MB down"]) == ("3.6", "2.4")


def test_one_seed_shows_no_spread() -> None:
    shown = cells(all_sheets([a_run("int8", (0.5, 0.6, 0.7, 0.8), share=0.25)])[0], "plain quantization", "int8")
    assert (shown["accuracy %"], shown["sem"]) == ("80.0", "–")


def test_equal_bytes_side_by_side_too_many_as_a_dash_and_an_early_end_with_a_star() -> None:
    sheet = all_sheets()[1]
    assert sheet.columns == ("setting", "1 %", "2 %", "5 %", "10 %", "100 %")
    shown = cells(sheet, "Top-K", "topk@0.05")
    assert [shown["1 %"], shown["5 %"], shown["10 %"]] == ["–", "62.0 ± 2.6", "*62.0 ± 2.6"]
    shown = cells(sheet, "uncompressed", "none")
    assert [shown["10 %"], shown["100 %"]] == ["–", "90.0 ± 2.0"]


def test_a_budget_too_small_for_everyone_is_a_column_of_dashes() -> None:
    shown = all_sheets(budgets=(0.0001, 1.0))
    assert {row[1] for section in shown[1].sections for row in section.rows} == {"–"}
    assert [section.title for section in shown[2].sections] == ["up to 100 %"]
    nothing = all_sheets(budgets=(0.0001,))
    assert [sheet.sections for sheet in nothing[2:]] == [[], []]


def test_standings_claim_a_lead_beyond_noise_and_say_nothing_beside_adc_edge_itself() -> None:
    sheet = all_sheets()[2]
    shown = cells(sheet, "up to 5 %", "Top-K")
    assert (shown["best setting"], shown["tried"], shown["n"]) == ("topk@0.05", "1", "3")
    assert shown["accuracy %"] == "62.0 ± 1.5"  # 2.6 / √3
    ours, theirs = np.array((0.85, 0.88, 0.86)), np.array((0.60, 0.61, 0.65))
    error = np.std(ours - theirs, ddof=1) / np.sqrt(3)
    assert shown["difference"] == f"{100 * np.mean(ours - theirs):+.1f} ± {100 * error:.1f}" == "+24.3 ± 1.8"
    assert shown["claim"] == "ahead"
    itself = cells(sheet, "up to 5 %", "adc-edge")
    assert (itself["difference"], itself["claim"]) == ("", "")
    uncompressed = cells(sheet, "up to 100 %", "uncompressed")
    assert (uncompressed["difference"], uncompressed["claim"]) == ("-3.7 ± 0.9", "within noise")


def test_with_one_seed_nothing_is_claimed() -> None:
    runs = [run for run in some_runs() if run.seed == 0]
    shown = cells(all_sheets(runs)[2], "up to 5 %", "Top-K")
    assert (shown["difference"], shown["claim"]) == ("+25.0", "one seed: no claim")


def test_a_study_that_has_learned_nothing_says_so_and_claims_nothing() -> None:
    runs = [
        *guessing(0.10, 0.12, 0.11, setting="none"),
        *guessing(0.13, 0.14, 0.13, setting="none/pca1:pca2"),
        *guessing(0.05, 0.06, 0.05, setting="topk@0.05"),
    ]
    note = "Nothing was learned yet: uncompressed training has 11.0 % of 200 test images right after 4 epochs"
    sheet = all_sheets(runs)
    assert note in sheet[0].caption
    assert note in study_markdown(sheet)
    claims = {row[-1] for each in sheet if "claim" in each.columns for part in each.sections for row in part.rows}
    assert claims == {"", "nothing learned: no claim"}


def test_more_budgets_than_fit_side_by_side_make_a_second_table() -> None:
    budgets = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    both = [sheet for sheet in all_sheets(budgets=budgets) if sheet.title == "After equal bytes"]
    assert [len(sheet.columns) for sheet in both] == [6, 3]
    assert cells(both[1], "uncompressed", "none")["100 %"] == "90.0 ± 2.0"


@pytest.mark.parametrize("width", [80, 99, 100, 120])
def test_a_terminal_of_80_columns_or_more_shows_every_number_whole_and_breaks_no_word(width: int) -> None:
    text = printed(LONG, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    words = set(text.split())
    missing = [
        (row[0], cell)
        for sheet in all_sheets(LONG)
        for section in sheet.sections
        for row in section.rows
        for cell in row
        if not all(piece in words for piece in cell.split())
        and not all(piece in words for piece in cell.replace("/", " /").split())
    ]
    assert not missing
    assert "Left out" not in text


@pytest.mark.parametrize("width", [60, 80, 100])
def test_precisions_that_change_by_epoch_take_several_lines_and_none_is_broken(width: int) -> None:
    setting = "none/pca4,pca1,pca0.5:pca1,pca0.25+freeze3x2"
    text = printed([*some_runs(), *rises(0.8, 0.82, setting=setting, share=0.02)], width)
    assert max(map(len, text.splitlines())) <= width
    pieces = {"/pca4,pca1,pca0.5:", "pca1,pca0.25", "+freeze3x2"}
    assert setting in text.split() or pieces <= set(text.split())
    assert setting in study_markdown(all_sheets(rises(0.8, 0.82, setting=setting, share=0.02)))


@pytest.mark.parametrize("width", [50, 60, 70])
def test_a_narrower_terminal_leaves_out_the_least_important_columns_and_says_which(width: int) -> None:
    seen = views(STUDY, LONG, (0.05,))
    screen = io.StringIO()
    for shown in study_tables(seen, width):
        Console(file=screen, width=width).print(shown)
    text = screen.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "Left out of this narrow table: " in " ".join(text.split())
    words = set(text.split())
    kept = {"setting", "accuracy", "difference", "claim", "ahead", "topk@0.05", "/pca0.5:pca0.75"}
    assert kept <= words


@pytest.mark.parametrize("sheet", all_sheets(), ids=lambda sheet: sheet.title)
def test_a_terminals_table_has_every_row_and_a_title_for_each_section(sheet: Sheet) -> None:
    assert study_table(sheet, 100).row_count == sum(1 + len(section.rows) for section in sheet.sections)


def test_markdown_has_the_same_rows_each_with_its_group() -> None:
    shown = all_sheets()
    text = study_markdown(shown)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    expected = [
        [section.title, *(cell.replace("*", "\\*") for cell in row)]
        for sheet in shown
        for section in sheet.sections
        for row in section.rows
    ]
    assert [row for row in rows if row in expected] == expected
    assert len(rows) == len(expected) + 2 * len(shown)  # a heading and a rule each
    assert re.findall("^### (.*)", text, re.M) == [sheet.title for sheet in shown]
    assert rows[0][:2] == ["group", "setting"]
    assert rows[1][:3] == ["---", "---", "---:"]
