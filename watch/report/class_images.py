"""The table of training images that a trainer's devices have of each class, and how unequal they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from adc_edge.watch.reading.session import ToldImages, WatchedSession
from adc_edge.watch.reading.state import WatchedRun
from adc_edge.watch.report.words import NOT_KNOWN

_COLUMNS, _ROWS = 12, 50  # classes and devices of a table
_NAME = 24


def class_sheet(run: WatchedRun) -> tuple[list[str], list[list[str]]] | None:
    """Return columns and rows, one row for each device and one for all; None if no device has told anything."""
    sessions = [session for session in run.sessions.values() if session.told is not None]
    if not sessions:
        return None
    totals = Counter[str]()
    for session in sessions:
        totals.update(_told(session).images)
    shown = [name for name, _ in totals.most_common(_COLUMNS)]
    others = ["others"] if len(totals) > len(shown) or any(_told(session).rest for session in sessions) else []
    columns = ["device", "classes", "largest / smallest", *(_short(name) for name in shown), *others]
    rows = [_row(session.device or session.key, _told(session), shown, others) for session in sessions[:_ROWS]]
    if len(sessions) > _ROWS:
        rows.append([f"and {len(sessions) - _ROWS} more", *[""] * (len(columns) - 1)])
    if len(sessions) > 1:
        rows.append(_row("all devices", _sum(sessions, totals), shown, others))
    return columns, rows


def _told(session: WatchedSession) -> ToldImages:
    assert session.told is not None
    return session.told


def _sum(sessions: Sequence[WatchedSession], totals: Counter[str]) -> ToldImages:
    rest = sum(_told(session).rest for session in sessions)
    most = max(_told(session).of for session in sessions)
    return ToldImages(dict(totals), 0 if rest else len(totals), most, rest)  # classes that are not listed may coincide


def _row(name: str, told: ToldImages, shown: Sequence[str], others: Sequence[str]) -> list[str]:
    counts = [f"{told.images.get(one, 0):,}" for one in shown]
    rest = sum(told.images.values()) - sum(told.images.get(one, 0) for one in shown) + told.rest
    classes = f"{told.classes:,}" if told.classes else NOT_KNOWN
    ratio = NOT_KNOWN if told.ratio is None else f"{told.ratio:,.0f}" if told.ratio >= 10 else f"{told.ratio:.2g}"
    return [name, f"{classes} of {told.of:,}" if told.of else classes, ratio, *counts, *(f"{rest:,}" for _ in others)]


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"
