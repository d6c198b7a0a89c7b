"""Runs in TensorBoard: each value against steps, and against bytes."""

from __future__ import annotations

import time
from pathlib import Path

from adc_edge.files import json_bytes, write_atomic
from adc_edge.watch.reading.values import read_object, whole
from adc_edge.watch.trackers.event_file import EventFile
from adc_edge.watch.trackers.rows import TrackedRow

BY_BYTES = "by_bytes"
FLUSH_S = 5.0  # a kill costs no more: the next process writes it again
_MARK = "logged.json"


class TensorBoardTracker:
    """One run in TensorBoard: values by step in ``directory``, by bytes in ``directory/by_bytes``.

    What an earlier process flushed is not written again; of what it may have written after that,
    TensorBoard is told to forget it.

    Args:
        directory: of this run alone.
    """

    def __init__(self, directory: Path) -> None:
        self._mark = directory / _MARK
        known = read_object(self._mark) or {}
        self.next_step = whole(known, "step") + 1
        self._by_step = EventFile(directory, self.next_step)
        self._by_bytes = EventFile(directory / BY_BYTES, whole(known, "bytes") + 1)
        self._last: TrackedRow | None = None
        self._flushed = time.monotonic()

    def log(self, row: TrackedRow) -> None:
        """Write one row, and everything to disk every few seconds."""
        moment = row.time or time.time()
        self._by_step.write(row.step, moment, row.values)
        named = {f"{BY_BYTES}/{name}": value for name, value in row.values.items()}
        self._by_bytes.write(row.bytes_so_far, moment, named)
        self._last = row
        if time.monotonic() - self._flushed > FLUSH_S:
            self._flush()

    def finish(self) -> None:
        """Write everything to disk."""
        self._flush()
        self._by_step.close()
        self._by_bytes.close()

    def _flush(self) -> None:
        self._by_step.flush()
        self._by_bytes.flush()
        if self._last is not None:
            mark = {"step": self._last.step, "bytes": self._last.bytes_so_far}
            write_atomic(self._mark, json_bytes(mark))
        self._flushed = time.monotonic()
