"""Ctrl-C and SIGTERM at a rank, which torchrun hands on: the same wish comes twice."""

from __future__ import annotations

import time
from types import FrameType

from adc_edge.signals import StopFlag

_SAME_S = 2.0  # a signal so soon after the first is the agent's, of the same Ctrl-C
_SOON_S = 3.0  # within which torchrun's agents see that a host has come, each by itself
_LOOK_S = 0.02


class RankStop(StopFlag):
    """A flag as ``StopFlag``; a second signal ends the process at once only if it does not follow the first closely."""

    def __init__(self) -> None:
        super().__init__()
        self._first_s = 0.0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if self.stopped and now_s - self._first_s < _SAME_S:
            return
        self._first_s = self._first_s or now_s
        super()._handle(number, frame)

    def comes_soon(self) -> bool:
        """Return whether this rank is asked to end, now or within the time that other hosts' agents may need for it."""
        until_s = time.monotonic() + _SOON_S
        while not self() and time.monotonic() < until_s:
            time.sleep(_LOOK_S)
        return self()
