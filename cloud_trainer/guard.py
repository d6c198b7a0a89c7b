"""Bounds on what one connection may use: memory, refused messages, lines of the log.

libzmq's own limits are not enough: a multipart that never ends grows in memory before a single frame is delivered, and
a limit on queued messages is worse than none: libzmq 4.3.5 aborts the process when a peer hangs up while its input is
stopped and heartbeats are on. So libzmq is given no limits. The kernel counts the bytes of each connection; a thread of
its own reads these counts, since the loop may be busy with a step, and cuts a connection that takes too much by its
descriptor. Where the kernel has no such count, only refusals and the log are bounded.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from adc_edge.cloud_trainer.record.presence import GuardedConnection
from adc_edge.errors import ProtocolError
from adc_edge.wire.messages import Refused
from adc_edge.wire.tcp import same_socket, tcp_info

MAX_CONNECTIONS = 2048
UNDELIVERED_BYTES = 32 * 2**20  # of one connection, received and not yet taken by the loop; or twice a message
CROWD = 8  # all connections together may hold this many times as much
UNREAD_BYTES = 16 * 2**20  # of answers that a peer has not read when it asks for more
STRIKES = 16  # refusals of a connection without a session, or hellos of any connection
_SWEEP_S = 0.1
_TEXT = 300  # characters of each part of a refusal: all three fit into a header in any alphabet
_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED  # not HANDSHAKE_FAILED_PROTOCOL, see tcp.py

logger = logging.getLogger(__name__)


class Refusals:
    """A bounded log of refusals: the first of each kind word for word, the others as a count. Safe for threads.

    Args:
        tell: told kind and text of each refusal that was logged word for word.
    """

    BURST, WINDOW_S = 5, 10.0

    def __init__(self, tell: Callable[..., None] = lambda kind, text, **about: None) -> None:
        self._tell, self._lock = tell, threading.Lock()
        self._seen: dict[str, int] = {}
        self._since_s = time.monotonic()

    def warn(self, kind: str, text: str) -> bool:
        """Log ``text``, unless BURST texts of its kind were logged within WINDOW_S; return whether it was logged."""
        with self._lock:
            self._seen[kind] = self._seen.get(kind, 0) + 1
            if self._seen[kind] > self.BURST:
                return False
            logger.warning("%s", text)
            return True

    def refuse(self, kind: str, text: str, **about: Any) -> None:
        """Log a refusal as ``warn`` does; if it was logged, tell it, and ``about`` whom it is."""
        if self.warn(kind, text):
            self._tell(kind, text, **about)

    def sweep(self) -> None:
        """Log how many texts were left out, once the window is over."""
        if time.monotonic() - self._since_s < self.WINDOW_S:
            return
        with self._lock:
            for kind, count in self._seen.items():
                if count > self.BURST:
                    left_out = count - self.BURST
                    logger.warning("and %d more refusals (%s) within %.0f s", left_out, kind, self.WINDOW_S)
            self._seen.clear()
            self._since_s = time.monotonic()


def refusal_message(error: ProtocolError) -> Refused:
    """Return the message that tells a device why it is refused."""
    texts = (text[:_TEXT] for text in (error.received, error.expected, error.remedy))
    return Refused(error.code, *texts)  # type: ignore[arg-type]


class _Connection(GuardedConnection):
    def __init__(self, peer: object) -> None:
        self.peer = peer  # its address, since descriptor numbers are used again; None: it has gone already
        self.delivered_bytes = 0  # delivered to the loop, without framing
        self.framing_bytes = 0  # received beyond those when nothing was queued
        self.delivered = False  # whether a message was delivered since the last sweep
        self.received_bytes = 0  # by the kernel's count, when a message was last delivered
        self.sent_bytes = 0
        self.counts: Counter[str] = Counter()  # of refusals and hellos

    def undelivered_bytes(self, received_bytes: int) -> int:
        """Number of bytes that libzmq holds: whole messages in its queue, and the beginning of one."""
        queued = received_bytes - self.delivered_bytes - self.framing_bytes
        return max(queued, received_bytes - self.received_bytes)


class Guard:
    """Watches the connections of one ROUTER from a thread of its own, and cuts off those that take too much.

    Args:
        context: context of the socket.
        router: socket that is not yet bound.
        refusals: log for the connections that are cut off.
        message_bytes: size of the largest message that a device may send.
        on_end: told, from whichever thread, each connection that has ended.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        router: zmq.Socket[bytes],
        refusals: Refusals,
        message_bytes: int,
        on_end: Callable[[GuardedConnection], None] = lambda connection: None,
    ) -> None:
        self._router, self._refusals, self._on_end = router, refusals, on_end
        self._most_bytes = max(UNDELIVERED_BYTES, 2 * message_bytes)
        address = f"inproc://guard-{id(self)}"
        router.monitor(address, _EVENTS)
        self._monitor = context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.RCVHWM, 0)  # a full queue of events would stop libzmq's own thread
        self._monitor.connect(address)
        self._connections: dict[int, _Connection] = {}
        self._drained = False
        self._logs_silent_ends = False  # not before the self-test is over, whose connections end so
        self._lock, self._over = threading.RLock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="guard", daemon=True)
        self._thread.start()

    def received(self, fd: int, size: int) -> GuardedConnection | None:
        """Count a message of ``size`` bytes and return the connection that has delivered it; None: it has ended.

        A message may outlive its connection, and the descriptor's number then be another one's. Nothing can be sent
        to such a sender.
        """
        with self._lock:
            self._note_events()  # first: the number of a closed connection's descriptor is given to the next one
            connection = self._connections.get(fd)
            if connection is not None:
                connection.delivered = True
                connection.delivered_bytes += size
            return connection

    def log_silent_ends(self) -> None:
        """Log connections that end without a message, from now on."""
        with self._lock:
            self._note_events()
            self._logs_silent_ends = True

    def drained(self) -> None:
        """Note that the loop has taken every message that was there."""
        self._drained = True

    def sent(self, fd: int, size: int) -> None:
        """Count ``size`` bytes that were queued for this connection."""
        with self._lock:
            connection = self._connections.get(fd)
            if connection is not None:
                connection.sent_bytes += size

    def cut_off_non_reader(self, fd: int) -> bool:
        """Cut off a connection that does not read its answers, before it gets more; True if it was cut off."""
        with self._lock:
            connection = self._connections.get(fd)
            if connection is None or connection.sent_bytes < UNREAD_BYTES:
                return False
            live = tcp_info(fd)
            if live is None or connection.sent_bytes - live.sent_bytes < UNREAD_BYTES:
                return False
            self._cut(fd, connection, "it asks and does not read the answers")
            return True

    def count_hello(self, fd: int) -> bool:
        """Count a Hello; True if that was one too many, and the connection was cut off."""
        return self._count(fd, "hello", "it says hello again and again")

    def count_refusal(self, fd: int) -> bool:
        """Count a refused message; True if that was one too many, and the connection was cut off."""
        return self._count(fd, "refusal", "too many of its messages were refused")

    def _count(self, fd: int, what: str, why: str) -> bool:
        with self._lock:
            connection = self._connections.get(fd)
            if connection is None:
                return False
            connection.counts[what] += 1
            if connection.counts[what] < STRIKES:
                return False
            self._cut(fd, connection, why)
            return True

    def count(self) -> int:
        """Return the number of connections."""
        return len(self._connections)

    def close(self) -> None:
        """Stop watching, before the router closes: an open monitor makes the context's end hang."""
        self._over.set()
        self._thread.join()
        self._router.disable_monitor()
        self._monitor.close(0)

    def _watch(self) -> None:
        while not self._over.wait(_SWEEP_S):
            with self._lock:
                self._note_events()
                self._sweep()

    def _sweep(self) -> None:
        """Cut off connections that take too much memory, and silent ones beyond MAX_CONNECTIONS."""
        drained, self._drained = self._drained, False
        held: list[tuple[int, int]] = []
        for fd, connection in list(self._connections.items()):
            live = tcp_info(fd)
            if live is None:
                continue
            if drained:
                connection.framing_bytes = live.received_bytes - connection.delivered_bytes
            if connection.delivered:
                connection.delivered, connection.received_bytes = False, live.received_bytes
            held.append((connection.undelivered_bytes(live.received_bytes), fd))
        crowded = sum(size for size, _ in held) > CROWD * self._most_bytes
        for size, fd in sorted(held, reverse=True):
            if size > self._most_bytes or crowded:
                crowded = False  # only the largest is cut off
                self._cut(
                    fd, self._connections[fd], "it sends more than the trainer can take, or a message without an end"
                )
        silent = [(fd, found) for fd, found in self._connections.items() if not found.delivered_bytes]
        for fd, found in silent[: max(0, len(self._connections) - MAX_CONNECTIONS)]:
            self._cut(fd, found, f"more than {MAX_CONNECTIONS} connections, and this one has sent nothing")

    def _note_events(self) -> None:
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            kind, fd = event["event"], int(event["value"])
            if kind == zmq.EVENT_ACCEPTED:
                self._connections[fd] = _Connection(_peer(fd))
            elif kind == zmq.EVENT_DISCONNECTED:
                gone = self._connections.pop(fd, None)
                if gone is not None:
                    self._on_end(gone)
                if gone is not None and not gone.delivered_bytes and self._logs_silent_ends:
                    self._refusals.refuse(
                        "handshake",
                        "refused a connection (handshake), or it ended without a message: it is no adc-edge, it is "
                        "encrypted for another trainer's key, its key is unknown, or there are keys on one side only",
                    )

    def _cut(self, fd: int, connection: _Connection, why: str) -> None:
        self._connections.pop(fd, None)
        self._on_end(connection)
        self._refusals.refuse("cut", f"cut off a connection: {why}")
        with contextlib.suppress(OSError), same_socket(fd) as same:
            if same.getpeername() == connection.peer:
                same.shutdown(socket.SHUT_RDWR)


def _peer(fd: int) -> object:
    try:
        with same_socket(fd) as same:
            return same.getpeername()
    except OSError:
        return None
