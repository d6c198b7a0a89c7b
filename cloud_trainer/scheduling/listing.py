"""The sessions of a trainer's run, read from its directory: the trainer may be at work or not."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adc_edge.cloud_trainer.scheduling.control import MOST_PRIORITY, read_control
from adc_edge.errors import SettingError
from adc_edge.storage.events import EVENTS_FILE
from adc_edge.storage.json_lines import read_json_lines
from adc_edge.storage.run_dir import METRICS
from adc_edge.storage.run_lock import is_held
from adc_edge.storage.run_settings import SETTINGS, read_settings
from adc_edge.terminal import readable

_RECENT_S = 60.0  # window of the shares of time
_TAIL_BYTES = 4 * 2**20  # end of the metrics that is read: the last minute
_LISTED = 8  # names in an error


@dataclass
class FleetSession:
    """One session as the run directory tells."""

    session: str  # 16 hexadecimal digits
    device: str
    state: str = "away"
    steps: int = 0
    seconds: float = 0.0  # of the head within the last minute of the run
    priority: float = 1.0
    paused: bool = False


def read_sessions(run: Path) -> list[FleetSession]:
    """Return the sessions of a run, in the order in which they began.

    Raises:
        SettingError: it is no trainer's run directory, or its fleet.json is damaged.
    """
    if not (run / SETTINGS).is_file() or read_settings(run / SETTINGS).fixed.get("role") != "trainer":
        raise SettingError(
            f"--run {run} holds no run of a trainer", "the --run directory of `adc-edge trainer`", "check --run"
        )
    sessions: dict[str, FleetSession] = {}
    for file in (f"{EVENTS_FILE.removesuffix('.jsonl')}.1.jsonl", EVENTS_FILE):
        for event in read_json_lines(run / file):
            _take_event(sessions, event)
    lines = list(read_json_lines(run / METRICS, _TAIL_BYTES))
    newest = max((line.get("time", 0.0) for line in lines), default=0.0)
    for line in lines:
        if line.get("kind") == "step" and (found := sessions.get(line.get("session", ""))):
            found.steps = max(found.steps, line["step"] + 1)
            found.seconds += line["seconds_cloud"] if newest - line.get("time", 0.0) <= _RECENT_S else 0.0
    at_work = is_held(run)
    control = read_control(run).sessions
    for key, one in sessions.items():
        one.state = one.state if at_work or one.state == "finished" else "away"
        if key in control:
            one.priority, one.paused = control[key].priority, control[key].paused
    return list(sessions.values())


def find_session(sessions: Sequence[FleetSession], name: str, run: Path) -> FleetSession:
    """Return the session with a name or a number.

    Raises:
        SettingError: there is none, or there are several of that name.
    """
    number = name.lower().zfill(16)
    found = [one for one in sessions if name == one.device or number == one.session]
    if len(found) > 1:  # one of them may be over
        found = [one for one in found if one.state != "finished"] or found
    if len(found) == 1:
        return found[0]
    if found:
        numbers = ", ".join(f"{one.session} ({one.state}, {one.steps} steps)" for one in found)
        raise SettingError(f"{len(found)} devices named {name!r}", "one session", f"give its number: {numbers}")
    names = list(dict.fromkeys(one.device for one in sessions))
    near = difflib.get_close_matches(name, names, n=1)
    known = ", ".join(names[:_LISTED]) + ", …" * (len(names) > _LISTED) or "none yet: no device has joined this run"
    remedy = f"did you mean {near[0]!r}?" if near else f"adc-edge fleet --run {run} lists them"
    raise SettingError(f"no device named {name!r} in this run", f"one of its devices: {known}", remedy)


def take_priority(text: str) -> float:
    """Return the priority in a text; raises SettingError."""
    with contextlib.suppress(ValueError):
        value = float(text)
        if 1 / MOST_PRIORITY <= value <= MOST_PRIORITY and math.isfinite(value):
            return value
    raise SettingError(f"priority {text}", "a number from 0.001 to 1000", "2 gets twice the time of 1")


def list_sessions(sessions: Sequence[FleetSession]) -> str:
    """Return a table of the sessions."""
    if not sessions:
        return "no device has joined this run yet"
    total = sum(one.seconds for one in sessions)
    rows = [("device", "session", "state", "priority", "steps", "time")]
    for one in sessions:
        share = f"{100 * one.seconds / total:.0f} %" if total else ""
        state = "paused" if one.paused and one.state != "finished" else one.state
        rows.append((readable(one.device), one.session, state, f"{one.priority:g}", str(one.steps), share))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left, right = 3, 6  # columns of text, and all
    return "\n".join(
        "  ".join(
            [text.ljust(width) for text, width in zip(row[:left], widths[:left], strict=True)]
            + [text.rjust(width) for text, width in zip(row[left:right], widths[left:], strict=True)]
        ).rstrip()
        for row in rows
    )


def _take_event(sessions: dict[str, FleetSession], event: Mapping[str, Any]) -> None:
    kind, session = event.get("kind"), event.get("session", "")
    if kind == "joined":
        found = sessions.setdefault(session, FleetSession(session, event["device"]))
        found.device, found.state, found.steps = event["device"], "connected", event["step"]
    elif kind == "started":
        for one in sessions.values():
            one.state = "finished" if one.state == "finished" else "away"
    elif session in sessions and kind in ("away", "done"):
        sessions[session].state = "away" if kind == "away" else "finished"
