"""Markdown tables, for reports and for pages made by benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_RULES = {"l": "---", "r": "---:"}


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "l") -> str:
    """Return a GitHub table, without a newline at its end.

    Args:
        header: names of the columns.
        rows: cells as Markdown; a cell that may hold ``|`` is escaped by the caller.
        align: ``l`` or ``r`` for each column; the last letter holds for the columns after it.
    """
    rule = [_RULES[letter] for letter in align.ljust(len(header), align[-1])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))
