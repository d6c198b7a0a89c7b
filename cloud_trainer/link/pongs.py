"""Answers to Ping: the trainer about itself, and the speed of its head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adc_edge import __version__
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.profile.head_speed import HeadSpeed
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.storage.bundle import Bundle
from adc_edge.wire.link_messages import BULK_BYTES, Ping, Pong
from adc_edge.wire.messages import BUNDLE_DIGITS, VERSION


class Pongs:
    """Answers to the pings of all devices.

    Args:
        bundle: the trainer's.
        training: the head's training.
        sessions: tell whether the head is idle.
    """

    def __init__(self, bundle: Bundle, training: HeadTraining, sessions: SessionRegistry) -> None:
        self._sessions, self.head_speed = sessions, HeadSpeed(training, bundle.manifest)
        self.about: dict[str, Any] = {"version": VERSION, "trainer": __version__, "bulk_bytes": BULK_BYTES}
        self.about["bundle"] = bundle.digest[:BUNDLE_DIGITS]

    def answer(self, ping: Ping, inference: Mapping[str, Any]) -> Pong:
        """Return the answer to a Ping; ``inference`` are the fields about what is served beside training."""
        told = {**self.about, **inference} if ping.about is True else {}
        if ping.head is True:
            alone = not any(peer.session for peer in self._sessions.peers.values())
            told |= self.head_speed.tell(alone)
        return Pong(ping.nonce, ping.reply_bytes, ping.nonce, **told)
