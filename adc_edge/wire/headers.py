"""A message <-> its header in MessagePack. What comes from the other side is checked for its types and ranges."""

from __future__ import annotations

import contextlib
from typing import TypeVar

import msgspec

from adc_edge.errors import ProtocolError, RefusedError
from adc_edge.wire.message import Message
from adc_edge.wire.messages import HEADER_BYTES, VERSION, FromDevice, FromTrainer, Hello, Refused

_ENCODER = msgspec.msgpack.Encoder()
_FROM_DEVICE: msgspec.msgpack.Decoder[FromDevice] = msgspec.msgpack.Decoder(FromDevice)
_FROM_TRAINER: msgspec.msgpack.Decoder[FromTrainer] = msgspec.msgpack.Decoder(FromTrainer)

_M = TypeVar("_M")
_SAME_VERSION = "install the same version of adc-edge on the device and the trainer"


class _Version(msgspec.Struct, tag_field="kind", tag="hello"):
    """The part of a Hello that all protocol versions share."""

    version: int


_VERSION = msgspec.msgpack.Decoder(_Version)


def pack_header(message: Message) -> bytes:
    """Return the header of a message as MessagePack."""
    return _ENCODER.encode(message)


def unpack_from_device(header: bytes) -> FromDevice:
    """Decode a device's header.

    Raises:
        ProtocolError: code ``version`` or ``malformed``.
    """
    try:
        message = _unpack(_FROM_DEVICE, header)
    except ProtocolError:
        check_foreign(header)
        raise
    if isinstance(message, Hello):
        _check_version(message.version)
    return message


def check_foreign(frame: bytes) -> None:
    """Raise an error if a frame with a wrong seal is a Hello of another version, with other fields or without a seal.

    Raises:
        ProtocolError: code ``version``.
    """
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        _check_version(_VERSION.decode(frame).version)


def check_foreign_refusal(frame: bytes) -> None:
    """Raise an error if a frame with a wrong seal is the refusal of a trainer of another version, which has no seal.

    Raises:
        RefusedError: it is such a refusal, whatever its code: version 1 calls a Hello with a seal malformed.
    """
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        refused = _FROM_TRAINER.decode(frame)
        if isinstance(refused, Refused):
            raise RefusedError(refused.code, refused.received, refused.expected, refused.remedy)


def _check_version(seen: int) -> None:
    if seen != VERSION:
        raise ProtocolError(f"protocol version {seen}", f"version {VERSION}", _SAME_VERSION, "version")


def unpack_from_trainer(header: bytes) -> FromTrainer:
    """Decode a trainer's header.

    Raises:
        ProtocolError: code ``malformed``.
    """
    return _unpack(_FROM_TRAINER, header)


def _unpack(decoder: msgspec.msgpack.Decoder[_M], header: bytes) -> _M:
    if len(header) > HEADER_BYTES:
        raise ProtocolError(f"a header of {len(header)} bytes", f"at most {HEADER_BYTES}", _SAME_VERSION, "size")
    try:
        return decoder.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"a header that is no message ({error})", "an adc-edge message", _SAME_VERSION) from None
