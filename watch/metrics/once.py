"""Lines of a run told apart: new ones, steps that are done again, and history."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal

from adc_edge.watch.reading.values import number, text, whole

Novelty = Literal["new", "repeated", "history"]

# A device that repeats a step writes its line again, and takes the average before it from its disk: no byte is sent.
_TOLD_AGAIN = ("step", "average")
_MOST_SESSIONS = 4096  # whose last step is remembered


class SeenLines:
    """The memory of one file of lines.

    A counter starts at 0 with the process that watches. So a line that was there before is history: after a restart
    its step would count a second time. A line is told by its time, and a step, once counted, is repeated when its line
    comes again with a later time. So is a device's average; where a run had ended and goes on, it takes one of another
    round at the same step.
    """

    def __init__(self) -> None:
        self._latest = time.time()  # of the lines that were counted
        self._live = False  # every further line is newer
        # The last step, with the round of an average, by kind of line and session.
        self._steps: OrderedDict[tuple[str, str], tuple[int, int]] = OrderedDict()

    def begin_again(self) -> None:
        """Forget the steps: another run lies in the directory."""
        self._steps.clear()

    def judge(self, values: Mapping[str, Any], anew: bool) -> Novelty:
        """Return the kind of one line; ``anew``: the file is read from its beginning again."""
        moment = number(values, "time") or 0.0
        self._live = (self._live and not anew) or moment > self._latest
        first = self._first(values) if values.get("kind") in _TOLD_AGAIN else True
        if not self._live:
            return "history"
        self._latest = max(self._latest, moment)
        return "new" if first else "repeated"

    def _first(self, values: Mapping[str, Any]) -> bool:
        """Whether this line of the session's step was never seen before."""
        key = text(values, "kind"), text(values, "session") or text(values, "device")
        step = whole(values, "step"), whole(values, "round")
        first = step > self._steps.get(key, (-1, 0))
        if first:
            self._steps[key] = step
            self._steps.move_to_end(key)
            if len(self._steps) > _MOST_SESSIONS:
                self._steps.popitem(last=False)
        return first
