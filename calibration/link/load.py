"""Threads that load a link in one direction, and one that measures round trips beside them.

Each has a connection of its own. A ping on a loaded connection would wait in that connection's send queue and measure
our own queue; on a connection of its own it meets only the queues of the network.

A load never lets the sender's TCP run out of data, and keeps little more than that in its kernel: up, the device reads
from its kernel how much is unsent; down, the trainer tells it in each answer.
"""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import TypeVar

from msgspec import UNSET

from adc_edge.calibration.link.samples import KernelSample
from adc_edge.calibration.link.traffic import Answered, Requests
from adc_edge.planning.profile import TrainerShare
from adc_edge.wire.channel import Channel
from adc_edge.wire.connection import Stopped
from adc_edge.wire.link_messages import BULK_BYTES, BulkAnswer
from adc_edge.wire.tcp import TcpInfo

_AHEAD_S = {"up": 0.05, "down": 0.25}  # unsent data, in seconds of the rate; a lost request is late by round trips
_LEAST_BYTES, _LARGEST_BYTES = 16 * 1024, 256 * 1024  # of one message
_BLIND_BYTES = 2**20  # in flight where no kernel tells what is unsent
_MOST_BYTES = 4 * BULK_BYTES  # in flight: 200 Mbit/s at 600 ms
_TICK_MS = 2
_PROBE_S, _PROBE_MOST_S = 0.01, 0.1
_PROBE_SHARE, _PROBE_WIRE_BYTES = 0.01, 200  # of the loaded link's rate; one ping with TCP's and IP's headers


_W = TypeVar("_W", bound="_Worker")


class _Worker:
    """A thread with a connection of its own. Leaving the block stops it; ``check`` raises what it has met.

    Args:
        connect: makes an open channel whose waiting ends when the given function returns True.
        requests: makes the messages.
    """

    def __init__(self, connect: Callable[[Callable[[], bool]], Channel], requests: Requests) -> None:
        self._over = threading.Event()
        self.channel, self.requests = connect(self._over.is_set), requests
        self._thread = threading.Thread(target=self._guarded, daemon=True)
        self._trouble: BaseException | None = None
        self.exhausted = False  # it ended since no bytes were left to spend
        self.paused_s = 0.0  # pauses that the trainer asked for
        self._resume_s = 0.0
        self.resent_bytes = 0  # known once the thread has ended

    def __enter__(self: _W) -> _W:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        live = self.channel.tcp()
        self.resent_bytes = live.resent_bytes if live else 0
        self.channel.abort()

    def check(self) -> None:
        """Raise the error that ended the thread, if there is one."""
        if self._trouble is not None:
            raise self._trouble

    @abstractmethod
    def _work(self) -> None:
        """Work until ``_over`` is set."""

    def _guarded(self) -> None:
        try:
            self._work()
        except Stopped:
            pass
        except BaseException as error:  # the thread of the measurement raises it
            self._trouble = error

    def _pause(self, answer: BulkAnswer | None) -> None:
        if answer is not None and answer.pause_s > 0:
            now = time.monotonic()
            self.paused_s += max(0.0, now + answer.pause_s - max(self._resume_s, now))
            self._resume_s = max(self._resume_s, now + answer.pause_s)

    def _paused(self) -> bool:
        return time.monotonic() < self._resume_s


