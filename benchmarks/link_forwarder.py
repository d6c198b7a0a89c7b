"""The process of the link emulator: it forwards packets between two TUN devices (see link_emulator.py)."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

DEVICE, TRAINER = "10.77.0.1", "10.77.0.2"
TUN = Path("/dev/net/tun")
_TUNSETIFF, _IFFTUN, _IFF_NO_PI, _CLONE_NEWNET = 0x400454CA, 0x0001, 0x1000, 0x40000000
_SETTINGS = {
    "ipv6/conf/all/disable_ipv6": "1",  # IPv6's own packets would take a share of a slow link
    "ipv4/tcp_no_metrics_save": "1",  # a connection must not reuse the measurements of an earlier one
}
_BATCH = 64  # number of packets to read before the due packets are written
_IDLE_S = 0.02


class Way(NamedTuple):
    """One direction of a link. A loss of 1 drops every packet."""

    rate_mbit_s: float
    delay_ms: float  # one way
    queue_bytes: int | None = None  # drop-tail; None: rate times twice the delay, at least 256 KiB
    loss: float = 0.0  # probability that a packet is lost

    @property
    def room_bytes(self) -> float:
        if self.queue_bytes is not None:
            return self.queue_bytes
        return max(2**18, self.rate_mbit_s * 1e6 / 8 * 2 * self.delay_ms / 1e3)


class Stats(NamedTuple):
    """Statistics of the emulator. The first two count since the last ``set``, the others since the start."""

    lag_ms: float  # largest delay behind the due time, of a packet or of a turn of the loop
    cpu_share: float  # share of one core
    up_bytes: int  # delivered bytes, IP headers included
    down_bytes: int
    lost: int  # packets that were dropped at random
    overflowed: int  # packets that found the queue full


def enter(namespace: str | int) -> None:
    """Move the calling thread into a network namespace, with all threads and processes that it starts later."""
    with open(namespace if isinstance(namespace, int) else f"/run/netns/{namespace}") as file:
        libc = ctypes.CDLL(None, use_errno=True)  # os.setns needs Python 3.12
        if libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Run a block in a namespace. Sockets that it makes, and ZeroMQ contexts that it starts, stay in the namespace."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    enter(namespace)
    try:
        yield
    finally:
        enter(before)


class Direction:
    """A queue, a transmitter that sends one packet after the other, and the packets in transit."""

    def __init__(self, way: Way, seed: int) -> None:
        self.way, self._rng = way, random.Random(seed)
        self._waiting: deque[tuple[float, bytes]] = deque()  # arrival, packet
        self._flying: deque[tuple[float, bytes]] = deque()  # due time, packet
        self._waiting_bytes, self._free_s, self._last_s = 0, 0.0, 0.0
        self.bytes = self.lost = self.overflowed = 0

    def read(self, tun: int) -> None:
        """Queue the packets that have arrived."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(_BATCH):
                packet = os.read(tun, 65_536)
                if self._waiting_bytes + len(packet) > self.way.room_bytes:
                    self.overflowed += 1
                    continue
                self._waiting_bytes += len(packet)
                self._waiting.append((time.monotonic(), packet))

    def transmit(self, now: float) -> None:
        """Transmit the packets whose turn has come by now, at the present rate."""
        while self._waiting and self._free_s <= now:
            arrival, packet = self._waiting.popleft()
            self._waiting_bytes -= len(packet)
            self._free_s = max(self._free_s, arrival) + len(packet) * 8 / (self.way.rate_mbit_s * 1e6)
            if self.way.loss and self._rng.random() < self.way.loss:
                self.lost += 1
                continue
            self._last_s = max(self._last_s, self._free_s + self.way.delay_ms / 1e3)  # order is kept
            self._flying.append((self._last_s, packet))

    def next_s(self) -> float:
        """The latest time of the next turn."""
        due = self._flying[0][0] if self._flying else float("inf")
        return min(due, self._free_s + self.way.delay_ms / 1e3) if self._waiting else due

    def deliver(self, tun: int, now: float) -> float:
        """Write the due packets. Return the lateness of the first one in seconds."""
        late = max(0.0, now - self._flying[0][0]) if self._flying else 0.0
        while self._flying and self._flying[0][0] <= now:
            packet = self._flying.popleft()[1]
            self.bytes += len(packet)
            with contextlib.suppress(OSError):  # the device at the other end is full or down
                os.write(tun, packet)
        return late


