"""A link with faults, without root: a TCP proxy that cuts, stalls, flips bits, delays, limits the rate, and counts."""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import threading
import time
from collections import deque
from types import TracebackType

_PIECE = 16 * 1024
_BUFFER_BYTES = 64 * 1024  # of each socket: what a cut link loses must not be megabytes in the kernel


class _Way:
    """One direction of one connection: what was read and is not yet due on the other side."""

    def __init__(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        self.source, self.sink, self.up = source, sink, up
        self.queue: deque[tuple[float, bytes]] = deque()
        self.free_s = 0.0  # when the link can take the next byte


class BadLink:
    """A proxy before ``target``; a context. Rates in Mbit/s, for each direction.

    Args:
        target: port on loopback.
        rng: decides what is flipped.
        rate_mbit_s: None: as fast as it goes.
        delay_ms: one way.
    """

    def __init__(
        self, target: int, rng: random.Random, rate_mbit_s: float | None = None, delay_ms: float = 0.0
    ) -> None:
        self._target, self._rng, self._delay_s = target, rng, delay_ms / 1e3
        self.rate_mbit_s = rate_mbit_s  # may change while it runs, not from or to None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._ways: list[_Way] = []
        self._lock = threading.Lock()
        self._over = False
        self._stalled_until_s = 0.0
        self._flip = self._cut = False
        self.cuts = self.flips = self.stalls = self.connections = self.up_bytes = self.down_bytes = 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> BadLink:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._thread.join()

    def cut(self) -> None:
        """Reset every connection; if there is none, the next one."""
        self._cut = True

    def flip(self) -> None:
        """Flip one bit of the next piece that passes, either way."""
        self._flip = True

    def stall(self, seconds: float) -> None:
        """Let nothing pass for a while, without a word to either side."""
        self._stalled_until_s = time.monotonic() + seconds
        self.stalls += 1

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            self._listener.setblocking(False)
            selector.register(self._listener, selectors.EVENT_READ, None)
            while not self._over:
                if self._cut and self._ways:
                    self._cut = False
                    self.cuts += 1
                    self._reset(selector, list(self._ways))
                stalled = time.monotonic() < self._stalled_until_s
                for key, _ in selector.select(0.001 if self._ways else 0.02):
                    if key.data is None:
                        self._accept(selector)
                    elif not stalled and sum(len(piece) for _, piece in key.data.queue) < 4 * _PIECE:
                        self._read(selector, key.data)
                if stalled:
                    time.sleep(0.01)
                else:
                    self._deliver(selector)
            self._reset(selector, list(self._ways))
        self._listener.close()

    def _accept(self, selector: selectors.BaseSelector) -> None:
        client, _ = self._listener.accept()
        try:
            cloud = socket.create_connection(("127.0.0.1", self._target), timeout=2)
        except OSError:
            self._drop(client)
            return
        self.connections += 1
        for end in (client, cloud):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.rate_mbit_s is not None:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        for way in (_Way(client, cloud, True), _Way(cloud, client, False)):
            self._ways.append(way)
            selector.register(way.source, selectors.EVENT_READ, way)

    def _read(self, selector: selectors.BaseSelector, way: _Way) -> None:
        try:
            data = way.source.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._reset(selector, [way])
            return
        if self._flip:
            self._flip = False
            self.flips += 1
            broken = bytearray(data)
            broken[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
            data = bytes(broken)
        now = time.monotonic()
        took_s = len(data) * 8 / (self.rate_mbit_s * 1e6) if self.rate_mbit_s else 0.0
        way.free_s = max(now, way.free_s) + took_s
        way.queue.append((way.free_s + self._delay_s, data))

    def _deliver(self, selector: selectors.BaseSelector) -> None:
        for way in list(self._ways):
            while way.queue and way.queue[0][0] <= time.monotonic():
                due, data = way.queue.popleft()
                try:
                    sent = way.sink.send(data)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    self._reset(selector, [way])
                    break
                if way.up:
                    self.up_bytes += sent
                else:
                    self.down_bytes += sent
                if sent < len(data):
                    way.queue.appendleft((due, data[sent:]))
                    break

    def _reset(self, selector: selectors.BaseSelector, ways: list[_Way]) -> None:
        ends = {way.source for way in ways} | {way.sink for way in ways}
        for way in [way for way in self._ways if way.source in ends]:
            self._ways.remove(way)
            selector.unregister(way.source)
        for end in ends:
            self._drop(end)

    @staticmethod
    def _drop(end: socket.socket) -> None:
        with contextlib.suppress(OSError):  # a reset, not an orderly end
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        end.close()
