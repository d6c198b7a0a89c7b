"""The room of all ranks for new devices, as each one tells it in rounds: a rank without room is given none.

A rank tells its room without the places of devices that were sent to it and have not come yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from adc_edge.cloud_trainer.scheduling.room import Room, Wanted

_PAUSE_S = 1.0  # between two rounds in which a rank tells another part of its head's time
_PART, _TIMES = 0.05, 1.25  # part of the time, and factor of the seconds, that a difference must exceed


class Rooms:
    """The rooms that one rank knows of; the same on all ranks after each round.

    Args:
        rank: this one.
        world: number of ranks.
        clock: tells seconds.
    """

    def __init__(self, rank: int, world: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rank, self._clock, self._told_s = rank, clock, clock()
        self._rooms = [Room()] * world
        self._now: Room | None = None
        self.look: Callable[[], Room | None] = lambda: None  # this rank's room now; None: it does not tell

    def to_tell(self, coming: Iterable[Wanted]) -> Room | None:
        """Look at this rank's room, and return it if the ranks know another one.

        Args:
            coming: needs of devices that were sent to this rank and have not come.
        """
        self._now = room = self.look()
        if room is None:
            return None
        for wanted in coming:
            room = room.less(wanted)
        told, now_s = self._rooms[self._rank], self._clock()
        places = (room.devices, room.message_bytes) != (told.devices, told.message_bytes)
        if not places and (now_s - self._told_s < _PAUSE_S or not _has_other_time(room, told)):
            return None
        self._told_s = now_s
        return room

    def hear(self, rank: int, room: Room) -> None:
        """Note the room that a rank has told."""
        self._rooms[rank] = room

    def give(self, rank: int, wanted: Wanted) -> None:
        """Note that a new device is sent to a rank."""
        self._rooms[rank] = self._rooms[rank].less(wanted)

    def fitting(self, wanted: Wanted) -> list[int]:
        """Return the ranks that have room for a device; all, if none has."""
        return [rank for rank, room in enumerate(self._rooms) if room.fits(wanted)] or list(range(len(self._rooms)))

    def only_elsewhere(self, wanted: Wanted) -> bool:
        """Return whether this rank would refuse a device now, and another one has room for it."""
        if self._now is None or self._now.fits(wanted):
            return False
        return any(room.fits(wanted) for rank, room in enumerate(self._rooms) if rank != self._rank)


def _has_other_time(room: Room, told: Room) -> bool:
    """Whether the head's time differs by what counts; it differs a little after every message."""
    least_s, most_s = sorted((room.message_s, told.message_s))
    return abs(room.part - told.part) > _PART or most_s > _TIMES * least_s
