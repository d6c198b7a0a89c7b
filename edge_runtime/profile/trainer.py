"""The speed of a trainer's head, as it tells it without a session. It measures while it is asked."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import UNSET, UnsetType

from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.errors import LinkError
from adc_edge.planning.profile import TrainerProfile, TrainerShare
from adc_edge.wire.channel import Channel
from adc_edge.wire.connection import ClientKeys, LinkLost
from adc_edge.wire.link_messages import Ping, Pong
from adc_edge.wire.messages import BUNDLE_DIGITS
from adc_edge.wire.sockets import check_endpoint

_ANSWER_MS = 60_000  # a trainer that computes another device's step answers late
_MOST_S = 120.0  # each question is answered after a moment, so only a busy trainer takes so long

logger = logging.getLogger(__name__)


@contextmanager
def trainer_channel(settings: ServeSettings) -> Iterator[Channel]:
    """Yield an open channel to the trainer of ``settings``, with their keys.

    Raises:
        SettingError: an address that needs keys, or keys that cannot be read.
        LinkError: no trainer answers.
    """
    endpoint = check_endpoint(settings.trainer, settings.insecure, settings.keys is not None, connecting=True)
    keys = None if settings.keys is None else ClientKeys.load(settings.keys)
    channel = Channel(endpoint, keys=keys, loopback_alone=keys is None and not settings.insecure)
    try:
        channel.open(settings.wait_s)
        yield channel
    finally:
        channel.close()


def ask_trainer(channel: Channel, digest: str) -> TrainerProfile | None:
    """Return the speed of the head, or None, with a warning, from a trainer that does not tell it.

    Args:
        channel: open.
        digest: of this device's bundle. A trainer of another one has another head.

    Raises:
        LinkError: the link broke, or the trainer has another bundle.
        RefusedError: the trainer refused.
    """
    deadline, nonce = time.monotonic() + _MOST_S, 0
    try:
        while time.monotonic() < deadline:
            nonce += 1
            channel.send(Ping(nonce, 0, about=True, head=True))
            answer, _ = channel.receive(_ANSWER_MS)
            assert isinstance(answer, Pong)
            if answer.bundle is not UNSET and answer.bundle != digest[:BUNDLE_DIGITS]:
                raise LinkError(
                    f"the trainer at {channel.endpoint} has bundle {answer.bundle[:8]}…",
                    f"this device's, {digest[:8]}…",
                    "start the trainer with this bundle, or copy its bundle to this device",
                )
            if answer.head is not UNSET:
                return answer.head
            if answer.measuring is not True:
                _warn(answer)
                return None
    except LinkLost as lost:
        raise _broken(channel, lost) from None
    logger.warning("the trainer is too busy to measure its head: the profile has no trainer")
    return None


def ask_share(channel: Channel) -> TrainerShare | UnsetType:
    """Return this device's share of a trainer that works for others at the moment; UNSET: it works for none.

    Raises:
        LinkError: the link broke.
        RefusedError: the trainer refused.
    """
    try:
        channel.send(Ping(0, 0))
        answer, _ = channel.receive(_ANSWER_MS)
    except LinkLost as lost:
        raise _broken(channel, lost) from None
    assert isinstance(answer, Pong)
    return answer.share.expected() if answer.share else UNSET


def _broken(channel: Channel, lost: LinkLost) -> LinkError:
    return LinkError(f"the link to {channel.endpoint} broke ({lost})", "a link that lasts", "try again")


def _warn(pong: Pong) -> None:
    if pong.fault:
        logger.warning("the trainer cannot measure its head (%s): the profile has no trainer", pong.fault)
        return
    version = "0.7 or older" if pong.trainer is UNSET else pong.trainer
    logger.warning("the trainer (adc-edge %s) does not tell the speed of its head: the profile has no trainer", version)
