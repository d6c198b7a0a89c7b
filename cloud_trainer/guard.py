"""What one connection may take from the others: bounded memory, bounded patience, bounded log.

libzmq's own limits are not enough: a multipart that never ends grows in memory before a single frame is delivered, and
a limit on queued messages is worse than none: libzmq 4.3.5 aborts the process when a peer hangs up while its input is
stopped and heartbeats are on. So nothing is limited there, and the kernel, which counts the bytes of each connection,
tells who takes too much; a connection can be cut by its descriptor. A thread of its own looks, since the loop may be
busy with a step. Where the kernel has no such count, only the strikes and the log are bounded.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

import zmq
from zmq.utils.monitor import recv_monitor_message

from adc_edge.wire.tcp import same_socket, tcp_info

MAX_CONNECTIONS = 2048
UNDELIVERED_BYTES = 32 * 2**20  # received and not yet taken by the loop, of one connection; or twice a message
CROWD = 8  # times that, of all connections together
UNREAD_BYTES = 16 * 2**20  # answered and not taken when it asks for more
STRIKES = 16  # refusals of a connection without a session, or hellos of any
_SWEEP_S = 0.1

_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED  # not HANDSHAKE_FAILED_PROTOCOL, see tcp.py


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
        self.peer = peer  # its address, since a descriptor's number is used again; None: it has gone already
        self.delivered_bytes = 0  # to the loop, without framing
        self.framing_bytes = 0  # received beyond those when nothing was queued
        self.delivered = False  # a message since the last sweep
        self.received_bytes = 0  # by the kernel's count, when something was last delivered
        self.sent_bytes = 0
        self.counts: Counter[str] = Counter()  # of strikes and hellos

    def undelivered_bytes(self, received_bytes: int) -> int:
        """What libzmq holds of it: whole messages in its queue, and the beginning of one."""
        queued = received_bytes - self.delivered_bytes - self.framing_bytes
        return max(queued, received_bytes - self.received_bytes)


class Guard:
    """Watches the connections of one ROUTER, from a thread of its own.

    Args:
        context: of the socket.
        router: not yet bound.
        refusals: told whom it cuts off.
        message_bytes: of the largest message that a device may send.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        router: zmq.Socket[bytes],
        refusals: Refusals,
        message_bytes: int,
    ) -> None:
        self._router, self._refusals = router, refusals
        self._most_bytes = max(UNDELIVERED_BYTES, 2 * message_bytes)
        address = f"inproc://guard-{id(self)}"
        router.monitor(address, _EVENTS)
        self._monitor = context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.RCVHWM, 0)  # a full queue of events would stop libzmq's own thread
        self._monitor.connect(address)
        self._connections: dict[int, _Connection] = {}
        self._drained = False
        self.telling = False  # of connections that ended without a word: the self-test's are none of these
        self._lock, self._over = threading.RLock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="guard", daemon=True)
        self._thread.start()

    def received(self, fd: int, size: int) -> None:
        """A message of ``size`` bytes was delivered from this connection."""
        with self._lock:
            self._note_events()  # first: the number of a closed connection's descriptor is given to the next one
            connection = self._connections.get(fd)
            if connection is not None:
                connection.delivered = True
                connection.delivered_bytes += size

    def tell(self) -> None:
        """From now on, log connections that end without a word."""
        with self._lock:
            self._note_events()
            self.telling = True

    def drained(self) -> None:
        """The loop has taken every message that was there."""
        self._drained = True

    def sent(self, fd: int, size: int) -> None:
        """So many bytes were queued for this connection."""
        with self._lock:
            connection = self._connections.get(fd)
            if connection is not None:
                connection.sent_bytes += size

    def reads(self, fd: int) -> bool:
        """Whether it has taken its answers, to be asked before it gets more; one that does not is cut off."""
        with self._lock:
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
        return self._too_often(fd, "hello", "it says hello again and again")

    def strike(self, fd: int) -> bool:
        """Count a refusal; True if that was one too many, and the connection is cut off."""
        return self._too_often(fd, "strike", "nothing of what it sends makes sense")

    def _too_often(self, fd: int, what: str, why: str) -> bool:
        with self._lock:
            connection = self._connections.get(fd)
            if connection is None:
                return False
            connection.counts[what] += 1
            if connection.counts[what] < STRIKES:
                return False
            self._cut(fd, connection, why)
            return True

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
        """Cut off what takes memory and delivers nothing, and silent ones beyond the limit."""
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
                crowded = False  # the largest alone
                self._cut(fd, self._connections[fd], "it sends more than can be taken, or a message without an end")
        silent = [(fd, found) for fd, found in self._connections.items() if not found.delivered_bytes]
        for fd, found in silent[: max(0, len(self._connections) - MAX_CONNECTIONS)]:
            self._cut(fd, found, f"more than {MAX_CONNECTIONS} connections, and it says nothing")

    def _note_events(self) -> None:
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            kind, fd = event["event"], int(event["value"])
            if kind == zmq.EVENT_ACCEPTED:
                self._connections[fd] = _Connection(_peer(fd))
            elif kind == zmq.EVENT_DISCONNECTED:
                gone = self._connections.pop(fd, None)
                if gone is not None and not gone.delivered_bytes and self.telling:
                    self._refusals.say(
                        "handshake",
                        "refused a connection (handshake), or it ended without a word: no adc-edge, encrypted for "
                        "another trainer's key, an unknown key, or keys on one side only",
                    )

    def _cut(self, fd: int, connection: _Connection, why: str) -> None:
        self._connections.pop(fd, None)
        self._refusals.say("cut", f"cut off a connection: {why}")
        with contextlib.suppress(OSError), same_socket(fd) as same:
            if same.getpeername() == connection.peer:
                same.shutdown(socket.SHUT_RDWR)


def _peer(fd: int) -> object:
    try:
        with same_socket(fd) as same:
            return same.getpeername()
    except OSError:
        return None
