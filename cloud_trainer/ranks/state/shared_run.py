"""The run directory of all ranks, as the ranks beside the first see it: they read it, and rank 0 writes their lines.

A line of the metrics or the events is told to rank 0 with the next round. One that nobody would write again also goes
to a file of its rank, ``rank-N.jsonl``, until rank 0 is known to have it: lines of steps are written anew when the
head goes back to a checkpoint, those of evaluations and events are not. What is left there after a kill, rank 0 takes
in when the run goes on.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from adc_edge.arrays import Arrays
from adc_edge.storage.checkpoint import checkpoint_steps
from adc_edge.storage.events import EVENTS_FILE, Event, Use
from adc_edge.storage.json_lines import JsonLines, json_objects, read_json_lines
from adc_edge.storage.run_dir import JOURNAL, METRICS, RunDir

logger = logging.getLogger(__name__)

_BEST = "best-head-"


def rank_file(run: Path, rank: int, number: int = 0) -> Path:
    """Return the file of the lines of a rank that rank 0 may not have written yet.

    Args:
        run: the run directory.
        rank: the rank.
        number: 0, or another one where a process before has left files that rank 0 could not take in.
    """
    return run / (f"rank-{rank}-{number}.jsonl" if number else f"rank-{rank}.jsonl")


class QueuedLines:
    """The lines of one rank on their way to rank 0 (a ``RankMember``). Safe for threads.

    Args:
        run: the run directory; those that must not be lost go to a file in it.
        rank: this one.
    """

    def __init__(self, run: Path, rank: int) -> None:
        self._run, self._rank, self._lock = run, rank, threading.Lock()
        self._queue: list[bytes] = []
        self._told: list[list[bytes]] = [[], []]  # in the last round and in the one before: the latter are written
        self._path: Path | None = None  # of the file; None: it has no lines
        self._file: JsonLines | None = None

    def add(self, kind: str, line: bytes, keep: bool) -> None:
        """Queue a line of ``metric`` or ``event``; ``keep``: nobody would write it again."""
        whole = b'{"%s":%s}' % (kind.encode(), line)
        with self._lock:
            self._queue.append(whole)
            if keep:
                if self._file is None:
                    self._path = self._path or self._free_path()
                    self._file = JsonLines(self._path)
                self._file.append(whole)

    def tell(self) -> bytes:
        """Return the lines that were queued since the last round."""
        with self._lock:
            told, self._queue = self._queue, []
            self._told = [told, self._told[0]]
            self._drop_written()  # rank 0 has joined a round since it has heard them
            return b"\n".join(told)

    def all_written(self) -> None:
        """Note that rank 0 has written all that was told."""
        with self._lock:
            self._told = [self._queue, []]
            self._drop_written()

    def _drop_written(self) -> None:
        """Delete the file if rank 0 has written all of its lines; where the storage refuses, a later round tries."""
        if self._path is None or any(self._told):
            return
        self._close()
        if _deleted(self._path):
            self._path = None

    def _free_path(self) -> Path:
        """The first file of this rank that a process before has not left: what is in that is for rank 0."""
        paths = (rank_file(self._run, self._rank, number) for number in itertools.count())
        with contextlib.suppress(OSError):
            return next(path for path in paths if not path.exists())
        return rank_file(self._run, self._rank)

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None

    def hear(self, told: Sequence[bytes]) -> None:
        """Take the lines of all ranks: rank 0 writes them."""

    def close(self) -> None:
        """Close the file; what nobody has heard stays in it."""
        with self._lock:
            self._close()


class SharedRun(RunDir):
    """The run directory for a rank that does not own it: nothing is locked, and lines are queued.

    Args:
        path: the directory, which rank 0 has made.
        rank: this one, not 0.
    """

    def __init__(self, path: Path, rank: int) -> None:
        self.path = path
        self.follower: Callable[[Event | Mapping[str, Any]], None] = lambda line: None
        self.changes: list[str] = []
        self.journal = path / JOURNAL
        self.lines = QueuedLines(path, rank)
        self._place = self._temporary = None  # so that no method of RunDir writes settings, metrics or events

    def metric(self, **values: Any) -> None:
        """Queue one line of the metrics, with its time."""
        line = json.dumps(values | {"time": round(time.time(), 3)}).encode()
        self.lines.add("metric", line, values.get("kind") != "step")

    def event(self, event: Event) -> None:
        """Queue one line of the events; what the process uses is that of rank 0 for readers."""
        if isinstance(event, Use):
            return
        self.lines.add("event", msgspec.json.encode(event), True)

    def checkpoint(self, step: int, arrays: Arrays, meta: Mapping[str, Any]) -> None:
        """Do nothing: rank 0 writes checkpoints."""

    def oldest(self, step: int) -> int:
        """Return the oldest step to which a run at ``step`` may return, by the checkpoints that rank 0 has written."""
        assert self.path is not None
        self._steps = checkpoint_steps(self.path)
        return super().oldest(step)

    def rewind(self, step: int, keep: Callable[[Mapping[str, Any]], bool]) -> list[dict[str, Any]]:
        """Show ``keep`` the metrics, from which rank 0 has removed what it rejects."""
        assert self.path is not None
        for values in read_json_lines(self.path / METRICS):
            keep(values)
        return []

    def keep(self, name: str, data: bytes) -> None:
        """Write a file of this rank's sessions, the head of a best evaluation; rank 0 writes all others."""
        if name.startswith(_BEST):
            super().keep(name, data)

    def show(self, name: str, data: bytes) -> None:
        """Do nothing: rank 0 writes it."""

    def close(self) -> None:
        """Close the file of lines."""
        self.lines.close()


