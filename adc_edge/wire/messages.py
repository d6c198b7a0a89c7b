"""The messages between a device and its trainer: MessagePack headers as frozen typed structs.

A message is one header and, for some, a body of raw tensors; `framing.py` cuts the body into chunks. Headers are
plain MessagePack maps with a ``kind``, so that any language can read them and an older peer can at least read the
``version`` of a newer one. Every number is checked by `limits.py` before a byte is allocated for it.

Letters: B images, T clusters, k kept tokens, D channels, L label triples.
"""

from __future__ import annotations

import contextlib
from typing import Annotated, Literal, TypeVar, get_args

import msgspec

from adc_edge.codec.precision import Precision
from adc_edge.errors import ProtocolError, RefusedError

VERSION = 3
CHUNK_BYTES = 64 * 1024  # small enough to live through heartbeats on a 0.1 Mbit/s link
HEADER_BYTES = 4096
SEAL_BYTES = 8  # XXH3 of header and piece, after the header
TRIPLE_BYTES = 12  # cluster, class, count: three little-endian int32
LABEL_BYTES = 4  # one little-endian int32

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Text = Annotated[str, msgspec.Meta(max_length=1024)]

RefusalCode = Literal[
    "version",
    "bundle",
    "key",  # unknown or revoked
    "identity",  # the session belongs to another key
    "superseded",  # another process speaks for this device now
    "history",  # the two sides' states cannot be brought together
    "busy",  # a limit of the trainer is reached for now
    "unknown-device",  # no Hello on this connection
    "corrupt",  # bytes changed on the way
    "malformed",
    "size",
    "shape",
    "labels",
    "order",
    "nan",
]
REFUSAL_CODES: tuple[str, ...] = get_args(RefusalCode)


class Message(msgspec.Struct, frozen=True, tag_field="kind", tag=str.lower):
    """Root of all messages."""


class Hello(Message, frozen=True):
    """Device: opens or resumes a session. ``next_step`` is the first step it has no gradient for."""

    version: int
    bundle: Text  # SHA-256 of manifest.json
    session: Id
    incarnation: Id = msgspec.field(name="life")  # random, one a process: the newest of a session speaks for it
    device: Text  # a label for logs, no identity
    next_step: Count
    durable: Count | None  # it will never come back older than this step; None: it keeps nothing on disk
    oldest: Count  # its journal can feed a trainer that stands at this step or later
    steps: Count = 0  # planned in all, 0 if unknown: the head's schedule may need it
    micro_batches: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1  # of every step


class Step(Message, frozen=True):
    """Device: one micro-batch. Body: activations [T, k, D] in ``precision``, then triples int32 [L, 3]."""

    session: Id
    step: Count
    micro_batch: Count
    transfer: Id
    body_bytes: Count
    images: Positive
    clusters: Positive
    kept: Positive
    triples: Positive
    precision: Precision
    gradient: Precision | None  # what it shall travel in; None: the trunk is frozen, send no gradient
    durable: Count | None = 0  # as in Hello
    replay: bool = False  # from the journal: the device has had the gradient, so it need not travel again
    offset: Count = 0  # where the first piece lies: what is before it arrived on an earlier connection


class Evaluate(Message, frozen=True):
    """Device: test images, nothing merged or dropped. Body: activations [B, N, D], then labels int32 [B]."""

    session: Id
    step: Count
    part: Count
    transfer: Id
    body_bytes: Count
    images: Positive
    precision: Precision
    offset: Count = 0


class Fetch(Message, frozen=True):
    """Device: the answer to a step, or to one part of its evaluation, that the trainer has given already."""

    session: Id
    step: Count
    part: Count | None  # None: the gradient
    transfer: Id
    micro_batch: Count = 0
    durable: Count | None = 0
    offset: Count = 0  # of the answer's body: what is before it has arrived


class Ping(Message, frozen=True):
    """Device: measures the link, outside any session. The body is ballast; the reply carries ``reply_bytes``."""

    nonce: Id
    reply_bytes: Annotated[int, msgspec.Meta(ge=0, le=CHUNK_BYTES)]
    body_bytes: Annotated[int, msgspec.Meta(ge=0, le=CHUNK_BYTES)] = 0
    transfer: Id = 0


class Bye(Message, frozen=True):
    """Device: the session is over; the trainer answers ByeAck."""

    session: Id


class Chunk(Message, frozen=True):
    """Either: the next piece of the body of message ``transfer``, from ``offset``."""

    session: Id
    transfer: Id
    offset: Count


