"""Byte counts, round-trip time and rate of a ZeroMQ socket's TCP connections, from the kernel (Linux).

The byte counts include framing, handshakes, heartbeats and encryption, but no retransmissions. Other systems have no
such counts (KERNEL_COUNTS is False); there ``frame_bytes`` adds up the frames. This module also selects BBR as
congestion control, because packet loss does not slow it down.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import zmq
from zmq.utils.monitor import recv_monitor_message

_TCP_INFO = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
_SIZE = 232  # size of struct tcp_info up to tcpi_snd_wnd, Linux 5.4
# Its first 216 bytes, up to tcpi_bytes_retrans, which kernels from 4.19 on fill: whether the rate is app-limited, time
# since data arrived, RTT, bytes acked and received, bytes unsent, shortest RTT, rate, bytes sent and retransmitted.
_FIELDS = struct.Struct("=7xB44xI12xI48xQQ8xII8xQ32xQQ")
_LIBC = ctypes.CDLL(None)
_TCP_CONGESTION = getattr(socket, "TCP_CONGESTION", None)
_NAME_SIZE = 16  # TCP_CA_NAME_MAX
_OFFERED = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
_PREFERRED = "bbr"  # several times as fast as cubic at 1 % loss, and no slower on loopback


def _kernel_counts() -> bool:
    """Return whether TCP_INFO is long enough. Old kernels and emulators return only its beginning."""
    if _TCP_INFO is None:
        return False
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            return len(probe.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _SIZE)) >= _FIELDS.size
    except OSError:
        return False


KERNEL_COUNTS = _kernel_counts()


class TcpInfo(NamedTuple):
    """The used fields of Linux's struct tcp_info."""

    sent_bytes: int  # first transmissions only
    received_bytes: int
    rtt_ms: float  # smoothed
    delivery_mbit_s: float
    last_received_ms: int  # time since data last arrived
    rtt_min_ms: float = 0.0  # the shortest lately
    app_limited: bool = False  # the delivery rate is what there was to send; the connection may be faster
    acked_bytes: int = 0  # that the other side's kernel has confirmed
    resent_bytes: int = 0  # retransmissions
    unsent_bytes: int = 0  # written by the application and not yet sent


@contextlib.contextmanager
def same_socket(fd: int) -> Iterator[socket.socket]:
    """Yield a socket for an open descriptor, which stays open. Raises OSError if it is closed or not a socket."""
    copy = os.dup(fd)
    try:
        same = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    with same:
        yield same


def tcp_info(fd: int) -> TcpInfo | None:
    """Return TCP_INFO of an open descriptor. None if it is not a TCP socket or the system has no such call."""
    if _TCP_INFO is None:
        return None
    # libc's own call: a socket object for the descriptor would take five times as long, and every message asks.
    raw, size = ctypes.create_string_buffer(_SIZE), ctypes.c_uint32(_SIZE)
    failed = _LIBC.getsockopt(fd, socket.IPPROTO_TCP, _TCP_INFO, raw, ctypes.byref(size))
    if failed or size.value < _FIELDS.size:
        return None
    flags, last_received, rtt, acked, received, unsent, rtt_min, rate, sent, again = _FIELDS.unpack_from(raw)
    return TcpInfo(
        sent_bytes=sent - again,
        received_bytes=received,
        rtt_ms=rtt / 1e3,
        delivery_mbit_s=rate * 8 / 1e6,
        last_received_ms=last_received,
        rtt_min_ms=rtt_min / 1e3,
        app_limited=bool(flags & 1),
        acked_bytes=acked,
        resent_bytes=again,
        unsent_bytes=unsent,
    )


def offers_bbr() -> bool | None:
    """Return whether BBR can be chosen on this machine; None where the system does not tell."""
    try:
        return _PREFERRED in _OFFERED.read_text().split()
    except OSError:
        return None


def prefer_bbr(fd: int) -> str | None:
    """Select BBR for a connection if the kernel offers and permits it. Return the congestion control then in use.

    Returns None if the system does not report it, or if the descriptor is not a connected TCP socket. Never raises.
    """
    if _TCP_CONGESTION is None:
        return None
    try:
        with same_socket(fd) as connection:
            connection.getpeername()
            with contextlib.suppress(OSError):  # not permitted
                if offers_bbr():  # otherwise root would load a kernel module here
                    connection.setsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, _PREFERRED.encode())
            name = connection.getsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, _NAME_SIZE)
    except OSError:
        return None
    return name.rstrip(b"\0").decode(errors="replace")


