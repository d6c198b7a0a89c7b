"""A quick measurement of the link by a few pings, before a run and without a session."""

from __future__ import annotations

import time
from typing import NamedTuple

from adc_edge.wire.channel import Channel
from adc_edge.wire.link_messages import Ping
from adc_edge.wire.message import CHUNK_BYTES

PROBE_BYTES = CHUNK_BYTES  # of a ping, at most
_PROBES, _PROBE_S = 3, 1.5  # of each kind; no more once they have taken so many seconds
_ANSWER_MS = 60_000  # a trainer that computes another device's step answers late


class LinkTimes(NamedTuple):
    """A link as pings found it, in seconds."""

    rtt: float  # of an empty message
    up_byte: float  # of a byte more, up
    down_byte: float


def probe_link(channel: Channel, up_bytes: int, down_bytes: int, wait_s: float | None) -> LinkTimes:
    """Measure the link by pings as large as the messages that will be sent, 64 KiB at most.

    Args:
        channel: to the trainer. It is opened anew, also when the link breaks, and stays open.
        up_bytes: size of the messages.
        down_bytes: size of their answers.
        wait_s: how long to try to reach the trainer; None: for ever.

    Raises:
        LinkError, RefusedError, Stopped: see ``Channel.open``.
    """
    sizes = (0, 0), (min(up_bytes, PROBE_BYTES), 0), (0, min(down_bytes, PROBE_BYTES))
    found: list[list[float]] = []
    channel.open(wait_s, lambda: found.append([shortest_ping(channel, *size) for size in sizes]))
    empty, up, down = found[-1]
    return LinkTimes(empty, max(0.0, up - empty) / max(1, sizes[1][0]), max(0.0, down - empty) / max(1, sizes[2][1]))


def shortest_ping(channel: Channel, up_bytes: int, down_bytes: int) -> float:
    """Return the seconds of the shortest of a few pings: the first one travels a few packets at a time (slow start)."""
    times: list[float] = []
    while len(times) < _PROBES and sum(times) < _PROBE_S:
        start = time.monotonic()
        channel.send(Ping(0, down_bytes, up_bytes), bytes(up_bytes))
        channel.receive(_ANSWER_MS)
        times.append(time.monotonic() - start)
    return min(times)
