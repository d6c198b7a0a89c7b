"""One connection of a device to its trainer: a fresh socket that is never reused.

Heartbeats notice a dead peer within seconds, and every retry uses a fresh socket: a kept one wakes up to 20 s late and
with duplicates.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import zmq

from adc_edge.errors import LinkError
from adc_edge.security.authenticator import secure_client
from adc_edge.security.keystore import KeyPair, load_pair, trainer_key
from adc_edge.wire.addresses import CONNECT_S, examine_address, parse_address
from adc_edge.wire.sockets import set_socket_options
from adc_edge.wire.tcp import SocketMeter, frame_bytes

ANOTHER_ADDRESS = "check host and port: `adc-edge trainer` logs the address on which it listens"
_ALLOW = "on the trainer type adc-edge keys allow NAME FILE, where FILE holds the line: public = {}"
_NEVER_MS = 24 * 3_600_000
_END_MS = 1_000  # libzmq needs less than 1 ms, a busy machine some more
_PROBE_S = 1.0
_ONE_SIDE = "keys on one side only"
_OTHER_KEY = "its key is not the one in trainer.key"
_PIN = "with a copy of the trainer's public.key type adc-edge keys pin FILE, with this device's --keys DIR"
_KEYS_THERE = "start the trainer with its --keys DIR, or leave --keys out here if both run on one machine"
_KEYS_HERE = "use --keys DIR, a directory made by adc-edge keys new, and exchange public keys: docs/security.md"
_TICK_MS = 100  # how soon a signal or a dead link is noticed while waiting


class LinkLost(Exception):
    """The connection ended; a fresh one may work. Never leaves this module's users without a retry.

    ``remedy`` is what to do about it if that is known.
    """

    def __init__(self, why: str | None = None, remedy: str = "") -> None:
        super().__init__(why)
        self.remedy = remedy


class TrainerBusy(LinkLost):
    """The trainer is there, but cannot do what was asked at the moment."""


class NotATrainer(LinkLost):
    """Something that is not adc-edge answers at the address."""

    def __init__(self, why: str) -> None:
        super().__init__(why, ANOTHER_ADDRESS)


def not_reached(endpoint: str, cause: BaseException | None, waited_s: float) -> LinkError:
    """Return the error of a device that has tried for ``waited_s`` seconds, and failed at last by ``cause``."""
    if isinstance(cause, TrainerBusy):
        return LinkError(
            f"the trainer at {endpoint} is there, and has no room for this device after {waited_s:.0f} s ({cause})",
            "a trainer with room for one more device",
            "wait until other devices have finished, start another trainer, or let it keep trying with --wait inf",
        )
    known = cause.remedy if isinstance(cause, LinkLost) else ""
    return LinkError(
        f"no trainer at {endpoint} after {waited_s:.0f} s ({cause})",
        "a running `adc-edge trainer` bound to that address",
        known or "check address, firewall and keys, or let it keep trying with --wait inf",
    )


class Stopped(Exception):
    """The caller asked to stop while it was waiting."""


class ClientKeys(NamedTuple):
    """Keys of a device for an encrypted connection: its own pair, and the trainer's public key that it pins."""

    own: KeyPair
    trainer: bytes

    @classmethod
    def load(cls, directory: Path) -> ClientKeys:
        """From a key directory; raises SettingError with the command to type."""
        return cls(load_pair(directory), trainer_key(directory))


