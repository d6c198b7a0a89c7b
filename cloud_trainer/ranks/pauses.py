"""The time that a rank without messages waits before it joins the next round."""

from __future__ import annotations

_FIRST_S, _LONGEST_S = 0.005, 0.2  # pauses between rounds while no rank has anything to do


class Pauses:
    """Pauses that grow while nobody has anything to do.

    Args:
        round_wait_s: longest wait for a message of this rank's devices, while there are any.
    """

    def __init__(self, round_wait_s: float) -> None:
        self.round_wait_s, self._pause_s = round_wait_s, 0.0

    def seconds(self, expects: bool, after_answer_s: float | None = None) -> float:
        """Return the longest time from one round to the next, unless a step comes before.

        Args:
            expects: a message of this rank's devices is expected soon.
            after_answer_s: the time where a message was answered already that is no step; None: none was.
        """
        least_s = self._pause_s if after_answer_s is None else after_answer_s
        return max(least_s, self.round_wait_s if expects else 0.0)

    def after(self, busy: bool) -> None:
        """Note a round; ``busy``: some rank had something to do."""
        self._pause_s = 0.0 if busy else min(_LONGEST_S, max(_FIRST_S, 2 * self._pause_s))
