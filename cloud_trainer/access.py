"""Whose keys are let in, and who a message is from: the proved key, never a name that somebody claims."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import zmq

from adc_edge.cloud_trainer.guard import Refusals
from adc_edge.errors import ProtocolError
from adc_edge.security.authenticator import Authenticator, secure_server, self_test
from adc_edge.security.keystore import Devices, fingerprint, load_pair

_LOOK_EVERY_S = 0.5


class Access:
    """The trainer's key directory at work on one socket.

    Args:
        directory: of ``adc-edge keys``; its changes take effect within a second.

    Raises:
        SettingError: it holds no usable pair.
    """

    def __init__(self, directory: Path) -> None:
        self._pair, self.devices = load_pair(directory), Devices(directory)
        self._authenticator: Authenticator | None = None
        self._looked_s = 0.0

    @property
    def fingerprint(self) -> str:
        """Of the trainer's own key."""
        return fingerprint(self._pair.public)

    def secure(self, context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes], refusals: Refusals) -> None:
        """Let only devices of the directory in; before ``bind``."""
        secure_server(socket, self._pair)
        self._authenticator = Authenticator(context, self.devices, lambda text: refusals.say("key", text))
        self._authenticator.start()

    def self_test(self, endpoint: str) -> None:
        """Knock as strangers do (CURVE fails open if anything is missing); raises RunError if one gets in."""
        self_test(endpoint, self._pair.public, self._authenticator)

    def owner(self, frame: Any) -> str:
        """The key that the sender of a frame has proved."""
        return str(frame.get("User-Id"))

    def check(self, owner: str) -> None:
        """Asked for every message: taking a key away does not cut a connection that stands.

        Raises:
            ProtocolError: code ``key``: it may not connect (any more).
        """
        if self.devices.name(owner.encode()) is None:
            raise self.refusal(owner)

    def refusal(self, owner: str) -> ProtocolError:
        """What a device is told whose key is not let in."""
        return ProtocolError(
            f"key {fingerprint(owner.encode())} is {self.devices.refusal(owner.encode()) or 'unknown'}",
            "a key of the trainer's directory",
            "have it allowed on the trainer: adc-edge keys allow NAME FILE --keys DIR",
            "key",
        )

    def revoked(self) -> list[tuple[str, str]]:
        """Keys, and their fingerprints, that lost their place since the last call; looks twice a second."""
        if time.monotonic() - self._looked_s < _LOOK_EVERY_S:
            return []
        self._looked_s = time.monotonic()
        return [(public.decode(), fingerprint(public)) for public in self.devices.refresh()]

    def stop(self) -> None:
        """End, before the context ends."""
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
