"""The rows of a trainer's devices: as many columns as fit, in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from adc_edge.cloud_trainer.screen.fleet import DeviceRow, State
from adc_edge.screen.sheet import Piece, RowSheet
from adc_edge.screen.words import roughly

_NAME = 20  # longest name that is shown whole
_ORDER: tuple[State, ...] = ("connected", "away", "refused", "finished")
_COLOURS: dict[State, str] = {"connected": "green", "away": "yellow", "refused": "red", "finished": "cyan"}


class _Column(NamedTuple):
    head: str
    rank: int  # the higher, the earlier the column is left out
    cell: Callable[[DeviceRow, float, int], str]  # of a row, now, and the tokens of an image
    left: bool = False


_COLUMNS = (
    _Column("device", 0, lambda row, now, tokens: _short(row.name), left=True),
    _Column("state", 1, lambda row, now, tokens: _state(row, now), left=True),
    _Column("step", 2, lambda row, now, tokens: f"{row.step}/{row.steps}" if row.steps else f"{row.step}"),
    _Column("steps/s", 4, lambda row, now, tokens: _pace(row, now)),
    _Column("loss", 3, lambda row, now, tokens: "" if row.loss is None else f"{row.loss:.3f}"),
    _Column("train", 5, lambda row, now, tokens: _share(row.accuracy)),
    _Column("test", 8, lambda row, now, tokens: _share(row.test)),
    _Column("Mbit/s", 6, lambda row, now, tokens: _rates(row)),
    _Column("RTT ms", 7, lambda row, now, tokens: "" if row.rtt_ms is None else f"{row.rtt_ms:.1f}"),
    _Column("ξ", 9, lambda row, now, tokens: _ratio(row, tokens)),
    _Column("precision", 10, lambda row, now, tokens: "/".join(dict.fromkeys(row.precisions))),
    _Column("seen", 11, lambda row, now, tokens: _seen(row, now)),
)


def draw_table(sheet: RowSheet, rows: Sequence[DeviceRow], now: float, tokens: int, most: int, rank: int) -> None:
    """Add a head and at most ``most`` rows, connected devices first; the rest is counted in the last one.

    Args:
        sheet: takes the rows.
        rows: the devices.
        now: monotonic clock.
        tokens: of an image, before any is dropped.
        most: rows without the head.
        rank: of the head; rows have higher ones.
    """
    ordered = sorted(rows, key=lambda row: (_ORDER.index(row.state), row.name))
    shown = ordered if len(ordered) <= most else ordered[: max(most - 1, 0)]
    cells = [[column.cell(row, now, tokens) for column in _COLUMNS] for row in shown]
    widths = [
        max(sheet.spelled_width(text) for text in (column.head, *(row[number] for row in cells)))
        for number, column in enumerate(_COLUMNS)
    ]
    gap = "  " if sum(widths) + 2 * len(widths) <= sheet.width else " "
    fitting = _fitting(widths, sheet.width, len(gap))
    sheet.add(rank, "", *_pieces(sheet, [column.head for column in _COLUMNS], widths, fitting, "bold"), between=gap)
    for number, (row, texts) in enumerate(zip(shown, cells, strict=True), 1):
        pieces = _pieces(sheet, texts, widths, fitting, "dim" if row.state == "finished" else "")
        pieces[1:2] = [(pieces[1][0], "yellow" if row.paused else _COLOURS[row.state])] if len(pieces) > 1 else []
        sheet.add(rank + number, "", *pieces, between=gap)
    if left := ordered[len(shown) :]:
        states = [f"{sum(row.state == state for row in left)} {state}" for state in _ORDER]
        counts = ", ".join(text for text in states if not text.startswith("0 "))
        sheet.add(rank + 1, "", (f"and {len(left)} more: {counts}", "dim"))


def _fitting(widths: Sequence[int], room: int, gap: int) -> list[int]:
    """Return the numbers of the columns that fit; the most important ones are placed first."""
    fitting: list[int] = []
    for number in sorted(range(len(_COLUMNS)), key=lambda number: _COLUMNS[number].rank):
        taken = sum(widths[other] + gap for other in fitting)
        if taken + widths[number] <= room:
            fitting.append(number)
    return sorted(fitting)


def _pieces(
    sheet: RowSheet, texts: Sequence[str], widths: Sequence[int], fitting: list[int], style: str
) -> list[Piece]:
    pieces = []
    for number in fitting:
        blank = " " * (widths[number] - sheet.spelled_width(texts[number]))
        left = _COLUMNS[number].left
        pieces.append((f"{texts[number]}{blank}" if left else f"{blank}{texts[number]}", style))
    return pieces


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _state(row: DeviceRow, now: float) -> str:
    """Return the state, with the time since a device is away; a pause only while it is connected."""
    if row.state == "connected" and row.paused:
        return "paused"
    return f"away {_seen(row, now)}".rstrip() if row.state == "away" else row.state


def _seen(row: DeviceRow, now: float) -> str:
    return "" if row.seen is None else roughly(max(now - row.seen, 0.0))


def _pace(row: DeviceRow, now: float) -> str:
    return f"{row.pace.per_second(now):.3g}" if row.state == "connected" else ""


def _rates(row: DeviceRow) -> str:
    known = row.up_mbit_s is not None or row.down_mbit_s is not None
    return f"{_rate(row.up_mbit_s)}/{_rate(row.down_mbit_s)}" if known else ""


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _rate(mbit_s: float | None) -> str:
    if mbit_s is None:
        return "?"
    return ">10k" if mbit_s > 10_000 else f"{mbit_s:.0f}" if mbit_s >= 100 else f"{mbit_s:.1f}"


def _ratio(row: DeviceRow, tokens: int) -> str:
    if row.ratio is None:
        return ""
    images, clusters, kept = row.ratio
    return f"{clusters / max(images, 1) * kept / tokens:.3g}"
