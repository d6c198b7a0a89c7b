"""Peers without a key that send hostile bytes, in a process of their own.

They speak ZMTP over plain sockets. libzmq can abort a client process whose connection is cut in the middle of a
multipart message (libzmq#3442), so hostile clients do without it, and their crash could not end the test.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import msgpack

from adc_edge.storage.bundle import Bundle
from adc_edge.wire.framing import sealed, to_frames
from adc_edge.wire.link_messages import Ping
from adc_edge.wire.messages import VERSION, Bye, ClassNames, Evaluate, Fetch, Hello
from tests.stub_device import Device

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)  # ZMTP 3.1, section 3.1
READY = b"\5READY" + b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
MORE, LONG, COMMAND = 1, 2, 4


class Sent(NamedTuple):
    """Number of hostile messages and connections."""

    messages: int
    connections: int


class HostilePeers:
    """A process that attacks a trainer when asked; a context."""

    def __init__(self, bundle: Path, endpoint: str, seed: int) -> None:
        self.messages = self.connections = 0
        spawn = get_context("spawn")  # torch's and libzmq's threads do not survive a fork
        self._process = ProcessPoolExecutor(1, spawn, _start, (bundle, endpoint, seed))

    def __enter__(self) -> HostilePeers:
        self._process.submit(_ready).result(120)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.shutdown(cancel_futures=True)

    def attack(self, messages: int, connections: int, seconds: float) -> None:
        """Send ``messages`` and make ``connections``, evenly within ``seconds``; wait until it is done."""
        sent = self._process.submit(_attack, messages, connections, seconds).result()
        self.messages += sent.messages
        self.connections += sent.connections


class Attacker:
    """Random frames, and real messages with something changed."""

    def __init__(self, bundle: Bundle, endpoint: str, seed: int) -> None:
        self._rng = random.Random(seed)
        self._address = ("127.0.0.1", int(endpoint.rpartition(":")[2]))
        self._peers: list[socket.socket] = []  # that have shaken hands
        self._silent: list[socket.socket] = []
        self._models = list(_real_messages(bundle))

    def attack(self, messages: int, connections: int, seconds: float) -> Sent:
        start, sent, tried, made = time.monotonic(), 0, 0, 0
        while (now := (time.monotonic() - start) / seconds) < 1 or sent < messages or made < connections:
            while sent < min(messages, now * messages):
                tried += 1
                sent += self._message()
                assert tried < 2 * messages + 100, f"{tried - sent} of {tried} messages could not be sent"
            while made < min(connections, now * connections):
                made += 1
                self._connection()
            time.sleep(0.002)
        for end in self._silent:
            end.close()
        self._silent.clear()
        return Sent(sent, made)

    def _message(self) -> bool:
        """Send one message; False if the connection had been cut."""
        try:
            if not self._peers or self._rng.random() < 0.02:
                if len(self._peers) == 8:
                    self._peers.pop(0).close()
                self._peers.append(self._handshake())
            peer = self._rng.choice(self._peers)
        except OSError:
            return False
        frames = self._frames()
        try:
            peer.sendall(b"".join(zmtp_frame(f, MORE if i < len(frames) - 1 else 0) for i, f in enumerate(frames)))
        except OSError:  # cut by the trainer, or it does not read for a second
            self._peers.remove(peer)
            peer.close()
            return False
        return True

    def _handshake(self) -> socket.socket:
        peer = socket.create_connection(self._address, timeout=1)
        peer.sendall(GREETING + zmtp_frame(READY, COMMAND))
        return peer

    def _frames(self) -> list[bytes]:
        rng = self._rng
        kind = rng.random()
        if kind < 0.25:
            return [rng.randbytes(rng.randrange(300)) for _ in range(rng.randrange(1, 6))]
        header, piece = rng.choice(self._models)
        if kind < 0.5:  # a flipped byte somewhere, the seal as it was
            frame = bytearray(sealed(header, piece))
            frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
            return [bytes(frame), piece]
        if kind < 0.75:  # a field that lies, well sealed
            fields = msgpack.unpackb(header)
            name = rng.choice(list(fields))
            fields[name] = rng.choice([0, 1, -1, 2**31 - 1, 2**63 - 1, 2**40, "x" * 2000, None, 1.5, [], b"", True])
            header = msgpack.packb(fields)
        else:  # a body that is not what the header says
            piece = rng.randbytes(rng.choice([0, 1, 100, 4096]))
        return [sealed(header, piece), piece]

    def _connection(self) -> None:
        """Connect, and leave or fall silent in the middle of the handshake."""
        rng = self._rng
        with contextlib.suppress(OSError), socket.create_connection(self._address, timeout=1) as end:
            kind = rng.randrange(4)
            if kind == 0:
                end.sendall(rng.randbytes(rng.randrange(1, 500)))
            elif kind == 1:
                end.sendall(GREETING[: rng.randrange(len(GREETING))])
            elif kind == 2:
                end.sendall(GREETING + bytes([COMMAND]) + rng.randbytes(rng.randrange(1, 100)))
            elif len(self._silent) < 200:
                self._silent.append(end.dup())


def zmtp_frame(body: bytes, flags: int) -> bytes:
    """One ZMTP frame: flags, length of 1 or 8 bytes, body."""
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | LONG]) + len(body).to_bytes(8, "big") + body


def _real_messages(bundle: Bundle) -> Iterator[tuple[bytes, bytes]]:
    """Header and piece of every frame that a real device sends."""
    device = Device(bundle, "tcp://127.0.0.1:9")
    step, body = device.message(0)
    hello = Hello(VERSION, bundle.digest, 77, 77, "hostile", 0, 0, 0)
    evaluate = Evaluate(77, 0, 0, 5, 17 * 32 * 4 + 4, 1, "fp32")
    bodies = ((hello, b""), (step, body), (evaluate, bytes(17 * 32 * 4 + 4)), (Fetch(77, 0, None, 3), b""))
    for message, whole in (*bodies, (Ping(1, 100, 0, 1), b""), (Bye(77), b""), (ClassNames(77, 9, 5), b"\x91\xa3cat")):
        for frame, piece in to_frames(message, whole):
            yield frame[:-8], bytes(piece)
    device.session.close()


_attacker: Attacker


def _start(bundle: Path, endpoint: str, seed: int) -> None:
    """In the attacking process, whose low priority stands for machines of its own."""
    global _attacker
    os.nice(10)
    _attacker = Attacker(Bundle.load(bundle, need=()), endpoint, seed)


def _ready() -> None:
    """Return once the process has started."""


def _attack(messages: int, connections: int, seconds: float) -> Sent:
    return _attacker.attack(messages, connections, seconds)