class Load(_Worker):
    """A load in one direction; ``done_bytes`` of padding have been answered or have arrived."""

    way: str

    def __init__(self, connect: Callable[[Callable[[], bool]], Channel], requests: Requests) -> None:
        super().__init__(connect, requests)
        self.done_bytes = 0
        self.answers: list[BulkAnswer] = []
        self._samples: list[KernelSample] = []
        self._in_flight: dict[int, int] = {}  # number: size
        self._flying_bytes = 0

    @property
    def finished(self) -> bool:
        """Whether no bytes are left to spend, and all that was sent has been answered."""
        return self.exhausted and not self._in_flight

    @property
    def congestion(self) -> str | None:
        """Congestion control of the trainer's end, as far as it was told."""
        told = self.answers[-1].congestion if self.answers else UNSET
        return None if told is UNSET else told

    @abstractmethod
    def delivered_bytes(self, live: TcpInfo | None) -> int:
        """Bytes that have reached the receiver; ``live`` are the kernel's present figures of this end."""

    @abstractmethod
    def kernel_samples(self) -> list[KernelSample]:
        """Figures of the sender's kernel in the order of time; none if it tells none."""

    def _send(self, size: int, up: bool) -> bool:
        sent = self.requests.send(self.channel, size if up else 0, 0 if up else size)
        self.exhausted = sent is None
        for number in sent or ():
            self._in_flight[number] = size
            self._flying_bytes += size
        return sent is not None

    def _receive(self) -> Answered:
        answered = self.requests.receive(self.channel)
        size = self._in_flight.pop(answered.number)
        self._flying_bytes -= size
        self.done_bytes += size
        if answered.bulk is not None:
            self.answers.append(answered.bulk)
            self._pause(answered.bulk)
        return answered

    def _ahead_bytes(self, bytes_per_s: float) -> int:
        return max(4 * _LEAST_BYTES, int(_AHEAD_S[self.way] * bytes_per_s))

    def _size(self, ahead_bytes: int) -> int:
        few = max(_LEAST_BYTES // 4, self.requests.left_bytes() // 16)  # so that a small budget makes a stage
        return min(ahead_bytes // 4, _LARGEST_BYTES, self.requests.largest_bytes, few)


class UpLoad(Load):
    """Data from the device to the trainer."""

    way = "up"

    def _work(self) -> None:
        while not self._over.is_set():
            room, size = self._room()
            while room >= size and not self._paused() and not self._over.is_set():
                if not self._send(size, up=True):
                    break
                room -= size
            if self.channel.arrived(_TICK_MS):
                self._receive()

    def delivered_bytes(self, live: TcpInfo | None) -> int:
        """Bytes that the trainer's kernel has confirmed, or else those in answered messages."""
        if live is None:
            return self.done_bytes
        self._samples.append(KernelSample(live.sent_bytes, live.resent_bytes, live.rtt_ms, live.rtt_min_ms))
        return live.acked_bytes

    def kernel_samples(self) -> list[KernelSample]:
        """The figures of this end's kernel at each call of ``delivered_bytes``."""
        return self._samples

    def _room(self) -> tuple[int, int]:
        live = self.channel.tcp()
        if live is None:
            return _BLIND_BYTES - self._flying_bytes, self._size(16 * _LEAST_BYTES)
        ahead = self._ahead_bytes(live.delivery_mbit_s * 1e6 / 8)
        return min(ahead - live.unsent_bytes, _MOST_BYTES - self._flying_bytes), self._size(ahead)


class DownLoad(Load):
    """Data from the trainer to the device."""

    way = "down"

    def _work(self) -> None:
        window, size, start = 8 * _LEAST_BYTES, self._size(4 * _LEAST_BYTES), time.monotonic()
        while not self._over.is_set():
            while self._flying_bytes + size <= window and not self._paused() and self._send(size, up=False):
                pass
            if not self.channel.arrived(_TICK_MS):
                continue
            answer = self._receive().bulk
            ahead = self._ahead_bytes(self.done_bytes / max(time.monotonic() - start, 0.05))
            size = self._size(ahead)
            window = min(max(self._window(window, answer, ahead), 2 * size), _MOST_BYTES)

    def delivered_bytes(self, live: TcpInfo | None) -> int:
        """Bytes that have arrived."""
        return live.received_bytes if live else self.channel.framed()[1]

    def kernel_samples(self) -> list[KernelSample]:
        """The figures of the trainer's kernel, which the answers tell."""
        return [
            KernelSample(a.sent_bytes, a.resent_bytes, a.rtt_ms, a.rtt_min_ms)  # type: ignore[arg-type]
            for a in self.answers
            if a.sent_bytes is not UNSET
        ]

    def _window(self, window: int, answer: BulkAnswer | None, ahead: int) -> int:
        """Return the next number of bytes to have asked for."""
        if answer is None or answer.unsent_bytes is UNSET:
            return max(window, _BLIND_BYTES)
        if answer.unsent_bytes < ahead:
            return window + answer.body_bytes
        return window - answer.body_bytes if answer.unsent_bytes > 4 * ahead else window


class Prober(_Worker):
    """Round trips on a connection of their own; ``times`` has (monotonic time, ms).

    Args:
        connect: as in _Worker.
        requests: makes the messages.
        least_s: shortest time between two pings, so that they stay within their part of the bytes.
    """

    def __init__(
        self, connect: Callable[[Callable[[], bool]], Channel], requests: Requests, least_s: float = 0.0
    ) -> None:
        super().__init__(connect, requests)
        self.times: list[tuple[float, float]] = []
        self.share: TrainerShare | None = None  # as the trainer told it last; None: it works for no other device
        self._least_s = max(_PROBE_S, least_s)
        self._every_s = self._least_s

    def pace(self, bytes_per_s: float) -> None:
        """Send so many pings that they take a hundredth of a link with this rate, 10 to 100 a second."""
        wanted_s = _PROBE_WIRE_BYTES / max(_PROBE_SHARE * bytes_per_s, 1.0)
        self._every_s = max(min(wanted_s, _PROBE_MOST_S), self._least_s)

    def between(self, start_s: float, end_s: float) -> list[float]:
        """Round trips in ms of the pings that were answered between two instants."""
        return [ms for at, ms in list(self.times) if start_s <= at < end_s]

    def _work(self) -> None:
        self.channel.leave_bbr()
        while not self._over.is_set():
            sent_s = time.monotonic()
            if self.requests.probe(self.channel) is None:
                self.exhausted = True
                return
            share = self.requests.receive(self.channel).share
            now = time.monotonic()
            self.share = share.expected() if share else None
            self.times.append((now, max(self._shortest_ms(), (now - sent_s - _waited(share)) * 1e3)))
            self._over.wait(max(0.0, sent_s + self._every_s - now))

    def _shortest_ms(self) -> float:
        """The kernel's shortest round trip: the wait at the trainer is known in ticks of some milliseconds only."""
        live = self.channel.tcp()
        return live.rtt_min_ms if live else 0.0


def _waited(share: TrainerShare | None) -> float:
    """Seconds that a ping lay at the trainer while that worked for other devices, as far as they were measured."""
    return 0.0 if share is None or share.waited_s is UNSET else share.waited_s
