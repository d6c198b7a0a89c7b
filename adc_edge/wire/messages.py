"""The messages between a device and its trainer: MessagePack headers as frozen typed structs.

A message is one header, and for some messages a body of raw tensors. `framing.py` cuts the body into chunks. Headers
are plain MessagePack maps with a ``kind``: any language can decode them, and an older peer can read at least the
``version`` of a newer one. The trainer's `limits.py` checks every number before memory is allocated for it.

Letters: B images, T clusters, k kept tokens, D channels, L label triples.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from adc_edge.codec.precision import Precision
from adc_edge.defaults import MOST_MICRO_BATCHES
from adc_edge.planning.profile import TrainerShare
from adc_edge.wire.fleet_messages import DeviceNeeds, FleetTerms, Paused, SentSteps, TrunkAverage, TrunkDelta
from adc_edge.wire.inference_messages import Infer, Logits
from adc_edge.wire.link_messages import Bulk, BulkAnswer, Ping, Pong
from adc_edge.wire.message import CHUNK_BYTES, Count, Id, Message, Positive, Text

VERSION = 3
HEADER_BYTES = 4096
SEAL_BYTES = 8  # XXH3 hash of header and piece, stored after the header
TRIPLE_BYTES = 12  # cluster, class, count: three little-endian int32
BUNDLE_DIGITS = 12  # of a bundle's digest, as far as it is told to those who have not said it
LABEL_BYTES = 4  # one little-endian int32
NAMES_BYTES = 4 * CHUNK_BYTES  # of all class names: ImageNet-21k's WordNet ids fit

MicroBatchCount = Annotated[int, msgspec.Meta(ge=1, le=MOST_MICRO_BATCHES)]

RefusalCode = Literal[
    "version",
    "bundle",
    "key",  # unknown or revoked
    "identity",  # the session belongs to another key
    "superseded",  # a newer process of this device has opened the session
    "history",  # no common step of device and trainer is left to resume from
    "busy",  # a limit of the trainer is reached at the moment
    "unknown-device",  # no Hello came on this connection
    "corrupt",  # bytes changed in transit
    "malformed",
    "size",
    "shape",
    "labels",
    "order",
    "nan",
]


class Hello(Message, frozen=True):
    """Sent by the device to open or resume a session. ``next_step`` is the first step whose gradient it lacks."""

    version: int
    bundle: Text  # SHA-256 of manifest.json
    session: Id
    incarnation: Id = msgspec.field(name="life")  # random number of the process; the newest process owns the session
    device: Text  # a label for logs, not an identity
    next_step: Count
    durable: Count | None  # the device never restarts before this step; None: it keeps nothing on disk
    oldest: Count  # the journal holds the messages from this step on
    steps: Count = 0  # planned steps of the run, 0 if unknown; the head's learning-rate schedule may need them
    micro_batches: MicroBatchCount = 1  # of each step, or of those before the first change
    changes: list[tuple[Count, MicroBatchCount]] | UnsetType = UNSET  # steps from which on there are so many others
    class_names: bool | UnsetType = UNSET  # whether it tells its class names if it is asked; 0.6 does not
    named: bool | UnsetType = UNSET  # whether ``device`` is a name that a person gave it, not its host's
    fleet: bool | UnsetType = UNSET  # whether it can bring its trunk together with others'; 0.10 does not
    needs: DeviceNeeds | UnsetType = UNSET  # by which a new session is admitted; 0.10 does not tell
    moves: bool | UnsetType = UNSET  # whether it follows a Moved; 0.11 does not
    sends: SentSteps | UnsetType = UNSET  # it sends no more than these steps of the run, and no others; 0.12 sends all


class Step(Message, frozen=True):
    """Sent by the device: one micro-batch. Body: activations [T, k, D] in ``precision``, then triples int32 [L, 3]."""

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
    gradient: Precision | None  # precision of the answer; None: the trunk is frozen and needs no gradient
    durable: Count | None = 0  # as in Hello
    replay: bool = False  # sent again from the journal; the device has the gradient already and needs no copy
    offset: Count = 0  # of the first piece in the body; the bytes before it arrived on an earlier connection
    micro_batches: MicroBatchCount | UnsetType = UNSET  # of this step, if it is not what the Hello told


class Evaluate(Message, frozen=True):
    """Sent by the device: uncompressed test images. Body: activations [B, N, D], then labels int32 [B]."""

    session: Id
    step: Count
    part: Count
    transfer: Id
    body_bytes: Count
    images: Positive
    precision: Precision
    offset: Count = 0


class Fetch(Message, frozen=True):
    """Sent by the device to get an earlier answer again: a step's gradient, or the result of one evaluation part."""

    session: Id
    step: Count
    part: Count | None  # None: the gradient
    transfer: Id
    micro_batch: Count = 0
    durable: Count | None = 0
    offset: Count = 0  # in the answer's body; the bytes before it have arrived


class KeepHead(Message, frozen=True):
    """Sent by the device to have the head of ``step`` kept apart from checkpoints: its evaluation is the best.

    The head of step ``held`` stays beside it until the device has kept its own half of ``step``.
    """

    session: Id
    step: Count
    held: Count | None = None  # step of the pair that both sides keep already


class Bye(Message, frozen=True):
    """Sent by the device to end the session. The trainer answers ByeAck."""

    session: Id


