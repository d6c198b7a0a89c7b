"""Markdown tables."""

from __future__ import annotations

from adc_edge.markdown import markdown_table


def test_columns_are_aligned_by_letter_and_the_last_letter_holds_for_the_rest() -> None:
    assert markdown_table(("name", "a", "b"), [("x", "1", "2")], "lr").splitlines() == [
        "| name | a | b |",
        "| --- | ---: | ---: |",
        "| x | 1 | 2 |",
    ]


def test_text_columns_are_the_default_and_a_table_may_lack_rows() -> None:
    assert markdown_table(("a", "b"), []) == "| a | b |\n| --- | --- |"
