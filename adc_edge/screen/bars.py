"""Bars of characters: a share that is done, and shares of a whole side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from adc_edge.screen.sheet import Piece

FULL, EMPTY = "█", "░"
_LEAST = 0.005  # share of a part that is named


class Part(NamedTuple):
    """A part of a whole."""

    name: str
    share: float
    letter: str  # stands for it where there are no colours
    colour: str


def progress_bar(share: float, width: int) -> list[Piece]:
    """Return a bar of which ``share`` is full."""
    full = round(max(0.0, min(share, 1.0)) * width)
    return [(FULL * full, "green"), (EMPTY * (width - full), "dim")]


def split_bar(parts: Sequence[Part], width: int, colours: bool) -> list[Piece]:
    """Return a bar of ``width`` columns that the parts divide by their shares; without colours it is of letters."""
    cells = _cells([part.share for part in parts], width)
    marks = [FULL if colours else part.letter for part in parts]
    return [(mark * count, part.colour) for mark, count, part in zip(marks, cells, parts, strict=True)]


def split_legend(parts: Sequence[Part], colours: bool, room: int) -> list[Piece]:
    """Return name and share of the largest parts that fit ``room`` columns, in the order of the bar."""
    texts = [f"{'' if colours else f'{part.letter} '}{part.name} {100 * part.share:.0f} %" for part in parts]
    kept: list[int] = []
    for number in sorted(range(len(parts)), key=lambda number: -parts[number].share):
        if parts[number].share >= _LEAST and sum(len(texts[other]) + 2 for other in [*kept, number]) - 2 <= room:
            kept.append(number)
    return [(texts[number], parts[number].colour) for number in sorted(kept)]


def _cells(shares: Sequence[float], width: int) -> list[int]:
    """Divide ``width`` columns by largest remainders; shares of less than 1 in all leave the rest empty."""
    whole = max(1.0, sum(shares))
    exact = [width * share / whole for share in shares]
    cells = [int(value) for value in exact]
    left = round(sum(exact)) - sum(cells)
    for number in sorted(range(len(exact)), key=lambda number: cells[number] - exact[number])[:left]:
        cells[number] += 1
    return cells