class ClassNames(Message, frozen=True):
    """Class names, a MessagePack array of strings in the body, sent if a Welcome asked for them or for counts.

    The device sends those of its data; the trainer answers with those of its head, in the order of the outputs, or
    with none if the bundle names every class.
    """

    session: Id
    transfer: Id
    body_bytes: Annotated[int, msgspec.Meta(ge=1, le=NAMES_BYTES)]
    positions: bool = False  # the data have no names: these are the labels' numbers
    counted: bool | UnsetType = UNSET  # the body is an array of names, and one of each class's training images


class Chunk(Message, frozen=True):
    """Sent by either side: the next piece of the body of message ``transfer``, from ``offset`` on."""

    session: Id
    transfer: Id
    offset: Count


class Welcome(Message, frozen=True):
    """Sent by the trainer: the session is open; ``applied`` steps, and ``learned`` micro-batches of the next."""

    session: Id
    applied: Count
    learned: Count
    oldest: Count  # the answer log holds the answers from this step on
    durable: Count | None  # the trainer never restarts with fewer steps applied; None: it keeps nothing on disk
    incarnation: Id = msgspec.field(name="life")  # random number of the process
    transfer: Id  # number of the unfinished message that the trainer holds, 0 if there is none
    received_bytes: Count  # of that message's body
    trainer: Text  # version of the trainer, for logs
    class_names: bool | UnsetType = UNSET  # whether the device is to tell its class names first; 0.6 does not ask
    other_steps: Count | UnsetType = UNSET  # steps of other sessions in the head that a new session begins on
    max_images: Positive | UnsetType = UNSET  # of one message; 0.7 does not tell
    follows: bool | UnsetType = UNSET  # takes steps of other numbers of micro-batches; 0.8 does not
    keeps_heads: bool | UnsetType = UNSET  # answers KeepHead; a trainer that keeps nothing on disk and 0.7 do not
    class_counts: bool | UnsetType = UNSET  # whether the device may tell its images of each class; 0.10 does not ask
    fleet: FleetTerms | UnsetType = UNSET  # how the devices' trunks become one; absent: each keeps its own
    paused: bool | UnsetType = UNSET  # a person has paused the device: its messages wait
    stored: Count | UnsetType = UNSET  # steps for which it needs the device no more, if it keeps what ``sends`` tells
    keeps_from: Count | UnsetType = UNSET  # the first step that it keeps, ``sends.first``, if that is not 0
    transforms: bool | UnsetType = UNSET  # knows the precisions dct2 ... dct0.0625; 0.14 does not


class Moved(Message, frozen=True):
    """Sent by a rank of a trainer instead of a Welcome: another rank serves the session, at ``endpoint``.

    Only a device whose Hello says ``moves`` gets it.
    """

    session: Id
    endpoint: Text  # tcp://HOST:PORT


class Refused(Message, frozen=True):
    """Sent by the trainer to refuse a message: a code, the reason and the remedy."""

    code: RefusalCode
    received: Text
    expected: Text
    remedy: Text


class Gradient(Message, frozen=True):
    """The trainer's answer to a Step. Body: gradient [T, k, D] in ``precision``, or nothing for a frozen trunk."""

    session: Id
    step: Count
    micro_batch: Count
    transfer: Id
    body_bytes: Count
    precision: Precision
    loss: float
    accuracy: float  # share of the micro-batch's label mass on the predicted classes
    seconds_cloud: float
    down_mbit_s: float | None = None  # delivery rate, measured by the trainer's kernel
    durable: Count | None = None  # as in Welcome
    offset: Count = 0  # of the first piece in the body
    seconds_codec: float | UnsetType = UNSET  # to decode and encode, apart from seconds_cloud; 0.7 does not tell
    down_app_limited: bool | UnsetType = UNSET  # down_mbit_s is what there was to send; 0.8 does not tell
    up_mbit_s: float | UnsetType = UNSET  # rate at which the Step came in after its first piece; 0.8 does not tell
    share: TrainerShare | UnsetType = UNSET  # absent if the trainer works for no other device; 0.8 does not tell


class Evaluated(Message, frozen=True):
    """The trainer's answer to an Evaluate."""

    session: Id
    step: Count
    part: Count
    images: Count
    correct: Count
    loss_sum: float
    seconds_cloud: float
    head_step: Count | UnsetType = UNSET  # steps of the session in the head that judged, if it is not ``step``


class Absent(Message, frozen=True):
    """The trainer's answer to a Fetch for an answer that it does not have, or no longer has."""

    session: Id
    step: Count


class HeadKept(Message, frozen=True):
    """The trainer's answer to a KeepHead."""

    session: Id
    step: Count
    fault: Text = ""  # why the head of that step is not kept; empty: it is, on disk


class ByeAck(Message, frozen=True):
    """The trainer's answer to a Bye."""

    session: Id


FromDevice = Hello | Step | Evaluate | Fetch | KeepHead | TrunkDelta | Infer | Ping | Bulk | Bye | ClassNames | Chunk
FromTrainer = (
    Welcome
    | Moved
    | Refused
    | Gradient
    | Evaluated
    | Absent
    | HeadKept
    | TrunkAverage
    | Paused
    | Logits
    | Pong
    | BulkAnswer
    | ByeAck
    | ClassNames
    | Chunk
)
