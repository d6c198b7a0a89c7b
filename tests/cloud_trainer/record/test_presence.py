"""Which sessions are connected: each change is told once, whatever the order in which its causes are noticed."""

from __future__ import annotations

import threading

from adc_edge.cloud_trainer.record.presence import GuardedConnection, SessionPresence
from adc_edge.storage.events import Away, Event, Joined


class Told:
    """A presence, and what it tells."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.presence = SessionPresence(self.events.append)

    def join(self, session: int, connection: GuardedConnection | None) -> None:
        self.presence.join(session, connection, Joined(session=f"{session:016x}", device="orin", step=0))

    @property
    def kinds(self) -> str:
        return " ".join(type(event).__name__ for event in self.events)


def test_a_session_whose_connection_ends_is_away_and_a_finished_one_is_not() -> None:
    told, connection = Told(), GuardedConnection()
    told.join(1, connection)
    assert told.presence.connected(1)
    told.presence.end(connection)
    told.presence.end(connection)
    assert not told.presence.connected(1)
    assert told.kinds == "Joined Away"
    again = GuardedConnection()
    told.join(1, again)
    told.presence.finish(1, 40)
    told.presence.end(again)
    assert told.kinds == "Joined Away Joined Done"


def test_an_old_connection_that_ends_after_its_session_has_moved_says_nothing() -> None:
    told, old, new = Told(), GuardedConnection(), GuardedConnection()
    told.join(1, old)
    told.join(1, new)
    told.presence.end(old)
    assert told.presence.connected(1)
    assert told.kinds == "Joined Joined"


def test_a_connection_that_had_ended_before_its_hello_was_read_leaves_its_session_away() -> None:
    told, connection = Told(), GuardedConnection()
    told.presence.end(connection)
    told.join(1, connection)
    told.join(2, None)  # nobody knows it any more
    assert told.kinds == "Joined Away Joined Away"
    told.presence.leave(1)
    assert told.kinds == "Joined Away Joined Away"


def test_a_device_to_which_nothing_can_be_sent_is_away_once() -> None:
    told, connection = Told(), GuardedConnection()
    told.join(1, connection)
    told.presence.leave(1)
    told.presence.end(connection)
    assert told.kinds == "Joined Away"


def test_ends_noticed_by_another_thread_while_sessions_join_are_never_lost() -> None:
    for _ in range(300):
        told, connection = Told(), GuardedConnection()
        end = threading.Thread(target=told.presence.end, args=(connection,))
        end.start()
        told.join(1, connection)
        end.join()
        assert told.kinds == "Joined Away"
        assert isinstance(told.events[-1], Away)
