"""What was sent and is not yet durable on the other side: a file for each message, pruned as the watermark moves.

The device keeps its steps until the trainer can no longer come back older than them; the trainer keeps its answers
until the device can no longer. A file is there as soon as it is written (a killed process loses nothing) and survives
a power cut after ``sync``, which comes before each checkpoint. One that is torn or damaged counts as absent.
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from typing import NamedTuple

import xxhash

from adc_edge.files import sync_directory
from adc_edge.framing import Body

LIMIT_BYTES = 256 * 1024 * 1024  # of what one side makes the other keep; then it makes a checkpoint out of turn
_MAGIC = b"ADC-EDGE JOURNAL"
_CHECKED = len(_MAGIC) + 8  # magic and XXH3, which is of all that follows: length of the header, header, body
_LENGTH = struct.Struct("<I")


class Key(NamedTuple):
    """``part`` is None for a step's message, a number for a part of the evaluation before that step."""

    step: int
    part: int | None = None

    @property
    def file_name(self) -> str:
        """``00000042`` or ``00000042.3``."""
        return f"{self.step:08d}" + ("" if self.part is None else f".{self.part}")


class Journal:
    """One session's messages in one direction, in a directory of their own.

    Args:
        directory: made if absent; damaged entries in it are removed.

    Raises:
        OSError: it cannot be made or read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._keys: set[Key] = set()
        self._unsynced: set[Key] = set()
        for path in directory.iterdir():
            key = _key(path.name)
            if key is None or key.file_name != path.name or _read(path) is None:
                path.unlink()
            else:
                self._keys.add(key)
        self._unsynced |= self._keys

    def append(self, key: Key, header: bytes, body: Body) -> None:
        """Keep a message; raises OSError and keeps nothing of it if it cannot be written."""
        length = _LENGTH.pack(len(header))
        check = xxhash.xxh3_64(length + header)
        check.update(body)
        path = self.directory / key.file_name
        try:
            with path.open("wb") as file:
                file.write(_MAGIC + check.digest() + length + header)
                file.write(body)
        except OSError as error:
            self._remove(key)
            error.filename = str(path)
            raise
        self._keys.add(key)
        self._unsynced.add(key)

    def read(self, key: Key) -> tuple[bytes, memoryview] | None:
        """Header and body of a message; None if it is not here whole."""
        return _read(self.directory / key.file_name) if key in self._keys else None

    def oldest(self, until: int) -> int:
        """The first step from which on every step before ``until`` is here; ``until`` if the one before is not."""
        step = until
        while Key(step - 1) in self._keys:
            step -= 1
        return step

    def prune(self, before: int) -> None:
        """Drop what belongs to steps before ``before``: the other side can no longer need it."""
        for key in [key for key in self._keys if key.step < before]:
            self._remove(key)

    def forget(self, start: int) -> None:
        """Drop the steps from ``start`` on: whoever made them has come back older and will make them again."""
        for key in [key for key in self._keys if key.part is None and key.step >= start]:
            self._remove(key)

    def sync(self) -> None:
        """Make all of it survive a power cut."""
        for key in self._unsynced:
            handle = os.open(self.directory / key.file_name, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        self._unsynced.clear()
        sync_directory(self.directory)

    def _remove(self, key: Key) -> None:
        self._keys.discard(key)
        self._unsynced.discard(key)
        with contextlib.suppress(OSError):
            (self.directory / key.file_name).unlink(missing_ok=True)


def _key(name: str) -> Key | None:
    step, dot, part = name.partition(".")
    if not step.isdecimal() or (dot and not part.isdecimal()):
        return None
    return Key(int(step), int(part) if dot else None)


def _read(path: Path) -> tuple[bytes, memoryview] | None:
    try:
        data = memoryview(path.read_bytes())
        (length,) = _LENGTH.unpack_from(data, _CHECKED)
    except (OSError, struct.error):
        return None
    if data[:_CHECKED] != _MAGIC + xxhash.xxh3_64(data[_CHECKED:]).digest():
        return None
    rest = data[_CHECKED + _LENGTH.size :]
    return bytes(rest[:length]), rest[length:]
