"""Questions to a trainer on a new connection: whether it answers inference with this bundle, and the class names."""

from __future__ import annotations

import secrets

from msgspec import UNSET

from adc_edge.errors import SettingError
from adc_edge.wire.channel import Channel
from adc_edge.wire.class_names import pack_names, unpack_names
from adc_edge.wire.connection import LinkLost
from adc_edge.wire.link_messages import Ping, Pong
from adc_edge.wire.messages import BUNDLE_DIGITS, ClassNames


class TrainerQuestions:
    """The questions, and the names that the last trainer has told.

    Args:
        channel: to the trainer.
        digest: of the device's bundle.
        wants_names: whether the class names are asked for.
    """

    def __init__(self, channel: Channel, digest: str, wants_names: bool) -> None:
        self._channel, self._digest, self._wants_names = channel, digest[:BUNDLE_DIGITS], wants_names
        self.names: list[str] = []  # of a trainer that may yet refuse

    def ask(self) -> None:
        """Send the questions; raises LinkLost, Stopped."""
        self._channel.send(Ping(0, 0, about=True))
        if self._wants_names:
            nothing = pack_names([])
            self._channel.send(ClassNames(0, secrets.randbits(62), len(nothing)), nothing)

    def check(self, timeout_ms: float | None) -> None:
        """Receive the answers, and take the names.

        Raises:
            LinkLost: no answer in time, or another one.
            SettingError: the trainer trains, or has another bundle.
            RefusedError, Stopped: see ``Channel.receive``.
        """
        pong, _ = self._channel.receive(timeout_ms)
        if not isinstance(pong, Pong):
            raise LinkLost(f"a {type(pong).__name__} instead of a Pong")
        self._check_pong(pong)
        if self._wants_names:
            answer, body = self._channel.receive(timeout_ms)
            if not isinstance(answer, ClassNames):
                raise LinkLost(f"a {type(answer).__name__} instead of the class names")
            self.names = unpack_names(body)

    def _check_pong(self, pong: Pong) -> None:
        endpoint = self._channel.endpoint
        if pong.infers is not True:
            raise SettingError(
                f"the trainer at {endpoint} does not answer inference",
                "one that serves a head and trains nothing",
                "start it with: adc-edge trainer --serve-only",
            )
        if pong.bundle is not UNSET and pong.bundle != self._digest:
            raise SettingError(
                f"the trainer at {endpoint} has bundle {pong.bundle[:8]}…",
                f"this device's, {self._digest[:8]}…",
                "start the trainer with this bundle, or copy its bundle to this device",
            )
