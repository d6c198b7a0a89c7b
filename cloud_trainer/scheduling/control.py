"""fleet.json in a trainer's run directory: priorities and pauses, by session. `adc-edge fleet` writes it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec

from adc_edge.errors import SettingError
from adc_edge.files import json_bytes, read_json, write_atomic

CONTROL = "fleet.json"
MOST_PRIORITY = 1000.0

Priority = Annotated[float, msgspec.Meta(ge=1 / MOST_PRIORITY, le=MOST_PRIORITY)]


class SessionControl(msgspec.Struct, frozen=True, omit_defaults=True):
    """The orders for one session."""

    device: str = ""  # its name of then, for people
    priority: Priority = 1.0  # its part of the head's time, in proportion to the others'
    paused: bool = False


class FleetControl(msgspec.Struct, frozen=True):
    """Contents of fleet.json; a session that is not named has the defaults."""

    sessions: dict[str, SessionControl] = {}  # by 16 hexadecimal digits

    def priorities(self) -> dict[int, float]:
        """Return the priorities by session."""
        return {int(session, 16): one.priority for session, one in self.sessions.items()}

    def paused(self) -> set[int]:
        """Return the sessions that are paused."""
        return {int(session, 16) for session, one in self.sessions.items() if one.paused}


def read_control(run: Path) -> FleetControl:
    """Return the orders in a run directory; raises SettingError if fleet.json is damaged."""
    path = run / CONTROL
    if not path.exists():
        return FleetControl()
    control = read_json(path, FleetControl, "orders as `adc-edge fleet` wrote them", f"delete {path}")
    if not all(session and set(session) <= set("0123456789abcdef") for session in control.sessions):
        raise SettingError(f"{path}: a session that is no number", "hexadecimal digits", f"delete {path}")
    return control


def change_control(run: Path, session: str, change: Callable[[SessionControl], SessionControl]) -> SessionControl:
    """Change the orders for one session, and return them; two commands at once both count.

    Raises:
        SettingError: fleet.json is damaged.
        OSError: it cannot be written.
    """
    directory = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        sessions = dict(read_control(run).sessions)
        sessions[session] = changed = change(sessions.get(session, SessionControl()))
        kept = {key: one for key, one in sessions.items() if one.paused or one.priority != 1.0}
        write_atomic(run / CONTROL, json_bytes(msgspec.to_builtins(FleetControl(kept))))
        return changed
    finally:
        os.close(directory)
