"""Answers to the messages that measure the link, and the share of the trainer's time that they may take.

While a session is at work, the answer to a Bulk tells the device to pause. The pause is so long that all measurements
together take at most MEASURING_SHARE of the time of the trainer's loop.
"""

from __future__ import annotations

import functools
import math
import os
import time

import msgspec
from msgspec import UNSET

from adc_edge.cloud_trainer.registry import Peer
from adc_edge.errors import ProtocolError
from adc_edge.wire.link_messages import BULK_BYTES, Bulk, BulkAnswer
from adc_edge.wire.tcp import prefer_bbr, tcp_info

MEASURING_SHARE = 0.1
_LARGEST_DEBT_S = 10.0  # of pauses that were asked for: whoever ignores them comes to more
WORK_S = 30.0  # a session is at work for so long after its last frame


class LinkProbes:
    """The measurements of all devices."""

    def __init__(self) -> None:
        self._worked_s = -math.inf  # monotonic time of the last frame of a session
        self._spent_s = 0.0  # time that measurements took since the last answer
        self._paid_s = 0.0  # monotonic time at which the pauses asked for so far are over

    def begin(self, peer: Peer | None) -> None:
        """Note that a peer measures; raises ProtocolError on a session's connection, and where pauses are ignored."""
        if peer is None or peer.session is not None:
            raise ProtocolError("a Bulk on a session's connection", "a connection of its own", "open one", "order")
        if self._paid_s - time.monotonic() > _LARGEST_DEBT_S:
            raise ProtocolError(
                "a Bulk during a pause", "none before the pause is over", "wait as long as told", "busy"
            )
        peer.measures = True

    def spent(self, peer: Peer, seconds: float) -> None:
        """Count the time that the loop took for one frame of a peer."""
        if peer.session is not None:
            self._worked_s = time.monotonic()
        elif peer.measures:
            self._spent_s += seconds

    def answer(self, bulk: Bulk, fd: int) -> tuple[BulkAnswer, memoryview]:
        """Return the answer and its padding."""
        congestion, live = prefer_bbr(fd), tcp_info(fd)
        pause_s = self._pause_s(time.monotonic())
        answer = BulkAnswer(bulk.transfer, bulk.reply_bytes, pause_s=pause_s, congestion=congestion or UNSET)
        if live is not None:
            answer = msgspec.structs.replace(
                answer,
                sent_bytes=live.sent_bytes,
                resent_bytes=live.resent_bytes,
                unsent_bytes=live.unsent_bytes,
                rtt_ms=live.rtt_ms,
                rtt_min_ms=live.rtt_min_ms,
            )
        return answer, padding()[: bulk.reply_bytes]

    def _pause_s(self, now: float) -> float:
        spent_s, self._spent_s = self._spent_s, 0.0
        if now - self._worked_s > WORK_S:
            return 0.0
        self._paid_s = max(self._paid_s, now) + spent_s * (1 / MEASURING_SHARE - 1)
        return self._paid_s - now


@functools.cache
def padding() -> memoryview:
    """Return BULK_BYTES of random bytes, which no device on the way can compress."""
    return memoryview(os.urandom(BULK_BYTES))
