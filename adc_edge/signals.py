"""Ctrl-C and SIGTERM as a question that loops ask, so that a run ends between two states, never within one."""

from __future__ import annotations

import signal
from types import FrameType


class StopFlag:
    """Set by the first SIGINT or SIGTERM; the second one interrupts at once.

    Call it to ask. Use it in the main thread only.
    """

    def __init__(self) -> None:
        self.stopped = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.stopped

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.stopped:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.stopped = True
