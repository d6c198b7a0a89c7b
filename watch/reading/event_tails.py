"""Follow the events of a run through the change of files: a full events.jsonl becomes events.1.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adc_edge.storage.events import EVENTS_FILE
from adc_edge.watch.reading.tail import Tail


class EventTails:
    """The events of a run, the older file's first.

    Args:
        path: the run's directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path / EVENTS_FILE
        self._older, self._newer = Tail(self._path.with_suffix(".1.jsonl")), Tail(self._path)
        self._continues = False  # the newer file goes on where the older one ends

    @property
    def torn(self) -> int:
        """Lines of both files that cannot be read."""
        return self._newer.torn + self._older.torn

    @property
    def behind(self) -> bool:
        """Whether there may be more than the last reading took."""
        return self._older.behind or self._newer.behind

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Return the new lines, and whether they begin anew, as `Tail` does: call it until it returns nothing."""
        if self._newer.follow_renamed(self._path.with_suffix(".1.jsonl")):
            self._older, self._newer, self._continues = self._newer, Tail(self._path), True
        found, anew = self._older.read()
        if found or self._older.behind:
            self._continues = True
            return found, anew
        found, anew = self._newer.read()
        begins = anew and not self._continues
        self._continues = self._continues and not anew
        return found, begins
