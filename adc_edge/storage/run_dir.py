"""Directory of a run (``--run DIR``): settings, metrics, checkpoints, and the weights at the end.

settings.json      options, bundle and machine; a resumed run must match the first two
metrics.jsonl      one JSON object for each step or evaluation; going back to a checkpoint drops those after it
events.jsonl       one JSON object for each event (`events.py`), never dropped; the oldest are in events.1.jsonl
manifest.json      copy of the bundle's; a trainer also writes the address on which it listens to `endpoint`
checkpoint-*.safetensors
journal/           sent messages, which may have to be sent again
micro-batches      number of messages of a step that `--micro-batches auto` has chosen, and of those in flight
classes.json       class names of the head, in the order of its outputs; on a device also its images of each class
decisions.json     settings that changed while the run followed its link, each with its first step
rounds/, averages/ the fleet's newest trunks (`fleet_trunk.py`), on a trainer; those that a device has taken, on it
store/             a trainer's: messages of devices that send each image once, until their runs are over
lock               held while a process uses the directory
rank-*.jsonl       of a trainer with several ranks: lines of other ranks that metrics and events do not have yet
trunk.safetensors or head.safetensors, once the run has ended
best-trunk.safetensors, or best-head-*.safetensors of each session: the halves of the best evaluation (--keep-best)
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from adc_edge.arrays import Arrays
from adc_edge.errors import SettingError, TakenError
from adc_edge.files import json_bytes, temporary_directory, write_atomic
from adc_edge.storage.checkpoint import Checkpoint, checkpoint_steps, drop_newer, latest_checkpoint, save_checkpoint
from adc_edge.storage.events import EVENTS_FILE, Event
from adc_edge.storage.fleet_trunk import ROUNDS
from adc_edge.storage.json_lines import JsonLines, json_objects
from adc_edge.storage.run_files import check_whole, remove_files, remove_run
from adc_edge.storage.run_lock import LOCK
from adc_edge.storage.run_settings import (
    SETTINGS,
    another_run,
    changes_between,
    check_fresh,
    check_no_bundle,
    check_role,
    read_settings,
    run_number,
)

METRICS = "metrics.jsonl"
JOURNAL, AVERAGES, STORE = "journal", "averages", "store"  # directories
WHOLE_FILE = "whole.json"  # of a session in the store, whose device is no longer needed
_DIRECTORIES = (JOURNAL, ROUNDS, AVERAGES, STORE)
CLASSES = "classes.json"
DECISIONS = "decisions.json"
MICRO_BATCHES = "micro-batches"
EVENTS_BYTES = 32 * 2**20  # of events.jsonl; as many older ones are kept
SHOWN_BYTES = 32 * 2**20  # the same for metrics.jsonl of a run that is not kept: its directory may lie in memory
_OURS = (
    SETTINGS,  # first: what is left by a kill is then no run, and `check_whole` says so
    METRICS,
    EVENTS_FILE,
    "events.1.jsonl",
    "manifest.json",
    "endpoint",
    "world",
    "engine",
    "engine-where",
    "shim-device",
    MICRO_BATCHES,
    CLASSES,
    DECISIONS,
    "fleet.json",
    "checkpoint-*.safetensors",
    "trunk.safetensors",
    "head.safetensors",
    "best-*.safetensors",
    "rank-*.jsonl",
)
_LOOKS, _LOOK_S = 5, 0.02
_CUT_OFF = tuple(f".{name}.*" for name in _OURS)  # write_atomic's temporary files, left by a kill


class LearnedClasses(msgspec.Struct, frozen=True):
    """classes.json of a trainer's run: ``head[i]`` is the class of output ``i``."""

    head: list[str]
    positions: bool = False  # learned from data without names: these are the labels' numbers


