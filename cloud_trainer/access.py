"""Admission of devices by their keys. A sender is identified by the key it has proved, never by a name it claims."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import zmq

from adc_edge.cloud_trainer.guard import Refusals
from adc_edge.errors import ProtocolError
from adc_edge.security.authenticator import Authenticator, secure_server, self_test
from adc_edge.security.keystore import Devices, fingerprint, load_pair

_READ_EVERY_S = 0.5


class Access:
    """The trainer's key directory, applied to one socket.

    Args:
        directory: key directory made by ``adc-edge keys``; changes in it take effect within a second.

    Raises:
        SettingError: the directory holds no usable key pair.
    """

    def __init__(self, directory: Path) -> None:
        self._pair, self.devices = load_pair(directory), Devices(directory)
        self._authenticator: Authenticator | None = None
        self._read_s = 0.0

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the trainer's own key."""
        return fingerprint(self._pair.public)

    @property
    def secret(self) -> bytes:
        """The trainer's own secret key, from which others are derived."""
        return self._pair.secret

    def secure(self, context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes], refusals: Refusals) -> None:
        """Admit only devices of the directory; to be called before ``bind``."""
        secure_server(socket, self._pair)
        self._authenticator = Authenticator(context, self.devices, partial(refusals.refuse, "key"))
        self._authenticator.start()

    def self_test(self, endpoint: str) -> None:
        """Connect as unauthenticated peers do, since CURVE fails open; raises RunError if one is admitted."""
        self_test(endpoint, self._pair.public, self._authenticator)

    def owner(self, frame: Any) -> str:
        """The public key that the sender of a frame has proved."""
        return str(frame.get("User-Id"))

    def name(self, owner: str) -> str | None:
        """The name that the trainer's directory gives a key; None for a key that is not admitted."""
        return self.devices.name(owner.encode())

    def check(self, owner: str) -> None:
        """Check the sender's key; needed for every message, since removing a key cuts no connection.

        Raises:
            ProtocolError: code ``key``: the key is unknown or revoked.
        """
        if self.name(owner) is None:
            raise self.refusal(owner)

    def refusal(self, owner: str) -> ProtocolError:
        """The refusal of a device whose key is not admitted."""
        return ProtocolError(
            f"key {fingerprint(owner.encode())} is {self.devices.refusal(owner.encode()) or 'unknown'}",
            "a key of the trainer's directory",
            "have it allowed on the trainer: adc-edge keys allow NAME FILE --keys DIR",
            "key",
        )

    def revoked(self) -> list[tuple[str, str]]:
        """Keys revoked since the last call, with their fingerprints; reads the directory twice a second."""
        if time.monotonic() - self._read_s < _READ_EVERY_S:
            return []
        self._read_s = time.monotonic()
        return [(public.decode(), fingerprint(public)) for public in self.devices.refresh()]

    def stop(self) -> None:
        """Stop the authenticator; to be called before the context ends."""
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
