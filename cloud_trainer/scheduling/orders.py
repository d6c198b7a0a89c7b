"""The orders of fleet.json, as a trainer at work follows them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from adc_edge.cloud_trainer.link.share import TrainerLoad
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.scheduling.control import CONTROL, FleetControl, read_control
from adc_edge.errors import SettingError

_EVERY_S = 0.5  # between two looks at the file

logger = logging.getLogger(__name__)


class FleetOrders:
    """Looks for new orders, and has them followed.

    Args:
        run: the run directory; None: there are no orders.
        sessions: their messages are paused and weighted.
        load: told how long each session was paused.
        tell: told each session that was paused (True) or goes on (False).
    """

    def __init__(
        self, run: Path | None, sessions: SessionRegistry, load: TrainerLoad, tell: Callable[[int, bool], None]
    ) -> None:
        self._run, self._sessions, self._load, self._tell = run, sessions, load, tell
        self._seen: tuple[int, ...] | None = None
        self._next_s = 0.0
        self._control = FleetControl()
        self.is_logged: Callable[[int], bool] = lambda session: True  # whether orders for a session are logged here

    def follow(self) -> None:
        """Read the file if it has changed; cheap to call again and again."""
        now_s = time.monotonic()
        if self._run is None or now_s < self._next_s:
            return
        self._next_s = now_s + _EVERY_S
        if (seen := _signature(self._run / CONTROL)) == self._seen:
            return
        self._seen = seen
        try:
            self._take(read_control(self._run))
        except SettingError as error:
            logger.warning("%s; the orders before it stay", error.received)

    def _take(self, control: FleetControl) -> None:
        before, self._control = self._control, control
        self._sessions.waiting.fair.control(control.priorities(), control.paused())
        for session, priority in sorted(control.priorities().items()):
            if priority != before.priorities().get(session, 1.0) and self.is_logged(session):
                logger.info("device %s has priority %g", self._name(session), priority)
        for session in sorted(before.paused() ^ control.paused()):
            paused = session in control.paused()
            if self.is_logged(session):
                what = "is paused: its messages wait" if paused else "goes on"
                logger.info("device %s %s", self._name(session), what)
            self._load.pause(session, paused)
            self._tell(session, paused)

    def _name(self, session: int) -> str:
        device = next((one.record.device for one in self._sessions if one.id == session), None)
        return f"{session:016x}" if device is None else repr(device)


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