class RunDir:
    """Directory of a run; with ``path`` None nothing is kept. Its metrics and events may be written from any thread.

    Args:
        path: the directory, created if absent.
        fixed: settings that a resumed run must share (bundle, seed, …).
        free: settings that may differ from one start to the next, for the record.
        options: options of the command line by name, with which the same run can be started again.
        machine: versions, threads and the like, on which the numbers may depend, for the record.
        fresh: delete the run that is there.
        shown: an empty directory for what others watch of a run that is not kept: settings, metrics and events.

    Raises:
        CheckpointError: the directory holds a run with other ``fixed`` settings.
        SettingError: the directory is not writable, or another process uses it.
    """

    def __init__(
        self,
        path: Path | None,
        fixed: Mapping[str, Any],
        free: Mapping[str, Any],
        machine: Mapping[str, Any] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        fresh: bool = False,
        shown: Path | None = None,
    ) -> None:
        self.path = path
        self.follower: Callable[[Event | Mapping[str, Any]], None] = lambda line: None  # a screen: told each line
        self.changes: list[str] = []  # in ``machine`` since the run's last start
        self._temporary = temporary_directory() if path is None else None
        self.journal = Path(self._temporary.name) if self._temporary else Path(str(path)) / JOURNAL
        self._place = path = path or shown
        if path is None:
            return
        check_no_bundle(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = self._take(path)
            try:
                if fresh:
                    check_fresh(path, fixed)
                    remove_run(path, _OURS, _DIRECTORIES)
                known = {"fixed": fixed, "free": free, "machine": machine or {}}
                now = json.loads(json_bytes(known if options is None else known | {"options": options}))
                self._match(path / SETTINGS, now)
                self._settings = now = run_number(path / SETTINGS) | now
                write_atomic(path / SETTINGS, json_bytes(now))
                remove_files(path, _CUT_OFF)
                remove_files(path / ROUNDS, (".*",))
                self._metrics = JsonLines(path / METRICS, SHOWN_BYTES if self.path is None else 0)
                self._metrics.open()
                self._events = JsonLines(path / EVENTS_FILE, EVENTS_BYTES)  # made by the first event
                self._steps = checkpoint_steps(path)  # asked for at every step
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            raise SettingError(f"--run {path}: {error.strerror}", "a directory to write to", "choose another") from None

    @staticmethod
    def _take(path: Path) -> int:
        """Lock the directory for this process; the kernel releases the lock however the process ends."""
        handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        for _ in range(_LOOKS):  # another process may look whether it is free, which takes a moment
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return handle
            time.sleep(_LOOK_S)
        os.close(handle)
        raise TakenError(
            f"--run {path} is in use by another process", "one process for each run", "stop it, or choose another"
        )

    def _match(self, path: Path, now: Mapping[str, Any]) -> None:
        if not path.exists():
            check_whole(path.parent, _DIRECTORIES)
            return
        old = read_settings(path)
        self.changes = changes_between(old.machine, now["machine"]) if old.machine else []
        check_role(path.parent, old.fixed, now["fixed"])
        changed = changes_between(old.fixed, now["fixed"])
        if changed and not has_begun_in(path.parent):
            remove_run(path.parent, _OURS, _DIRECTORIES)
        elif changed:
            raise another_run(path.parent, changed)

    def settle(self, **fixed: Any) -> None:
        """Replace settings that a resumed run must share; only before the first step."""
        if self._place:
            self._settings["fixed"] |= fixed
            self.show(SETTINGS, json_bytes(self._settings))

    @property
    def has_begun(self) -> bool:
        """Whether the run has done a step, in an earlier process or this one."""
        return self.path is not None and has_begun_in(self.path)

    def latest(self, until: int | None = None) -> Checkpoint | None:
        """Return the newest intact checkpoint, of a step up to ``until``, or None."""
        return latest_checkpoint(self.path, until) if self.path else None

    def checkpoint(self, step: int, arrays: Arrays, meta: Mapping[str, Any]) -> None:
        """Write the state before ``step``; raises OSError, and then leaves older checkpoints unchanged."""
        if self.path:
            save_checkpoint(self.path, step, arrays, meta)
            self._steps = checkpoint_steps(self.path)

    def oldest(self, step: int) -> int:
        """Return the oldest step to which a run at ``step`` may return: its newest checkpoint may be damaged."""
        if self.path is None:
            return step
        return self._steps[-2] if len(self._steps) > 1 else 0

    @property
    def trouble(self) -> OSError | None:
        """Why the last metric could not be written; None: it was."""
        return self._metrics.trouble if self._place else None

    def metric(self, **values: Any) -> None:
        """Append one line to metrics.jsonl, with the time; a full disk loses it and the run goes on (``trouble``)."""
        self.follower(values)
        if self._place:
            now = values.get("time") or round(time.time(), 3)  # a line of another rank has its own
            self._metrics.append(json.dumps(values | {"time": now}).encode())

    def event(self, event: Event) -> None:
        """Append one line to events.jsonl; a full disk loses it and the run goes on."""
        self.follower(event)
        if self._place:
            self._events.append(msgspec.json.encode(event))

    def rewind(self, step: int, keep: Callable[[Mapping[str, Any]], bool]) -> list[dict[str, Any]]:
        """Rewind to ``step``: delete later checkpoints and the metrics that ``keep`` rejects, and return these."""
        if self.path is None:
            return []
        drop_newer(self.path, step)
        self._steps = checkpoint_steps(self.path)
        kept: list[dict[str, Any]] = []
        dropped: list[dict[str, Any]] = []
        for values in json_objects((self.path / METRICS).read_bytes().splitlines()):
            (kept if keep(values) else dropped).append(values)
        self._metrics.replace(b"".join(json.dumps(values).encode() + b"\n" for values in kept))
        return dropped

    def keep(self, name: str, data: bytes) -> None:
        """Write a file of the run atomically."""
        if self.path:
            write_atomic(self.path / name, data)

    def show(self, name: str, data: bytes) -> None:
        """Write a file of the run atomically, also where a run that is not kept is watched."""
        if self._place:
            write_atomic(self._place / name, data)

    def kept(self, name: str) -> bytes | None:
        """Return the contents of a file that ``keep`` wrote, or None."""
        file = self.path / name if self.path else None
        return file.read_bytes() if file is not None and file.is_file() else None

    def close(self) -> None:
        """Release the directory."""
        if self._temporary:
            self._temporary.cleanup()
        if self._place:
            self._metrics.close()
            self._events.close()
            os.close(self._lock)


def check_run(path: Path | None, fixed: Mapping[str, Any], fresh: bool) -> None:
    """Check that ``RunDir`` will take this directory up; nothing is written.

    Raises:
        CheckpointError: it holds a run of another command, or one with other ``fixed`` settings that is not to be
            deleted (``fresh``).
        SettingError: another process uses it, or it is a bundle.
    """
    if path is None:
        return
    check_no_bundle(path)
    if not (path / LOCK).exists():
        return
    with contextlib.suppress(OSError):  # RunDir says so
        os.close(RunDir._take(path))
    if fresh:
        check_fresh(path, fixed)
    elif not (path / SETTINGS).exists():
        check_whole(path, _DIRECTORIES)
    else:
        old = read_settings(path / SETTINGS).fixed
        check_role(path, old, fixed)
        changed = changes_between(old, json.loads(json_bytes(fixed)))
        if changed and has_begun_in(path):
            raise another_run(path, changed)


def has_begun_in(path: Path) -> bool:
    """Return whether the run in ``path`` has done a step. One that has not, as after a wrong option, is no loss."""
    metrics = path / METRICS
    has_steps = any(checkpoint_steps(path)) or (metrics.exists() and metrics.stat().st_size > 0)
    return has_steps or any(path.glob(f"{STORE}/*/{WHOLE_FILE}"))  # nobody would send that again
