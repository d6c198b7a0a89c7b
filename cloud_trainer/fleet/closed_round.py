"""A round of the fleet's trunk, for the record."""

from __future__ import annotations

import msgspec


class ClosedRound(msgspec.Struct, frozen=True, kw_only=True):
    """A round that has just closed.

    Attributes:
        number: the round.
        sessions: those whose changes it has, in the order of their numbers.
        left_out: those whose changes it leaves out, with the reasons.
        missing: those that were present and had not contributed when the time was over.
        images: images behind its changes.
        bytes_up: size of all encoded changes that came.
        bytes_down: size of the change that goes to each device.
        waited_s: seconds from the first contribution on.
        seconds: seconds that it took to judge, to bring together and to write.
    """

    number: int
    sessions: list[int]
    left_out: dict[int, str]
    missing: list[int]
    images: int
    bytes_up: int
    bytes_down: int
    waited_s: float
    seconds: float