class WrittenLines:
    """The lines of the other ranks, which rank 0 writes (a ``RankMember``).

    Args:
        run_dir: that of rank 0.
    """

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir
        self._taken_in: set[str] = set()  # events, as text

    def tell(self) -> bytes:
        """Return nothing: rank 0 writes its own lines at once."""
        return b""

    def hear(self, told: Sequence[bytes]) -> None:
        """Write the lines of all ranks."""
        for values in json_objects(line for part in told for line in part.splitlines()):
            if not self._taken_in or _as_text(values.get("event")) not in self._taken_in:
                self._write(values)

    def take_in(self, sessions: Collection[int], write_evaluation: Callable[[Mapping[str, Any]], None]) -> None:
        """Write what ranks of a process before this one have left, and delete their files.

        Args:
            sessions: those of the checkpoint that the run goes on from; evaluations of others are done again.
            write_evaluation: writes the line of an evaluation unless it is there.
        """
        run = self._run_dir.path
        assert run is not None
        known = {f"{number:016x}" for number in sessions}
        left = _read_whole(sorted(run.glob("rank-*.jsonl")))
        written = _written_events(run, {_as_text(values.get("event")) for lines in left.values() for values in lines})
        for file, lines in left.items():
            for values in lines:
                metric, event = values.get("metric"), _as_text(values.get("event"))
                if isinstance(metric, dict) and metric.get("session") in known:
                    write_evaluation(metric)
                elif event and event not in written:
                    self._write(values)
                    self._taken_in.add(event)
                    written.add(event)
            _deleted(file)  # if not, all of it is found to be written when the run goes on again

    def _write(self, values: Mapping[str, Any]) -> None:
        if isinstance(metric := values.get("metric"), dict):
            self._run_dir.metric(**metric)
        elif isinstance(event := values.get("event"), dict):
            with contextlib.suppress(msgspec.ValidationError):  # left by another version
                self._run_dir.event(msgspec.convert(event, type=_any_event()))


def _as_text(event: object) -> str:
    """An event as a line that is equal for equal events; empty: it is none."""
    return json.dumps(event, sort_keys=True) if isinstance(event, dict) else ""


def _read_whole(files: Iterable[Path]) -> dict[Path, list[dict[str, Any]]]:
    """The JSON objects of each file, without files that cannot be read now: they stay for a later start."""
    found = dict[Path, list[dict[str, Any]]]()
    for file in files:
        try:
            found[file] = list(json_objects(file.read_bytes().splitlines()))
        except OSError as error:
            logger.warning("%s cannot be read, and is kept for the next start: %s", file, error)
    return found


def _written_events(run: Path, looked_for: set[str]) -> set[str]:
    """Those events, as text, that are in the files of events already."""
    if not looked_for:
        return set()
    files = (JsonLines(run / EVENTS_FILE).older, run / EVENTS_FILE)
    texts = (_as_text(values) for file in files for values in read_json_lines(file))
    return {text for text in texts if text in looked_for}


def _deleted(path: Path) -> bool:
    """Delete a file, and return whether it is gone; shared storage may refuse that for a while."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.debug("%s cannot be deleted: %s", path, error)
        return False
    return True


def _any_event() -> Any:
    union: Any = Event.__subclasses__()[0]
    for kind in Event.__subclasses__()[1:]:
        union |= kind
    return union