class _Forwarder:
    def __init__(self, tuns: list[int], up: Way, down: Way, seed: int) -> None:
        self.up, self.down = Direction(up, seed), Direction(down, seed + 1)
        self._ways = ((tuns[0], self.up, tuns[1]), (tuns[1], self.down, tuns[0]))
        self._late_s, self._wall_s, self._cpu_s = 0.0, time.monotonic(), time.process_time()

    def run(self, control: Connection, parent: int) -> None:
        """Forward packets until the order to end, or until the parent process has ended."""
        inputs, turn = [*(way[0] for way in self._ways), control.fileno()], time.monotonic()
        while os.getppid() == parent:
            wake = min(self.up.next_s(), self.down.next_s(), turn + _IDLE_S)
            ready, _, _ = select.select(inputs, [], [], max(0.0, wake - turn))
            now = time.monotonic()
            late_s = now - wake  # overslept
            for source, direction, sink in self._ways:
                if source in ready:
                    direction.read(source)
                direction.transmit(now)
                late_s = max(late_s, direction.deliver(sink, now))
            turn = time.monotonic()
            self._late_s = max(self._late_s, late_s, turn - now)
            if inputs[-1] in ready and not self._obey(control):
                return

    def _obey(self, control: Connection) -> bool:
        try:
            order = control.recv()
        except EOFError:
            return False
        if order is None:
            return False
        stats = self._stats() if order == "stats" else None
        if stats is None:
            self.up.way, self.down.way = order[0] or self.up.way, order[1] or self.down.way
            self._restart()
        control.send((None, stats))
        return True

    def _restart(self) -> None:
        self._late_s, self._wall_s, self._cpu_s = 0.0, time.monotonic(), time.process_time()

    def _stats(self) -> Stats:
        share = (time.process_time() - self._cpu_s) / (time.monotonic() - self._wall_s)
        lost, overflowed = (getattr(self.up, name) + getattr(self.down, name) for name in ("lost", "overflowed"))
        return Stats(self._late_s * 1e3, share, self.up.bytes, self.down.bytes, lost, overflowed)


def emulate(control: Connection, parent: int, ends: tuple[Any, ...], link: tuple[Any, ...]) -> None:
    """Emulate the link until ``control`` or the parent process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark handles it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # multiprocessing sends it when the benchmark ends
    gc.disable()  # there is no garbage, and a collection takes milliseconds
    try:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -20)
        forwarder = _Forwarder(_connect(*ends), *link)
        control.send((None, None))
        forwarder.run(control, parent)
    except (OSError, subprocess.CalledProcessError) as error:
        with contextlib.suppress(OSError):  # the benchmark has ended
            control.send((getattr(error, "stderr", "") or str(error), None))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        remove(ends[0])


def _connect(namespaces: tuple[str, str], mtu_bytes: int, congestion: str | None) -> list[int]:
    """Make both namespaces. Return their TUN devices."""
    tuns = []
    for namespace, own, peer in zip(namespaces, (DEVICE, TRAINER), (TRAINER, DEVICE), strict=True):
        _ip("netns", "add", namespace)
        with inside(namespace):
            for name, value in _SETTINGS.items():
                with contextlib.suppress(FileNotFoundError):
                    Path("/proc/sys/net", name).write_text(value)
            tuns.append(os.open(TUN, os.O_RDWR | os.O_NONBLOCK))
            fcntl.ioctl(tuns[-1], _TUNSETIFF, struct.pack("16sH22x", b"link0", _IFFTUN | _IFF_NO_PI))
            _ip("link", "set", "lo", "up")
            _ip("addr", "add", own, "peer", peer, "dev", "link0")
            _ip(
                "link", "set", "link0", "mtu", str(mtu_bytes), "txqueuelen", "10000", "up"
            )  # only the queue of the emulator drops packets
            if congestion is not None:
                _ip("route", "replace", peer, "dev", "link0", "src", own, "congctl", congestion)
    return tuns


def _ip(*arguments: str) -> None:
    subprocess.run(("ip", *arguments), check=True, capture_output=True, text=True)


def remove(namespaces: tuple[str, str]) -> None:
    for namespace in namespaces:
        if Path("/run/netns", namespace).exists():
            subprocess.run(("ip", "netns", "del", namespace), capture_output=True, check=False)
