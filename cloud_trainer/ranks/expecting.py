"""The devices of a rank from which a message is to be expected soon, by the times that each one has taken so far."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median
from weakref import WeakKeyDictionary

from adc_edge.cloud_trainer.served_session import ServedSession

_REMEMBERED = 5  # a median of so many bears one evaluation or outage in between


class _Habit:
    """The times of one session."""

    def __init__(self) -> None:
        self.answered_s = 0.0  # when its last answer was sent
        self.gaps_s: deque[float] = deque(maxlen=_REMEMBERED)  # from an answer to the next message


class Expecting:
    """Tells which sessions may send a message soon.

    A session's next message is expected at its last answer plus the median of the last times that it took.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._habits: WeakKeyDictionary[ServedSession, _Habit] = WeakKeyDictionary()

    def arrived(self, session: ServedSession, at_s: float | None) -> None:
        """Note the arrival of a message, before it is answered; ``at_s``: its monotonic time, None: now."""
        habit = self._habits.get(session)
        if habit is not None:
            habit.gaps_s.append(max(0.0, (self._clock() if at_s is None else at_s) - habit.answered_s))

    def answered(self, session: ServedSession) -> None:
        """Note that a message of a session was answered now."""
        self._habits.setdefault(session, _Habit()).answered_s = self._clock()

    def is_due(self, session: ServedSession, within_s: float) -> bool:
        """Return whether a session's next message is expected within ``within_s`` seconds from now.

        One that is late by no more than this is still expected, and so is a session's second message, whose time is
        not known.
        """
        habit = self._habits.get(session)
        if habit is None or not habit.gaps_s:
            return True
        return abs(habit.answered_s + median(habit.gaps_s) - self._clock()) <= within_s