class Connection:
    """A DEALER socket, and in ``meter`` what the kernel knows of its connection.

    Args:
        context: of the socket.
        endpoint: ``tcp://HOST:PORT``, numeric.
        keys: None for an open connection.
        stop: asked while waiting; True raises Stopped.
        connect_s: how long to wait for the TCP connection.

    Raises:
        LinkLost: the address makes no sense to the system.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        keys: ClientKeys | None,
        stop: Callable[[], bool],
        connect_s: float = CONNECT_S,
    ) -> None:
        self._stop, self._encrypted = stop, keys is not None
        self._allow = "" if keys is None else _ALLOW.format(keys.own.public.decode())
        self._address = parse_address(endpoint)
        self._socket = context.socket(zmq.DEALER)
        set_socket_options(self._socket, endpoint)
        self._socket.setsockopt(zmq.CONNECT_TIMEOUT, round(1e3 * connect_s))
        # A fresh socket per retry instead. With IMMEDIATE, or RECONNECT_IVL -1, libzmq drops what it has received but
        # not yet handed over when the connection ends: a trainer's last answer, for example.
        self._socket.setsockopt(zmq.RECONNECT_IVL, _NEVER_MS)
        if keys is not None:
            secure_client(self._socket, keys.own, keys.trainer)
        self.meter = SocketMeter(self._socket)
        self.framed = (0, 0)  # bytes of frames sent and received
        self._connect_s, self._deadline = connect_s, time.monotonic() + connect_s
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise LinkLost(error.strerror) from None

    def writable(self) -> None:
        """Wait until something can be sent; raises LinkLost, Stopped."""
        deadline = time.monotonic() + CONNECT_S
        self.meter.poll()
        while not self.meter.handshaken:
            self._check_alive()
            if time.monotonic() > deadline:
                raise self._silent()
            self.meter.poll(_TICK_MS)
        self._check_alive()

    def send(self, header: bytes, piece: bytes | memoryview) -> None:
        """Send two frames; raises LinkLost, Stopped."""
        self.writable()
        self._socket.send_multipart([header, piece], zmq.NOBLOCK, copy=False)  # of a body that stays as it is
        self.framed = (self.framed[0] + frame_bytes(header, piece), self.framed[1])

    def receive(self, deadline: float | None) -> list[memoryview]:
        """The next frames; raises LinkLost, also when ``deadline`` (of the monotonic clock) has passed, and Stopped.

        What came before the connection ended is still received.
        """
        while not self._socket.poll(_TICK_MS, zmq.POLLIN):
            self.meter.poll()
            if self.meter.lost and self._socket.poll(0, zmq.POLLIN):
                break
            self._check_alive()
            if deadline is not None and time.monotonic() > deadline:
                raise self._unanswered()
        frames = [frame.buffer for frame in self._socket.recv_multipart(copy=False)]
        self.framed = (self.framed[0], self.framed[1] + frame_bytes(*frames))
        return frames

    def arrived(self, wait_ms: int) -> bool:
        """Return whether a frame can be received, after ``wait_ms`` at most; raises LinkLost, Stopped."""
        if self._socket.poll(wait_ms, zmq.POLLIN):
            return True
        self.meter.poll()
        self._check_alive()
        return False

    def close(self) -> None:
        """Drop it at once; the meter keeps its last totals.

        The TCP connection ends first, and the socket is closed once libzmq has noticed. Otherwise libzmq 4.3.5 can
        abort the process: if the peer ends the connection just after the close, while a batch of bytes ends between
        the two frames of a message (session_base.cpp:233, libzmq#3442).
        """
        self.meter.end_connection(_END_MS)
        self.meter.close()
        self._socket.close(0)

    def _check_alive(self) -> None:
        if self._stop():
            raise Stopped
        if self.meter.failure:
            raise LinkLost(self.meter.failure, self._allow)
        if self.meter.lost:
            raise self._lost()

    # libzmq tells that a connection failed, not why. Only then a plain socket asks.

    def _lost(self) -> LinkLost:
        if self.meter.handshaken:
            return LinkLost("connection closed")
        if not self.meter.connected and time.monotonic() > self._deadline - _TICK_MS / 1e3:
            return self._silent()
        found = examine_address(self._address, _PROBE_S)
        if found.foreign:
            return NotATrainer(found.text)
        if not self.meter.connected:
            return LinkLost(f"connection refused by {self._address}" if found.connect_s is not None else found.text)
        if found.silent:
            return LinkLost(found.text)
        why, remedy = self._hung_up(found.mechanism)
        return LinkLost(f"it hung up during the handshake: {why}", remedy)

    def _hung_up(self, mechanism: str) -> tuple[str, str]:
        """Return why the keys of the two sides do not meet, and the remedy; ``mechanism`` is the trainer's if known."""
        if not mechanism:
            return (f"{_OTHER_KEY}, or {_ONE_SIDE}" if self._encrypted else _ONE_SIDE), ""
        if self._encrypted and mechanism == "CURVE":
            return _OTHER_KEY, _PIN
        if self._encrypted:
            return f"{_ONE_SIDE}, this device's", _KEYS_THERE
        return f"{_ONE_SIDE}, the trainer's", _KEYS_HERE

    def _silent(self) -> LinkLost:
        if not self.meter.connected:
            return LinkLost(f"no answer from {self._address} within {self._connect_s:g} s")
        found = examine_address(self._address, _PROBE_S)
        return (NotATrainer if found.foreign else LinkLost)(found.text)

    def _unanswered(self) -> LinkLost:
        if not self.framed[1] and (found := examine_address(self._address, _PROBE_S)).foreign:
            return NotATrainer(found.text)
        return LinkLost("no answer in time")
