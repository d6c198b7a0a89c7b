"""The messages that measure a link, and the bytes that they may spend.

A trainer of 0.9 answers Bulk messages of any size up to BULK_BYTES. An older one answers Pings of 64 KiB at most, so a
larger message is replaced by several.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

from msgspec import UNSET

from adc_edge.errors import LinkError
from adc_edge.planning.profile import TrainerShare
from adc_edge.wire.channel import Channel
from adc_edge.wire.framing import chunk_bytes, to_frames
from adc_edge.wire.link_messages import BULK_BYTES, Bulk, BulkAnswer, Ping, Pong
from adc_edge.wire.message import CHUNK_BYTES

ANSWER_MS = 60_000.0
_PING_BYTES = 300  # one round trip: two headers, framing, encryption
_PROBES = 0.1  # of the bytes that may be spent: all round trips together
_CONNECTION_BYTES = 3_000  # handshakes and heartbeats
_FRAMING_BYTES = 400  # upper bound for one piece of a message and its answer, encrypted
_RESENT = 1.1  # retransmissions may add a tenth to the bytes of a message


class Spent:
    """The bytes of all connections so far, never more than ``most``. Safe for threads."""

    def __init__(self, most: float = math.inf) -> None:
        self.most, self._lock, self._bytes, self._probed_bytes = most, threading.Lock(), 0.0, 0.0
        self._stage_most = most
        self.refused = False  # a message was not sent since it would have exceeded a limit

    def begin_stage(self, share: float) -> None:
        """Allow a share of what is left to the next stage of the measurement."""
        self._stage_most = math.inf if math.isinf(self.most) else self._bytes + share * (self.most - self._bytes)

    def take_connection(self) -> None:
        """Count a new connection."""
        with self._lock:
            self._bytes += _CONNECTION_BYTES

    def take(self, size: int, pieces: int = 1) -> bool:
        """Reserve the bytes of a message and its answer; False if the stage has not so many left."""
        charge = (size + _FRAMING_BYTES * pieces) * _RESENT
        with self._lock:
            if self._bytes + charge > self._stage_most:
                self.refused = True
                return False
            self._bytes += charge
            return True

    def left(self) -> int:
        """Number of bytes that the stage has left, at most 2^40."""
        return int(min(self._stage_most - self._bytes, 2.0**40))

    def probe_every_s(self, seconds: float) -> float:
        """Return the shortest time between two round trips that go on for so many seconds."""
        return seconds * _PING_BYTES / (_PROBES * self.most)

    def take_probe(self) -> bool:
        """Reserve the bytes of one round trip; False if all together would take more than a tenth of the limit."""
        with self._lock:
            if self._probed_bytes + _PING_BYTES > _PROBES * self.most or self._bytes + _PING_BYTES > self.most:
                return False
            self._bytes += _PING_BYTES
            self._probed_bytes += _PING_BYTES
            return True


class Answered(NamedTuple):
    """One answer: which request it belongs to, its size, and what a trainer of 0.9 adds."""

    number: int
    size: int
    bulk: BulkAnswer | None
    share: TrainerShare | None = None  # of a trainer that works for other devices


class Requests:
    """Makes the messages, and reads their answers.

    Args:
        bulk: whether the trainer answers Bulk messages.
        spent: the bytes so far.
    """

    def __init__(self, bulk: bool, spent: Spent) -> None:
        self.bulk, self.largest_bytes, self._spent = bulk, BULK_BYTES if bulk else CHUNK_BYTES, spent
        self._numbers = itertools.count(1)
        self._padding = memoryview(os.urandom(max(BULK_BYTES, CHUNK_BYTES)))

    def send(self, channel: Channel, up: int = 0, down: int = 0) -> set[int] | None:
        """Send a message with ``up`` bytes of padding that asks for ``down`` bytes.

        Returns:
            The numbers of the answers to wait for; None if too few bytes are left to spend: nothing was sent.
        """
        parts = max(1, math.ceil(max(up, down) / self.largest_bytes))
        if not self._spent.take(up + down, parts + math.ceil((up + down) / CHUNK_BYTES)):
            return None
        return {self._send(channel, *sizes) for sizes in zip(_split(up, parts), _split(down, parts), strict=True)}

    def left_bytes(self) -> int:
        """Number of bytes that the stage may still spend."""
        return self._spent.left()

    def probe(self, channel: Channel) -> int | None:
        """Send the smallest message; return its number, or None if no bytes are left."""
        return self._send(channel, 0, 0, ping=True) if self._spent.take_probe() else None

    def receive(self, channel: Channel) -> Answered:
        """The next answer.

        Raises:
            LinkLost, Stopped, RefusedError: see ``Channel.receive``.
            LinkError: the answer belongs to no measurement.
        """
        answer, body = channel.receive(ANSWER_MS)
        if isinstance(answer, BulkAnswer):
            return Answered(answer.transfer, len(body), answer)
        if isinstance(answer, Pong):
            return Answered(answer.nonce, len(body), None, answer.share or None)
        raise LinkError(
            f"a {type(answer).__name__} for an answer", "a Pong or a BulkAnswer", "install the same version"
        )

    def _send(self, channel: Channel, up: int, down: int, ping: bool = False) -> int:
        number = next(self._numbers)
        bulk = self.bulk and not ping
        message = Bulk(number, down, up) if bulk else Ping(number, down, up, number)
        for header, piece in to_frames(message, self._padding[:up], chunk_bytes(channel.tcp())):
            channel.send_piece(header, piece)
        return number


def ask_about(channel: Channel) -> Pong:
    """Ask the trainer about itself; raises as ``Requests.receive``."""
    channel.send(Ping(0, 0, about=True))
    answer, _ = channel.receive(ANSWER_MS)
    if not isinstance(answer, Pong):
        raise LinkError(f"a {type(answer).__name__} for an answer", "a Pong", "install the same version")
    return answer


def serves_bulk(pong: Pong) -> bool:
    """Return whether a trainer answers Bulk messages of every size."""
    return pong.bulk_bytes is not UNSET and pong.bulk_bytes >= BULK_BYTES


def _split(size: int, parts: int) -> Iterator[int]:
    """Yield ``parts`` sizes that differ by one byte at most."""
    for part in range(parts):
        yield size * (part + 1) // parts - size * part // parts
