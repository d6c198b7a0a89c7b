"""events.jsonl of a run: what happened beside its steps, in the order of time. Only ever appended to.

metrics.jsonl is rewound with the run, so that each step stands in it once; this file is not. Each line has the ``kind``
of a struct here, its fields, and the Unix ``time`` in seconds. Names and texts may come from anywhere: a reader escapes
them. At 32 MiB the file is renamed to events.1.jsonl, and a new one begins.
"""

from __future__ import annotations

import time as clock
from typing import Literal

import msgspec

EVENTS_FILE = "events.jsonl"


class Event(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag=str.lower, kw_only=True):
    """Base class of all events."""

    time: float = msgspec.field(default_factory=clock.time)  # Unix time in seconds


class Started(Event, frozen=True, kw_only=True):
    """A process has begun to work on the run."""

    role: Literal["device", "trainer"]
    version: str
    pid: int
    step: int  # at which it begins; of a trainer, of its head
    steps: int = 0  # planned; 0: without end
    peer: str = ""  # a device: the trainer's address; a trainer: where it listens


class Ended(Event, frozen=True, kw_only=True):
    """A process has ended by itself. One that was killed says nothing."""

    step: int
    complete: bool
    why: str = ""


class Warned(Event, frozen=True, kw_only=True):
    """A warning or an error of the log."""

    level: str
    text: str


class Waiting(Event, frozen=True, kw_only=True):
    """Device: the trainer does not answer. Written when that begins and at every further try, and at most each 5 s."""

    since: float  # Unix time
    tries: int


class Resumed(Event, frozen=True, kw_only=True):
    """Device: the trainer is there again."""

    seconds: float  # without it


class Joined(Event, frozen=True, kw_only=True):
    """Trainer: a device has opened or resumed its session."""

    session: str  # 16 hexadecimal digits
    device: str
    key: str = ""  # name of its key
    step: int  # applied here
    steps: int = 0  # planned


class Away(Event, frozen=True, kw_only=True):
    """Trainer: the connection of a session has ended, and the session goes on."""

    session: str


class Done(Event, frozen=True, kw_only=True):
    """Trainer: a session has come to its end."""

    session: str
    step: int


class ToldClasses(Event, frozen=True, kw_only=True):
    """Trainer: a device has told how many training images it has of each class."""

    session: str
    device: str
    images: dict[str, int]  # of at most 100 classes that have any, the one with the most first
    classes: int  # that have images
    of: int = 0  # outputs of the head
    rest: int = 0  # images of the classes that are not listed


class CentralEvaluation(Event, frozen=True, kw_only=True):
    """Trainer: it has evaluated trunk and head on its own test images (``trainer --data``)."""

    head_step: int
    round: int  # of the fleet's trunk; 0: the bundle's
    images: int
    accuracy: float
    loss: float
    seconds: float  # of computation


class Averaged(Event, frozen=True, kw_only=True):
    """Trainer: the changes of some devices have become a round of the fleet's trunk."""

    round: int
    devices: int  # whose changes are in it
    left_out: list[str] = []  # devices whose changes do not fit the others', each with the reason


class Rejected(Event, frozen=True, kw_only=True):
    """Trainer: a message or a connection was refused."""

    code: str
    text: str
    session: str = ""  # that it speaks for, or asks for while nobody speaks for it
    device: str = ""


class Use(Event, frozen=True, kw_only=True):
    """Trainer: what it used in the last ``seconds``, every USE_EVERY_S seconds while it is at work."""

    seconds: float
    seconds_head: float
    seconds_codec: float
    seconds_update: float  # optimizer, log and checkpoints
    memory_mb: float
    held_bytes: int  # of messages that are being received
    connections: int


USE_EVERY_S = 5.0
