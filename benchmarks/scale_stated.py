"""The assumptions on boards, links, heads, networks and prices. They are written into the results."""

from __future__ import annotations

import msgspec
from scale_gloo import Network


class Board(msgspec.Struct, frozen=True):
    """A class of devices: seconds v one thread of the measured x86 processor; an assumption, not measured."""

    name: str
    factor: float


class LinkClass(msgspec.Struct, frozen=True):
    """A class of links: medians, and the spread of the logarithm over devices (rates) and messages (round trip)."""

    name: str
    rtt_ms: float
    up_mbit_s: float
    down_mbit_s: float
    rate_spread: float = 0.4
    rtt_spread: float = 0.25


class Head(msgspec.Struct, frozen=True):
    """The place of the head. ``pass_s`` and ``row_s`` None: as measured on one core of this machine."""

    name: str
    merged: int  # messages in a pass at most
    price_hour: float  # of a rank
    pass_s: float | None = None  # forward and backward, whatever the size
    row_s: float | None = None  # more for each token
    codec_s: float | None = None  # to decode and encode a message
    update_s: float | None = None


class Stated(msgspec.Struct, frozen=True):
    """The assumptions."""

    boards: list[Board]
    links: list[LinkClass]
    heads: list[Head]
    network: Network
    host_bit_s: float  # of a rank's network interface
    egress_gb: float  # price of a GB that leaves the trainers
    prices: str
    sync: int
    round_wait_s: float


STATED = Stated(
    [Board("Orin-like", 0.25), Board("ARM-board-like", 2.0)],
    [LinkClass("wired", 10, 100, 100), LinkClass("home", 30, 20, 100), LinkClass("cellular", 60, 5, 20)],
    [Head("CPU core", 1, 0.05), Head("GPU", 16, 3.0, 4e-3, 0.4e-6, 1e-3, 1e-3)],
    Network("10 Gbit/s, 50 µs one way", 50e-6, 10e9),
    10e9,
    0.08,
    "example prices in $ as of 2026-11: replace them by yours",
    1,
    0.02,
)
