"""A trainer's use of time by phase, memory and connections, as an event every few seconds while it is at work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from adc_edge.storage.events import USE_EVERY_S, Use

_STATM = Path("/proc/self/statm")


class UseMeter:
    """Adds up seconds by phase, and makes an event of them when one is due."""

    def __init__(self) -> None:
        self.head = self.codec = self.update = 0.0  # seconds since the last event
        self._since = time.monotonic()

    def add(self, head: float, codec: float) -> float:
        """Add the seconds of a micro-batch, and return their sum."""
        self.head += head
        self.codec += codec
        return head + codec

    def due(self, held_bytes: Callable[[], int], connections: Callable[[], int]) -> Use | None:
        """Return the event of the last seconds if it is time for one. A trainer that was idle has none."""
        now = time.monotonic()
        if now - self._since < USE_EVERY_S:
            return None
        seconds, self._since = now - self._since, now
        if not (self.head or self.codec or self.update):
            return None
        use = Use(
            seconds=round(seconds, 3),
            seconds_head=round(self.head, 6),
            seconds_codec=round(self.codec, 6),
            seconds_update=round(self.update, 6),
            memory_mb=round(resident_memory_mb(), 1),
            held_bytes=held_bytes(),
            connections=connections(),
        )
        self.head = self.codec = self.update = 0.0
        return use


def resident_memory_mb() -> float:
    """Return the memory of this process in MB; 0 where the system does not tell (Linux does)."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0
