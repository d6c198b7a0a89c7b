"""Lines of a run told apart: new ones, steps that are done again, and history."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal

from adc_edge.watch.reading.values import number, text, whole

Novelty = Literal["new", "repeated", "history"]

_MOST_SESSIONS = 4096  # whose last step is remembered


class SeenLines:
    """The memory of one file of lines.

    A counter starts at 0 with the process that watches. So a line that was there before is history: after a restart
    its step would count a second time. A line is told by its time, and a step, once counted, is repeated when its line
    comes again with a later time.
    """

    def __init__(self) -> None:
        self._latest = time.time()  # of the lines that were counted
        self._live = False  # every further line is newer
        self._steps: OrderedDict[str, int] = OrderedDict()  # the last step of each session

    def begin_again(self) -> None:
        """Forget the steps: another run lies in the directory."""
        self._steps.clear()

    def judge(self, values: Mapping[str, Any], anew: bool) -> Novelty:
        """Return the kind of one line; ``anew``: the file is read from its beginning again."""
        moment = number(values, "time") or 0.0
        self._live = (self._live and not anew) or moment > self._latest
        first = self._first(values) if values.get("kind") == "step" else True
        if not self._live:
            return "history"
        self._latest = max(self._latest, moment)
        return "new" if first else "repeated"

    def _first(self, values: Mapping[str, Any]) -> bool:
        """Whether the step of this session was never seen before."""
        session, step = text(values, "session") or text(values, "device"), whole(values, "step")
        first = step > self._steps.get(session, -1)
        if first:
            self._steps[session] = step
            self._steps.move_to_end(session)
            if len(self._steps) > _MOST_SESSIONS:
                self._steps.popitem(last=False)
        return first
