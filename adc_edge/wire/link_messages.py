"""Messages that measure the link and ask about the trainer, outside every session."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType

from adc_edge.planning.profile import TrainerProfile, TrainerShare
from adc_edge.wire.message import CHUNK_BYTES, Count, Id, Message, Text

BULK_BYTES = 4 * 2**20  # of padding in one message that measures the link


class Ping(Message, frozen=True):
    """Sent by the device to measure the link, without a session. The body is padding, and so are ``reply_bytes``."""

    nonce: Id
    reply_bytes: Annotated[int, msgspec.Meta(ge=0, le=CHUNK_BYTES)]
    body_bytes: Annotated[int, msgspec.Meta(ge=0, le=CHUNK_BYTES)] = 0
    transfer: Id = 0
    about: bool | UnsetType = UNSET  # whether the Pong is to tell about the trainer
    head: bool | UnsetType = UNSET  # whether the Pong is to tell the speed of the head, which is measured meanwhile


class Bulk(Message, frozen=True):
    """Sent by the device to measure the link, on a connection without a session. Body: padding.

    The answer has ``reply_bytes`` of padding. Only a trainer whose Pong tells ``bulk_bytes`` knows this message.
    """

    transfer: Id
    reply_bytes: Annotated[int, msgspec.Meta(ge=0, le=BULK_BYTES)] = 0
    body_bytes: Annotated[int, msgspec.Meta(ge=0, le=BULK_BYTES)] = 0
    session: Id = 0  # as in the Chunks of its body


class Pong(Message, frozen=True):
    """The trainer's answer to a Ping: padding, and what it asked about the trainer; 0.7 and older tell nothing."""

    nonce: Id
    body_bytes: Count = 0
    transfer: Id = 0
    version: Count | UnsetType = UNSET  # of the protocol, as in Hello
    trainer: Text | UnsetType = UNSET  # version of the trainer
    bundle: Text | UnsetType = UNSET  # the first BUNDLE_DIGITS of its digest
    head: TrainerProfile | UnsetType = UNSET  # speed of the head; 0.8 and older do not tell
    measuring: bool | UnsetType = UNSET  # whether the speed of the head is being measured: the device is to ask again
    bulk_bytes: Count | UnsetType = UNSET  # largest body of a Bulk; 0.8 and older answer none
    share: TrainerShare | UnsetType = UNSET  # as in Gradient, whether or not it was asked about
    infers: bool | UnsetType = UNSET  # whether it answers Infer, and nothing of a training; 0.10 does not
    fault: Text | UnsetType = UNSET  # why the speed of the head cannot be measured


class BulkAnswer(Message, frozen=True):
    """The trainer's answer to a Bulk: padding, and the kernel's figures of its sending, where the kernel has them."""

    transfer: Id
    body_bytes: Annotated[int, msgspec.Meta(ge=0, le=BULK_BYTES)] = 0
    session: Id = 0
    pause_s: float = 0.0  # the device must send no other Bulk for so long: the trainer is serving others
    sent_bytes: Id | UnsetType = UNSET  # first transmissions
    resent_bytes: Id | UnsetType = UNSET  # retransmissions
    unsent_bytes: Count | UnsetType = UNSET  # waiting in the kernel before this answer
    rtt_ms: float | UnsetType = UNSET  # smoothed
    rtt_min_ms: float | UnsetType = UNSET
    congestion: Text | UnsetType = UNSET
