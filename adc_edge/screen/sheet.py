"""Rows that fit a terminal: the least important ones, and the last pieces of each, are left out where it is small."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from adc_edge.terminal import escaped, spell

Piece = tuple[str, str]  # text, and its style
LABEL = 8  # columns of the label that begins a row


class RowSheet:
    """The rows of one drawing.

    Args:
        width: columns.
        encoding: of the terminal; texts are spelled in it before they are measured.
    """

    def __init__(self, width: int, encoding: str = "utf-8") -> None:
        self.width, self._encoding = width, encoding
        self._rows: list[tuple[int, Text]] = []

    def add(self, rank: int, label: str, *pieces: Piece | str, between: str = "  ", style: str = "") -> None:
        """Add a row below the others.

        Args:
            rank: the higher, the earlier the row is left out.
            label: begins the row; nothing: the row has none.
            pieces: shown as far as they fit; the first one is cut if it does not fit alone.
            between: stands between two pieces.
            style: of pieces that have none.
        """
        text = Text(no_wrap=True, end="")
        if label:
            text.append(self._spelled(f"{label:<{LABEL}}"), "bold")
        room = self.width - text.cell_len
        for number, piece in enumerate(pieces):
            content, own = (piece, style) if isinstance(piece, str) else piece
            new = Text(self._spelled((between if number else "") + content), own or style)
            if number and new.cell_len > room:
                break
            text.append_text(new)
            room -= new.cell_len
        self._rows.append((rank, self._cut(text)))

    def rule(self, rank: int, title: str) -> None:
        """Add a line across the terminal, with a title in it."""
        begun = f"── {title} "
        self.add(rank, "", (begun + "─" * max(0, self.width - self.spelled_width(begun)), "cyan"))

    def fitting(self, height: int) -> list[Text]:
        """Return the rows, without those of the highest ranks if there are more than ``height``."""
        kept = sorted(range(len(self._rows)), key=lambda number: self._rows[number][0])[: max(height, 0)]
        return [self._rows[number][1] for number in sorted(kept)]

    def room(self, taken: int = 0) -> int:
        """Return the columns that a row with a label has beside ``taken`` others."""
        return max(0, self.width - LABEL - taken)

    def spelled_width(self, text: str) -> int:
        """Return the columns that ``text`` takes."""
        return Text(self._spelled(text)).cell_len

    def _spelled(self, text: str) -> str:
        return spell(escaped(text), self._encoding)

    def _cut(self, text: Text) -> Text:
        if text.cell_len > self.width:
            dots = self._spelled("…")
            text.truncate(max(0, self.width - len(dots)), overflow="crop")
            text.append(dots[: self.width])
        return text


def rows_for(height: int) -> int:
    """Return the rows that a live area may take of a terminal: lines of the log stay in sight above it."""
    return max(1, height - max(4, height // 3))


def joined(rows: Sequence[Text]) -> Text:
    """Return rows as one text."""
    return Text("\n", no_wrap=True, end="").join(rows)
