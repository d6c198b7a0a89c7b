"""Which sessions are connected, as events: a device has joined, is away, is done."""

from __future__ import annotations

import threading
from collections.abc import Callable

from adc_edge.storage.events import Away, Done, Event, Joined


class GuardedConnection:
    """One connection of a device, from its acceptance to its end."""

    ended = False  # set once


class SessionPresence:
    """The connection that speaks for each session. Safe for threads.

    Args:
        tell: takes the events.
    """

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell, self._lock = tell, threading.Lock()
        self._speaks: dict[int, GuardedConnection] = {}

    def join(self, session: int, connection: GuardedConnection | None, event: Joined) -> None:
        """Note that a connection speaks for a session; None: it has ended meanwhile."""
        with self._lock:
            self._tell(event)
            if connection is None or connection.ended:
                self._speaks.pop(session, None)
                self._tell(Away(session=event.session))
            else:
                self._speaks[session] = connection

    def end(self, connection: GuardedConnection) -> None:
        """Note that a connection has ended."""
        connection.ended = True  # first: it may join a session just now
        with self._lock:
            for session in [number for number, speaker in self._speaks.items() if speaker is connection]:
                del self._speaks[session]
                self._tell(Away(session=f"{session:016x}"))

    def leave(self, session: int) -> None:
        """Note that nothing can be sent to a session's device any more."""
        with self._lock:
            if self._speaks.pop(session, None) is not None:
                self._tell(Away(session=f"{session:016x}"))

    def finish(self, session: int, step: int) -> None:
        """Note that a session is done after so many steps; its connection then ends without a word."""
        with self._lock:
            self._speaks.pop(session, None)
            self._tell(Done(session=f"{session:016x}", step=step))

    def connected(self, session: int) -> bool:
        """Return whether a connection speaks for a session."""
        return session in self._speaks
