"""Decides which device has the trunk in ``sequential``. Knows no socket and no clock: times are told."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping


class Turns:
    """The device that has the turn, and those that wait for it, in order of arrival.

    Args:
        wait_s: absence after which a device loses its turn if another one waits, in seconds.
        holder: session that had the turn when the last process ended, which keeps it until it is back; None: nobody.
        keep: writes the session that gets the turn, before it is told, None for nobody; it may raise OSError.
    """

    def __init__(
        self, wait_s: float, holder: int | None = None, keep: Callable[[int | None], None] = lambda session: None
    ) -> None:
        self._wait_s, self._keep = wait_s, keep
        self.holder = holder
        self._kept = self._awaited = holder
        self._away_s: float | None = None  # since when the holder is away
        self._queue: list[int] = []
        self._in: list[int] = []  # sessions whose contributions are to become rounds, one each
        self._at: tuple[int, int] | None = None  # the holder, and the steps that it has done
        self._at_s = 0.0  # since when
        self._told = False  # that this holder does nothing

    def contribute(self, session: int, now_s: float) -> None:
        """Note a session's contribution: it is a round of its own, and the turn goes on."""
        if session not in self._in:
            self._in.append(session)
        self.ask(session)

    def ask(self, session: int) -> None:
        """Note that a session waits for the turn, unless it has it."""
        if session != self.holder and session not in self._queue:
            self._queue.append(session)

    def withdraw(self, session: int) -> None:
        """Note that a session is back and does not wait any more; it may keep a turn that it has."""
        if session == self._awaited:
            self._awaited = None
        if session in self._queue:
            self._queue.remove(session)

    def drop(self, session: int) -> None:
        """Note that a session's contribution is to become no round."""
        if session in self._in:
            self._in.remove(session)

    def waited_s(self, now_s: float) -> float:
        """Return the time that a round has waited for further contributions: it does not."""
        return 0.0

    def closing(self, now_s: float, expected: Collection[int]) -> list[int]:
        """Return the session whose contribution is to become a round now, if there is one."""
        return self._in[:1]

    def closed(self, sessions: Collection[int]) -> None:
        """Note that these contributions are on disk: the holder of the turn gives it up."""
        self._in = [session for session in self._in if session not in sessions]
        if self.holder is not None and self.holder in sessions:
            holder, self.holder = self.holder, None
            self.ask(holder)

    def leave(self, session: int) -> None:
        """Note that a session has come to its end: it needs no turn. One that is not back may have gone on."""
        if session != self._awaited:
            self.withdraw(session)
            self.holder = None if session == self.holder else self.holder

    def missing(self, sessions: Collection[int], expected: Collection[int]) -> list[int]:
        """Return the sessions that a round was not waiting for any longer: it waits for nobody."""
        return []

    def advance(self, now_s: float, present: Collection[int]) -> None:
        """Give the turn to the next session if nobody has it, or its holder is away for too long; raises OSError."""
        if self.holder in present:
            self._away_s = None
            return
        if self.holder is not None:
            self._away_s = now_s if self._away_s is None else self._away_s
            if now_s - self._away_s < self._wait_s:
                return
        following = next((session for session in self._queue if session in present), None)
        if following is None and self.holder is not None:
            return
        if following != self._kept:
            self._keep(following)
        if following is not None:
            self._queue.remove(following)
        self.holder = self._kept = following
        self._away_s = None

    def idle(self, now_s: float, steps: Mapping[int, int]) -> int | None:
        """Return the holder if it has done no step for ``wait_s`` while others wait: once in its turn.

        Args:
            now_s: time on the clock of ``contribute``.
            steps: of each session that is present, that the head has learned.
        """
        if self.holder is None or self.holder not in steps:
            self._at = None
            return None
        at = self.holder, steps[self.holder]
        if at != self._at:
            self._told = self._told and self._at is not None and self._at[0] == self.holder
            self._at, self._at_s = at, now_s
        if self._told or not self._queue or now_s - self._at_s < self._wait_s:
            return None
        self._told = True
        return self.holder

    def may_go_on(self, session: int) -> bool:
        """Return whether a session may have the newest trunk and train it: it has the turn."""
        return session == self.holder
