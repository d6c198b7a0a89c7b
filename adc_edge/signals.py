"""Ctrl-C and SIGTERM as a flag that loops check, so that a run ends between two steps, never within one."""

from __future__ import annotations

import signal
from types import FrameType

INTERRUPTED = 130  # exit code of a command that Ctrl-C ended before its work was done, as of shells


class StopFlag:
    """A flag that the first SIGINT or SIGTERM sets. The second one ends the process at once.

    Call the object to read the flag. Create it in the main thread only.
    """

    def __init__(self) -> None:
        self.stopped = self.by_ctrl_c = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def __call__(self) -> bool:
        """Return whether the run must stop."""
        return self.stopped

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.stopped:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.stopped, self.by_ctrl_c = True, number == signal.SIGINT
