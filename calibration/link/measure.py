"""Measurement of the link over the trainer's own socket: round trips when idle, then the rate of each direction.

Rates are measured at the receiver's pace: pieces are kept in flight, each acknowledged, and the bytes acknowledged
after the first answer are divided by the time they took. The window grows while that does not lengthen the round
trip, so a slow link is not flooded and a long one is filled.
"""

from __future__ import annotations

import itertools
import logging
import time
from typing import NamedTuple

import numpy as np

from adc_edge.errors import LinkError
from adc_edge.wire.channel import Channel
from adc_edge.wire.connection import LinkLost
from adc_edge.wire.messages import Ping, Pong

logger = logging.getLogger(__name__)
PIECE_BYTES = 16 * 1024
_WINDOW_PIECES = 512  # 8 MiB: 100 Mbit/s at 600 ms
_PINGS = 200
_ANSWER_MS = 30_000.0


class LinkReport(NamedTuple):
    """The measured link; rates count every byte on the socket, both framings included."""

    trainer: str
    seconds: float
    rtt_ms: float
    rtt_min_ms: float
    rtt_p50_ms: float
    rtt_p95_ms: float
    rtt_p99_ms: float
    pings: int
    up_mbit_s: float
    down_mbit_s: float


def measure_link(channel: Channel, seconds: float) -> LinkReport:
    """Measure the link of an open channel: a fifth of the time for round trips, the rest for both directions.

    Raises:
        LinkError: the link broke or stopped answering.
        RefusedError: the trainer refused.
    """
    nonces = itertools.count(1)
    start = time.monotonic()
    try:
        logger.info("measuring round trips")
        times_ms = _round_trips(channel, nonces, seconds / 5)
        base_s = float(np.median(times_ms)) / 1e3
        logger.info("measuring the rate up")
        up = _fill(channel, nonces, seconds * 2 / 5, base_s, up=True)
        logger.info("measuring the rate down")
        down = _fill(channel, nonces, seconds * 2 / 5, base_s, up=False)
    except LinkLost as lost:
        raise LinkError(
            f"the link to {channel.endpoint} broke while it was measured ({lost})", "a link that lasts", "try again"
        ) from None
    p50, p95, p99 = (float(np.percentile(times_ms, share)) for share in (50, 95, 99))
    return LinkReport(
        channel.endpoint, time.monotonic() - start, p50, min(times_ms), p50, p95, p99, len(times_ms), up, down
    )


def _round_trips(channel: Channel, nonces: itertools.count[int], seconds: float) -> list[float]:
    times_ms: list[float] = []
    end = time.monotonic() + seconds
    while not times_ms or (time.monotonic() < end and len(times_ms) < _PINGS):
        sent = time.monotonic()
        channel.send(Ping(next(nonces), reply_bytes=0))
        channel.receive(_ANSWER_MS)
        times_ms.append((time.monotonic() - sent) * 1e3)
    return times_ms


def _fill(channel: Channel, nonces: itertools.count[int], seconds: float, base_s: float, up: bool) -> float:
    """Return the rate of one direction in Mbit/s."""
    ballast = bytes(PIECE_BYTES if up else 0)
    in_flight: dict[int, float] = {}
    window = 2
    end = time.monotonic() + seconds
    first: tuple[float, int] | None = None
    last = (0.0, 0)
    while True:
        while len(in_flight) < window and time.monotonic() < end:
            nonce = next(nonces)
            in_flight[nonce] = time.monotonic()
            channel.send(Ping(nonce, 0 if up else PIECE_BYTES, len(ballast), nonce), ballast)
        if not in_flight:
            break
        answer, _ = channel.receive(_ANSWER_MS)
        assert isinstance(answer, Pong)
        now = time.monotonic()
        # Queueing means that the link is full: a larger window would only lengthen the queue.
        if now - in_flight.pop(answer.nonce) < 2 * base_s + 0.05:
            window = min(window + 1, _WINDOW_PIECES)
        last = (now, channel.totals()[0 if up else 1])
        first = first or last
    assert first is not None
    return (last[1] - first[1]) * 8 / 1e6 / max(last[0] - first[0], 1e-9)
