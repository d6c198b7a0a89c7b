"""The runs as JSON: a snapshot for a page that opens, and what changed for the pages that are open."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from adc_edge.watch.reading.state import Line, Series, WatchedRun, WatchedSession
from adc_edge.watch.web.picture import SentCurves, columns_from, picture_of_run, picture_of_session
from adc_edge.watch.web.stream import EventHub, event_bytes

MOST_CURVES = 8  # sessions of a run whose curves are shown
_MOST_ROWS = 200  # sessions of a run that are listed
_FRESH_S = 1.0  # how long a snapshot serves


class LiveView:
    """The model as the page gets it. ``take`` and ``close`` run in the watching thread, the rest in the event loop.

    Args:
        runs: the runs.
        thread: the one that reads them.
    """

    def __init__(self, runs: Sequence[WatchedRun], thread: ThreadPoolExecutor) -> None:
        self._watched = [_Watched(run) for run in runs]
        self._thread = thread
        self._server = secrets.token_hex(8)  # a page notices that another process answers now
        self._number = 0
        self._snapshot, self._made = b"", float("-inf")
        self._hub: EventHub | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def connect(self, hub: EventHub, loop: asyncio.AbstractEventLoop) -> None:
        """Hand news to the pages of ``hub`` from now on."""
        self._hub, self._loop = hub, loop

    def take(self, lines: list[Line]) -> None:
        """Tell the open pages what has changed."""
        found = [(number, watched.changes()) for number, watched in enumerate(self._watched)]
        changes = {number: change for number, change in found if change}
        if not changes:
            return
        self._number += 1
        self._made = float("-inf")
        event = event_bytes("update", _encode({"number": self._number, "now": time.time(), "runs": changes}))
        if self._hub and self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hub.publish, event)

    def close(self) -> None:
        """Nothing to finish: the server ends the streams."""

    def first(self) -> bytes:
        """Return the first event of a stream: the number of the last update before it."""
        return event_bytes("hello", _encode({"server": self._server, "number": self._number, "now": time.time()}))

    async def state(self) -> bytes:
        """Return everything as JSON, made in the watching thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._state)

    def _state(self) -> bytes:
        now = time.monotonic()
        if now - self._made > _FRESH_S:
            runs = [watched.everything() for watched in self._watched]
            about = {"server": self._server, "number": self._number, "now": time.time()}
            self._snapshot = _encode(about | {"runs": runs})
            self._made = now
        return self._snapshot


class _Watched:
    """A run, and what its pages know of it."""

    def __init__(self, run: WatchedRun) -> None:
        self._run = run
        self._about: dict[str, Any] = {}
        self._sessions: dict[str, dict[str, Any]] = {}
        self._sent: dict[str, SentCurves] = {}
        self._chosen: list[str] = []  # sessions whose curves are shown

    def everything(self) -> dict[str, Any]:
        """Return the run as the last update left it."""
        return {
            "about": self._about,
            "sessions": self._sessions,
            "curves": {name: columns_from(series) for name, series in self._series().items()},
        }

    def changes(self) -> dict[str, Any]:
        """Return what differs from what was told last; empty if nothing does."""
        states = Counter(session.state for session in self._run.sessions.values())
        about = picture_of_run(self._run) | {"devices": states}
        listed = self._listed()
        sessions = {session.key: picture_of_session(session) for session in listed}
        self._choose(listed)
        found: dict[str, Any] = {
            "about": {name: value for name, value in about.items() if self._about.get(name, self) != value},
            "sessions": {key: value for key, value in sessions.items() if self._sessions.get(key) != value},
            "gone": [key for key in self._sessions if key not in sessions],
            "curves": self._news(),
        }
        self._about, self._sessions = about, sessions
        return {name: value for name, value in found.items() if value}

    def _listed(self) -> list[WatchedSession]:
        """Return the sessions to list: those that go on first, if there are many."""
        sessions = list(self._run.sessions.values())
        if len(sessions) > _MOST_ROWS:
            sessions.sort(key=lambda session: (session.state != "connected", -session.last_time))
        return sessions[:_MOST_ROWS]

    def _choose(self, listed: list[WatchedSession]) -> None:
        """Keep the curves that are shown, unless their session has ended and another one needs the room."""
        by_key = {session.key: session for session in listed}
        kept = [key for key in self._chosen if key in by_key]
        new = [key for key in by_key if key not in kept]
        over = [key for key in kept if by_key[key].state == "finished"] if len(kept) + len(new) > MOST_CURVES else []
        for key in over[: max(0, len(kept) + len(new) - MOST_CURVES)]:
            kept.remove(key)
        self._chosen = (kept + new)[:MOST_CURVES]

    def _series(self) -> dict[str, Series]:
        if self._run.role == "trainer":
            return {f"session {key}": self._run.sessions[key].series for key in self._chosen}
        return {"steps": self._run.series, "tests": self._run.tests}

    def _news(self) -> dict[str, Any]:
        series = self._series()
        gone = {name: None for name in self._sent if name not in series}
        for name in gone:
            del self._sent[name]
        news = {name: self._sent.setdefault(name, SentCurves()).news(one) for name, one in series.items()}
        return {name: one for name, one in news.items() if one} | gone


def _encode(value: Any) -> bytes:
    return msgspec.json.encode(value)