# HANDSHAKE_FAILED_PROTOCOL must not be listed. When a damaged message fails to decrypt, libzmq 4.3.5 overwrites errno
# while it reports this event and then treats the error as "try later". After the peer has closed the connection, the
# heartbeats make it abort.
EVENTS = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


def frame_bytes(*frames: bytes | memoryview) -> int:
    """Return the bytes that frames take in ZMTP 3.1 without encryption: a flag, a length of 1 or 8 bytes, the frame."""
    return sum(framed_bytes(len(frame)) for frame in frames)


def framed_bytes(size: int) -> int:
    """Return the bytes that a frame of ``size`` bytes takes, as ``frame_bytes`` counts them."""
    return size + (2 if size < 256 else 9)


class SocketMeter:
    """Counts the bytes of every connection of one ZeroMQ socket, and notices when a connection ends.

    When ``poll`` first sees a connection, it selects BBR for it (``prefer_bbr``).

    Call ``close`` before the socket's context ends: an open monitor makes ``Context.term`` hang.
    """

    def __init__(self, zmq_socket: zmq.Socket[bytes]) -> None:
        self._socket = zmq_socket
        self._monitor = zmq_socket.get_monitor_socket(EVENTS)
        self._fd: int | None = None
        self._past = (0, 0)
        self._closed = False
        self.connected = False
        self.lost = False  # a connection has ended
        self.handshaken = False  # the protocols agree, and both sides have proved their keys if they have any
        self.failure: str | None = None  # reason of a failed handshake
        self.congestion: str | None = None  # congestion control of the last connection; None: not known

    def poll(self, wait_ms: int = 0) -> None:
        """Process the connection events since the last call; without any, wait for one for ``wait_ms`` at most."""
        while not self._closed and self._monitor.poll(wait_ms):
            wait_ms = 0
            event = recv_monitor_message(self._monitor)
            kind = zmq.Event(event["event"])
            if kind == zmq.Event.CONNECTED:
                self.connected = True
                self._release()
                with contextlib.suppress(OSError):  # already closed again
                    self._fd = os.dup(event["value"])
                    self.congestion = prefer_bbr(self._fd)
            elif kind in (zmq.Event.DISCONNECTED, zmq.Event.CLOSED):  # CLOSED: refused before it was established
                self._release()
                self.lost = True
            elif kind == zmq.Event.HANDSHAKE_SUCCEEDED:
                self.handshaken = True
            elif kind == zmq.Event.HANDSHAKE_FAILED_AUTH:
                self.failure = "it does not know this device's key, or has revoked it"

    def now(self) -> TcpInfo | None:
        """Return the kernel's counts of the open connection; None without one."""
        return None if self._fd is None else tcp_info(self._fd)

    def totals(self) -> tuple[int, int]:
        """Return the bytes sent and received over all connections so far."""
        self.poll()
        live = self.now()
        sent, received = (live.sent_bytes, live.received_bytes) if live else (0, 0)
        return self._past[0] + sent, self._past[1] + received

    def end_connection(self, timeout_ms: int) -> None:
        """Shut the live connection down, and wait until libzmq has noticed."""
        self.poll()
        if self._fd is None or self.lost:
            return
        with contextlib.suppress(OSError), same_socket(self._fd) as connection:
            self._release()  # the kernel counts the other side's FIN as a byte
            connection.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + timeout_ms / 1e3
        while not self.lost and (left_s := deadline - time.monotonic()) > 0:
            self.poll(max(1, int(1e3 * left_s)))

    def discard_unsent(self) -> None:
        """Have the live connection reset when it is closed, so that the kernel does not go on to send."""
        if self._fd is not None:
            with contextlib.suppress(OSError), same_socket(self._fd) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def leave_bbr(self) -> None:
        """Choose Reno for the live connection: BBR would pace a few small messages by a rate derived from them."""
        if self._fd is not None and _TCP_CONGESTION is not None:
            with contextlib.suppress(OSError), same_socket(self._fd) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, b"reno")

    def close(self) -> None:
        """Stop counting. ``totals`` keeps its last value."""
        self.poll()
        self._release()
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._closed = True

    def _release(self) -> None:
        if self._fd is None:
            return
        live = tcp_info(self._fd)
        if live:
            self._past = (self._past[0] + live.sent_bytes, self._past[1] + live.received_bytes)
        os.close(self._fd)
        self._fd = None
