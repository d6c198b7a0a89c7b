"""Rows that fit a terminal, whatever is in them."""

from __future__ import annotations

import pytest

from adc_edge.screen.sheet import RowSheet, rows_for

NASTY = "\x1b[2Jname\r\n\x9b31m[red]x[/red]\u202egnp"


def shown(sheet: RowSheet, height: int = 99) -> list[str]:
    return [row.plain for row in sheet.fitting(height)]


def test_the_least_important_rows_are_left_out_where_the_terminal_is_low() -> None:
    sheet = RowSheet(40)
    for rank, text in ((5, "title"), (0, "step"), (9, "bytes"), (1, "loss")):
        sheet.add(rank, "", text)
    assert shown(sheet) == ["title", "step", "bytes", "loss"]
    assert shown(sheet, 2) == ["step", "loss"]
    assert shown(sheet, 0) == []


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [1, 5, 20, 80])
def test_no_row_is_wider_than_the_terminal_in_any_encoding(width: int, encoding: str) -> None:
    sheet = RowSheet(width, encoding)
    sheet.add(0, "sends", "ξ≥0.25 日本語のデバイス", "and a piece that may be left out", ("█" * 30, "green"))
    sheet.rule(0, "ξ → trainer")
    assert all(row.cell_len <= width for row in sheet.fitting(9))


def test_pieces_that_do_not_fit_are_left_out_whole() -> None:
    sheet = RowSheet(20)
    sheet.add(0, "link", "23.4 up", "RTT 12.3 ms")
    assert shown(sheet) == ["link    23.4 up"]


def test_names_with_control_sequences_and_markup_are_shown_escaped() -> None:
    sheet = RowSheet(200)
    sheet.add(0, "", NASTY)
    (row,) = shown(sheet)
    assert row == r"\x1b[2Jname\x0d\x0a\x9b31m[red]x[/red]\u202egnp"


@pytest.mark.parametrize("height", [1, 5, 12, 24, 40])
def test_lines_of_the_log_stay_in_sight_above_the_area(height: int) -> None:
    assert rows_for(height) <= max(1, height - 4)