class Welcome(Message, frozen=True):
    """Trainer: the session is open. ``applied`` steps of it have been applied, and ``learned`` parts of the next."""

    session: Id
    applied: Count
    learned: Count  # micro-batches
    oldest: Count  # its log has the answers from this step on
    durable: Count | None  # it will never come back with fewer steps applied; None: it keeps nothing on disk
    incarnation: Id = msgspec.field(name="life")  # random, one a process
    transfer: Id  # of the unfinished message that it holds, and how much of its body; 0, 0 if none
    received_bytes: Count
    trainer: Text  # its version, for logs


class Refused(Message, frozen=True):
    """Trainer: no, by name, and how to mend it."""

    code: RefusalCode
    received: Text
    expected: Text
    remedy: Text


class Gradient(Message, frozen=True):
    """Trainer: answer to a Step. Body: gradient [T, k, D] in ``precision``, or nothing for a frozen trunk."""

    session: Id
    step: Count
    micro_batch: Count
    transfer: Id
    body_bytes: Count
    precision: Precision
    loss: float
    accuracy: float  # share of the micro-batch's label mass on the predicted classes
    seconds_cloud: float
    down_mbit_s: float | None = None  # as the trainer's kernel sees its own sending
    durable: Count | None = None  # as in Welcome
    offset: Count = 0  # where the first piece lies


class Evaluated(Message, frozen=True):
    """Trainer: answer to an Evaluate."""

    session: Id
    step: Count
    part: Count
    images: Count
    correct: Count
    loss_sum: float
    seconds_cloud: float


class Absent(Message, frozen=True):
    """Trainer: it has no such answer (any more)."""

    session: Id
    step: Count


class Pong(Message, frozen=True):
    """Trainer: answer to a Ping, with the ballast that was asked for."""

    nonce: Id
    body_bytes: Count = 0
    transfer: Id = 0


class ByeAck(Message, frozen=True):
    """Trainer: the goodbye arrived."""

    session: Id


FromDevice = Hello | Step | Evaluate | Fetch | Ping | Bye | Chunk
FromTrainer = Welcome | Refused | Gradient | Evaluated | Absent | Pong | ByeAck | Chunk

_ENCODER = msgspec.msgpack.Encoder()
_FROM_DEVICE: msgspec.msgpack.Decoder[FromDevice] = msgspec.msgpack.Decoder(FromDevice)
_FROM_TRAINER: msgspec.msgpack.Decoder[FromTrainer] = msgspec.msgpack.Decoder(FromTrainer)

_M = TypeVar("_M")


class _Version(msgspec.Struct, tag_field="kind", tag="hello"):
    """What every version's Hello has."""

    version: int


_VERSION = msgspec.msgpack.Decoder(_Version)


def pack_header(message: Message) -> bytes:
    """Header of a message, as MessagePack."""
    return _ENCODER.encode(message)


def unpack_from_device(header: bytes) -> FromDevice:
    """Read a device's header.

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
    """Tell a Hello of another version, whose fields are not ours and which may have no seal, from a broken frame.

    Raises:
        ProtocolError: code ``version``.
    """
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        _check_version(_VERSION.decode(frame).version)


def check_foreign_refusal(frame: bytes) -> None:
    """Tell the refusal of a trainer of another version, which has no seal, from a frame that is merely broken.

    Raises:
        RefusedError: it is one, by whatever name: version 1 finds our sealed Hello malformed.
    """
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        refused = _FROM_TRAINER.decode(frame)
        if isinstance(refused, Refused):
            raise RefusedError(refused.code, refused.received, refused.expected, refused.remedy)


def _check_version(seen: int) -> None:
    if seen != VERSION:
        raise ProtocolError(
            f"protocol version {seen}",
            f"version {VERSION}",
            "install the same adc-edge on the device and the trainer",
            "version",
        )


def unpack_from_trainer(header: bytes) -> FromTrainer:
    """Read a trainer's header.

    Raises:
        ProtocolError: code ``malformed``.
    """
    return _unpack(_FROM_TRAINER, header)


def _unpack(decoder: msgspec.msgpack.Decoder[_M], header: bytes) -> _M:
    if len(header) > HEADER_BYTES:
        raise ProtocolError(f"a header of {len(header)} bytes", f"at most {HEADER_BYTES}", "use one version", "size")
    try:
        return decoder.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(
            f"a header that is no message ({error})", "an adc-edge message", "use one version"
        ) from None
