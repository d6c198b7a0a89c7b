"""The result of a measurement of the link: as JSON, as tables and as lines of text."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import UNSET, UnsetType
from rich.table import Table

from adc_edge.calibration.link.samples import Losses
from adc_edge.planning.profile import TrainerShare, share_text

_WIDE = 100  # columns of a terminal from which on the tables show everything


class LoadFigures(msgspec.Struct, frozen=True):
    """The link under one load; rates in Mbit/s. A figure that was not measured is None."""

    seconds: float
    up_mbit_s: float | None = None
    up_p10_mbit_s: float | None = None
    down_mbit_s: float | None = None
    down_p10_mbit_s: float | None = None
    rtt_p50_ms: float | None = None  # of pings on another connection
    rtt_p95_ms: float | None = None
    rtt_p99_ms: float | None = None
    rpm: float | None = None  # round trips a minute


class SizeFigures(msgspec.Struct, frozen=True):
    """Messages of one size, one after the other. Their rates and times include one round trip."""

    bytes: int
    up_count: int = 0
    up_mbit_s: float | None = None  # median
    up_p10_mbit_s: float | None = None
    up_ms: float | None = None  # median time until the answer is there
    down_count: int = 0
    down_mbit_s: float | None = None
    down_p10_mbit_s: float | None = None
    down_ms: float | None = None


class LinkMoment(msgspec.Struct, frozen=True):
    """One point of the series: rates and round trip in a short window."""

    t: float  # seconds since the start of the measurement
    load: str  # idle, up, down, both
    up_mbit_s: float | None
    down_mbit_s: float | None
    rtt_ms: float | None


class LinkReport(msgspec.Struct, frozen=True, kw_only=True):
    """The measured link. Rates count every byte on the socket, both framings included, and no retransmission."""

    time: str  # ISO 8601, UTC
    trainer: str
    trainer_version: str | None  # None: 0.7 or older
    seconds: float
    bytes: int  # spent, both directions, with this side's retransmissions
    bytes_up: int
    bytes_down: int
    rtt_ms: float  # median without load
    rtt_min_ms: float
    rtt_p50_ms: float
    rtt_p95_ms: float
    rtt_p99_ms: float
    jitter_ms: float  # mean difference of two successive round trips
    pings: int
    up_mbit_s: float | None
    up_p10_mbit_s: float | None
    down_mbit_s: float | None
    down_p10_mbit_s: float | None
    both_up_mbit_s: float | None
    both_down_mbit_s: float | None
    rtt_up_ms: float | None  # median under each load
    rtt_down_ms: float | None
    rtt_both_ms: float | None
    rpm: float | None  # under load in both directions
    loads: dict[str, LoadFigures]  # up, down, both
    by_size: list[SizeFigures]
    retransmitted_up: Losses | None
    retransmitted_down: Losses | None
    congestion: str | None  # of this end
    congestion_down: str | None  # of the trainer's end
    bbr: bool | None  # whether this machine offers it
    bulk: bool  # False: the trainer answers Pings of 64 KiB at most
    paused_s: float  # pauses that the trainer asked for while it served others
    notes: list[str]
    series: list[LinkMoment]
    share: TrainerShare | UnsetType = UNSET  # of the trainer, if it worked for other devices


def link_tables(report: LinkReport, width: int) -> Iterator[Table]:
    """Yield the tables for a terminal of ``width`` columns."""
    wide = width >= _WIDE
    rates = ["up Mbit/s", "p10", "down Mbit/s", "p10"] if wide else ["up", "p10", "down", "p10"]
    columns = [*rates, *(["RTT p50 ms", "p95 ms", "p99 ms"] if wide else ["RTT p50", "p95", "p99"]), "RPM"]
    units = "" if wide else "; Mbit/s, ms"
    table = Table(title=f"link to {report.trainer}, measured for {report.seconds:.1f} s{units}")
    for column in ("load", *columns):
        table.add_column(column, justify="left" if column == "load" else "right")
    idle = (report.rtt_p50_ms, report.rtt_p95_ms, report.rtt_p99_ms, 60e3 / max(report.rtt_p50_ms, 1e-3))
    table.add_row("none", "", "", "", "", *_cells(idle))
    for name, load in report.loads.items():
        given = (load.up_mbit_s, load.up_p10_mbit_s, load.down_mbit_s, load.down_p10_mbit_s)
        trips = (load.rtt_p50_ms, load.rtt_p95_ms, load.rtt_p99_ms, load.rpm)
        used = [name != "down"] * 2 + [name != "up"] * 2
        table.add_row(name, *(_cell(v) if u else "" for v, u in zip(given, used, strict=True)), *_cells(trips))
    yield table
    sizes = Table(title="messages of our sizes, one round trip included")
    for column in ("size", "up Mbit/s", "p10", "ms", "down Mbit/s", "p10", "ms"):
        sizes.add_column(column, justify="right")
    for size in report.by_size:
        up = (size.up_mbit_s, size.up_p10_mbit_s, size.up_ms)
        sizes.add_row(_size(size.bytes), *_cells(up), *_cells((size.down_mbit_s, size.down_p10_mbit_s, size.down_ms)))
    yield sizes


def link_lines(report: LinkReport) -> Iterator[str]:
    """Yield the lines below the tables."""
    yield f"idle     RTT min {report.rtt_min_ms:.2f} ms, jitter {report.jitter_ms:.2f} ms, {report.pings} pings"
    there = report.congestion_down or "unknown"
    yield f"sending  {report.congestion or 'unknown'} up, {there} down; {_bbr(report)}"
    if report.retransmitted_up or report.retransmitted_down:
        yield f"resent   up {_lost(report.retransmitted_up)}; down {_lost(report.retransmitted_down)}"
    yield f"spent    {_megabytes(report.bytes_up)} up, {_megabytes(report.bytes_down)} down, {report.seconds:.1f} s"
    if report.share:
        yield f"share    {share_text(report.share)}; round trips are without that wait"
    for note in report.notes:
        yield f"note     {note}"


def _bbr(report: LinkReport) -> str:
    if report.congestion == "bbr":
        return "BBR is in use here"
    if report.bbr is None:
        return "this system does not tell whether BBR is available"
    return "BBR is available here" if report.bbr else "BBR is missing here: sudo modprobe tcp_bbr"


def _lost(found: Losses | None) -> str:
    if found is None:
        return "unknown"
    return f"{found.share:.2%} (random {found.random:.2%}, queue {found.queue:.2%})"


def _cells(values: tuple[float | None, ...]) -> list[str]:
    return [_cell(value) for value in values]


def _cell(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def _size(size: int) -> str:
    return f"{size / 1e6:g} MB" if size >= 1e6 else f"{size / 1e3:g} kB"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
