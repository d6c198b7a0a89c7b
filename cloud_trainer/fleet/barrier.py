"""Decides when a round of ``averaged`` closes. Knows no socket and no clock: times are told."""

from __future__ import annotations

from collections.abc import Collection, Mapping


class Barrier:
    """The open round: it closes once everybody who is present has contributed, or some time after the first one.

    Args:
        wait_s: longest wait after the first contribution, in seconds.
    """

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._in: dict[int, None] = {}  # sessions, in order of their first contribution
        self._since_s: float | None = None

    def contribute(self, session: int, now_s: float) -> None:
        """Note a session's contribution to the open round; a further one takes its place."""
        if self._since_s is None:
            self._since_s = now_s
        self._in[session] = None

    def ask(self, session: int) -> None:
        """Note that a session wants the trunk, which it gets at once."""

    def withdraw(self, session: int) -> None:
        """Note that a session has a new connection; its contribution stays."""

    def drop(self, session: int) -> None:
        """Note that a session's contribution is not to be in the open round."""
        self._in.pop(session, None)
        if not self._in:
            self._since_s = None

    def waited_s(self, now_s: float) -> float:
        """Return the time since the first contribution to the open round, in seconds."""
        return 0.0 if self._since_s is None else now_s - self._since_s

    def closing(self, now_s: float, expected: Collection[int]) -> list[int]:
        """Return the sessions whose contributions are to become a round now; none: it is not time.

        Args:
            now_s: time on the clock of ``contribute``.
            expected: sessions that are present and have not come to their end.
        """
        if self._since_s is None:
            return []
        over = now_s - self._since_s >= self._wait_s
        return list(self._in) if over or self._in.keys() >= set(expected) else []

    def closed(self, sessions: Collection[int]) -> None:
        """Note that the round is on disk."""
        self._in.clear()
        self._since_s = None

    def leave(self, session: int) -> None:
        """Note that a session has come to its end."""

    def missing(self, sessions: Collection[int], expected: Collection[int]) -> list[int]:
        """Return the sessions that a round was not waiting for any longer, of those that ``closing`` expected."""
        return sorted(set(expected) - set(sessions))

    def advance(self, now_s: float, present: Collection[int]) -> None:
        """Do what is due by time alone: nothing."""

    def idle(self, now_s: float, steps: Mapping[int, int]) -> int | None:
        """Return the session that others wait for and that does nothing: the wait for it is bounded."""
        return None

    def may_go_on(self, session: int) -> bool:
        """Return whether a session whose change is settled may have the newest trunk."""
        return True
