"""The room that ranks tell each other: soon, but not at every message."""

from __future__ import annotations

from adc_edge.cloud_trainer.ranks.devices.rooms import Rooms
from adc_edge.cloud_trainer.scheduling.room import Room, Wanted


class Clock:
    """Seconds that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_place_more_or_less_is_told_at_once_and_time_that_differs_a_little_never() -> None:
    clock = Clock()
    rooms, room = Rooms(0, 2, clock), Room(2, 1000, 0.5, 0.01)
    rooms.look = lambda: room
    assert rooms.to_tell(()) == room
    rooms.hear(0, room)
    assert rooms.to_tell(()) is None
    clock.now_s += 5
    room = Room(2, 1000, 0.47, 0.011)
    assert rooms.to_tell(()) is None
    for room in (Room(2, 1000, 0.3, 0.01), Room(2, 1000, 0.5, 0.02)):  # noqa: B007 - `look` returns it
        assert rooms.to_tell(())
        assert rooms.to_tell(()) is None  # again in a second
        clock.now_s += 5
    for room in (Room(1, 1000, 0.5, 0.01), Room(2, 900, 0.5, 0.01)):
        assert rooms.to_tell(()) == rooms.to_tell(()) == room


def test_a_device_that_is_sent_to_a_rank_has_its_place_there_before_it_comes() -> None:
    rooms, wanted = Rooms(1, 2, Clock()), Wanted(400, 10.0)
    rooms.look = lambda: Room(2, 1000, 0.5, 0.01)
    rooms.hear(1, Room(2, 1000, 0.5, 0.01))
    rooms.give(1, wanted)
    assert rooms.to_tell([wanted]) is None  # all ranks have counted it
    assert rooms.to_tell([]) == Room(2, 1000, 0.5, 0.01)  # it was given up
    rooms.give(1, wanted)
    rooms.give(1, wanted)
    assert rooms.fitting(Wanted()) == [0]


def test_a_rank_is_left_out_by_memory_and_by_time_and_none_if_all_are_full() -> None:
    rooms = Rooms(0, 2, Clock())
    rooms.hear(0, Room(None, 1000, 0.5, 0.01))
    rooms.hear(1, Room(None, 400, 0.2, 0.01))
    assert rooms.fitting(Wanted()) == rooms.fitting(Wanted(400, 20.0)) == [0, 1]
    assert rooms.fitting(Wanted(401)) == rooms.fitting(Wanted(0, 21.0)) == [0]
    assert rooms.fitting(Wanted(1001)) == [0, 1]


def test_a_device_is_better_elsewhere_only_where_that_is_known() -> None:
    rooms = Rooms(0, 2, Clock())
    assert not rooms.only_elsewhere(Wanted())  # this rank tells no room
    rooms.look = lambda: Room(0)
    rooms.to_tell(())
    assert rooms.only_elsewhere(Wanted())
    rooms.hear(1, Room(0))
    assert not rooms.only_elsewhere(Wanted())
