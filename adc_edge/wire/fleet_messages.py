"""Messages of a fleet: a device's change of its trunk, and the fleet's trunk; a pause; a device's needs and wishes.

The fleet's trunk has a number, its round: 0 is the bundle's. Every round adds one change to it, in fp32, and that
change is exactly what the trainer has encoded for the devices. So whoever has added the changes of all rounds has the
same bits.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from adc_edge.defaults import FleetPrecision
from adc_edge.wire.message import Count, Id, Message, Positive, Text


class FleetTerms(msgspec.Struct, frozen=True):
    """Terms on which the devices' trunks become one, told in a Welcome."""

    mode: Literal["averaged", "sequential"]
    every: Positive  # steps of a device between two of its changes
    precision: FleetPrecision  # of a change, both ways
    round: Count = 0  # of the fleet's newest trunk
    fleet: Id | UnsetType = UNSET  # random number of the fleet: rounds of two fleets are not the same trunks


class TrunkDelta(Message, frozen=True):
    """Sent by the device: the change of its trunk since round ``base``, before it does ``step``.

    The first one of a session has no images and no body: it asks for the fleet's trunk. It is sent again after a
    reconnect, and counted once for each (session, step).
    """

    session: Id
    step: Count
    base: Count  # round that the device's trunk was equal to last
    transfer: Id
    body_bytes: Count
    images: Count  # images that it has trained on since then, the weight of the change
    precision: FleetPrecision
    last: bool = False  # the device has come to its last step
    offset: Count = 0  # of the first piece in the body; the bytes before it arrived on an earlier connection
    fleet: Id | UnsetType = UNSET  # that the round ``base`` is of; it may be left out for round 0, the bundle's


class TrunkAverage(Message, frozen=True):
    """The trainer's answer to a TrunkDelta: what brings a trunk of round ``base`` to ``round``.

    Body: the changes of the rounds in between, in order, each in ``precision``; or, if ``whole``, the trunk itself
    in fp32.
    """

    session: Id
    step: Count
    transfer: Id
    body_bytes: Count
    base: Count
    round: Count
    precision: FleetPrecision
    whole: bool = False
    devices: Count = 0  # whose changes the newest round has brought together
    left_out: Text = ""  # why this device's own change is in no round; empty: it is in one
    offset: Count = 0  # of the first piece in the body


class Paused(Message, frozen=True):
    """Sent by the trainer to a device that has said ``Hello.fleet``: a person has paused it, or has it go on.

    It answers nothing. While the device is paused, its messages wait, and their answers come afterwards.
    """

    session: Id
    paused: bool


class DeviceNeeds(msgspec.Struct, frozen=True, omit_defaults=True):
    """The needs of a device, told in its Hello: a trainer admits a new session if it can meet them."""

    largest_bytes: Count  # message of a micro-batch; an evaluation and a change of the trunk may be larger
    step_seconds: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.0  # planned, of a step; 0: not planned


class SentSteps(msgspec.Struct, frozen=True, omit_defaults=True):
    """The steps after which a device with a frozen trunk has sent all that it will, told in its Hello.

    The trainer keeps their messages from step ``first`` on, and does the other steps of the run alone.
    """

    steps: Positive  # that the device sends
    bytes: Count = 0  # of all their messages, and of the evaluation after them, about
    evaluate_every: Count = 0  # steps between evaluations afterwards, of the device's last messages; 0: at the end
    first: Count = 0  # step from which on the trunk is frozen; 0.13 does not know it, and its Welcome tells none
