"""What one connection may take from the others: bounded memory, bounded patience, bounded log.

libzmq's own limits are not enough: a multipart that never ends grows in memory before a single frame is delivered, and
without a limit on answers a peer that never reads makes them pile up. The kernel knows better: it counts the bytes of
each connection, and a connection can be cut by its descriptor. Where the kernel has no such count, only the strikes and
the log are bounded.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable

import zmq
from zmq.utils.monitor import recv_monitor_message

from adc_edge.tcp import tcp_info

MAX_CONNECTIONS = 2048
UNDELIVERED_BYTES = 32 * 2**20  # received since a connection last delivered a message
UNREAD_BYTES = 16 * 2**20  # answered and not taken when it asks for more
STRIKES = 16  # refusals of a connection without a session
_SWEEP_S = 0.1
_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


class Refusals:
    """The log of refusals: the first of each kind word for word, the rest of the flood as a count. For threads."""

    BURST, WINDOW_S = 5, 10.0

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._lock = say, threading.Lock()
        self._seen: dict[str, int] = {}
        self._since_s = time.monotonic()

    def say(self, kind: str, text: str) -> None:
        """Log ``text``, unless there were many of its kind lately."""
        with self._lock:
            self._seen[kind] = self._seen.get(kind, 0) + 1
            if self._seen[kind] <= self.BURST:
                self._say(text)

    def sweep(self) -> None:
        """Tell how many were left out, once the window is over."""
        if time.monotonic() - self._since_s < self.WINDOW_S:
            return
        with self._lock:
            for kind, count in self._seen.items():
                if count > self.BURST:
                    self._say(f"and {count - self.BURST} more refusals ({kind}) within {self.WINDOW_S:.0f} s")
            self._seen.clear()
            self._since_s = time.monotonic()


class _Connection:
    def __init__(self, peer: object) -> None:
        self.peer = peer  # its address: a descriptor's number is used again
        self.delivered = False  # a message since the last sweep
        self.received_bytes = 0  # by the kernel's count, at the last sweep before which something was delivered
        self.sent_bytes = self.strikes = self.hellos = 0
        self.silent = True  # nothing ever delivered


class Guard:
    """Watches the connections of one ROUTER.

    Args:
        context: of the socket.
        router: not yet bound.
        refusals: told whom it cuts off.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes], refusals: Refusals) -> None:
        self._router, self._refusals = router, refusals
        address = f"inproc://guard-{id(self)}"
        router.monitor(address, _EVENTS)
        self._monitor = context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.RCVHWM, 0)  # a full queue of events would stop libzmq's own thread
        self._monitor.connect(address)
        self._connections: dict[int, _Connection] = {}
        self._swept_s = time.monotonic()

    def received(self, fd: int) -> None:
        """A message was delivered from this connection."""
        self._note_events()  # first: the number of a closed connection's descriptor is given to the next one
        connection = self._connections.get(fd)
        if connection is not None:
            connection.delivered, connection.silent = True, False

    def sent(self, fd: int, size: int) -> None:
        """So many bytes were queued for this connection."""
        connection = self._connections.get(fd)
        if connection is not None:
            connection.sent_bytes += size

    def reads(self, fd: int) -> bool:
        """Whether it has taken its answers, to be asked before it gets more; one that does not is cut off."""
        connection = self._connections.get(fd)
        if connection is None or connection.sent_bytes < UNREAD_BYTES:
            return True
        live = tcp_info(fd)
        if live is None or connection.sent_bytes - live.sent_bytes < UNREAD_BYTES:
            return True
        self._cut(fd, connection, "it asks and does not read the answers")
        return False

    def hello(self, fd: int) -> bool:
        """Count a Hello; True if there were too many on this connection, which is cut off."""
        connection = self._connections.get(fd)
        if connection is None:
            return False
        connection.hellos += 1
        if connection.hellos <= STRIKES:
            return False
        self._cut(fd, connection, "it says hello again and again")
        return True

    def strike(self, fd: int) -> bool:
        """Count a refusal; True if that was one too many, and the connection is cut off."""
        connection = self._connections.get(fd)
        if connection is None:
            return False
        connection.strikes += 1
        if connection.strikes < STRIKES:
            return False
        self._cut(fd, connection, "nothing of what it sends makes sense")
        return True

    def sweep(self) -> None:
        """Now and then: cut off what takes memory and delivers nothing, and the silent ones beyond the limit."""
        self._note_events()
        if time.monotonic() - self._swept_s < _SWEEP_S:
            return
        self._swept_s = time.monotonic()
        for fd, connection in list(self._connections.items()):
            live = tcp_info(fd)
            if live is None:
                continue
            if connection.delivered:
                connection.delivered, connection.received_bytes = False, live.received_bytes
            elif live.received_bytes - connection.received_bytes > UNDELIVERED_BYTES:
                self._cut(fd, connection, "it sends a message without an end")
        silent = [(fd, connection) for fd, connection in self._connections.items() if connection.silent]
        for fd, connection in silent[: max(0, len(self._connections) - MAX_CONNECTIONS)]:
            self._cut(fd, connection, f"more than {MAX_CONNECTIONS} connections, and it says nothing")

    def close(self) -> None:
        """Stop watching, before the router closes: an open monitor makes the context's end hang."""
        self._router.disable_monitor()
        self._monitor.close(0)

    def _note_events(self) -> None:
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            kind, fd = event["event"], int(event["value"])
            if kind == zmq.EVENT_ACCEPTED:
                peer = _peer(fd)
                if peer is not None:
                    self._connections[fd] = _Connection(peer)
            elif kind == zmq.EVENT_DISCONNECTED:
                self._connections.pop(fd, None)
            else:
                self._refusals.say(
                    "handshake",
                    "refused a connection (handshake): no adc-edge, or encrypted for another trainer's key, or keys on "
                    "one side only",
                )

    def _cut(self, fd: int, connection: _Connection, why: str) -> None:
        self._connections.pop(fd, None)
        self._refusals.say("cut", f"cut off a connection: {why}")
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as same:
            if same.getpeername() == connection.peer:
                same.shutdown(socket.SHUT_RDWR)


def _peer(fd: int) -> object:
    try:
        with socket.socket(fileno=os.dup(fd)) as same:
            return same.getpeername()
    except OSError:
        return None
