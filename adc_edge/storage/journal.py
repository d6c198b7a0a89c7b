"""Messages that were sent and are not yet durable on the other side: a file each, pruned as the watermark moves.

The device keeps a step until the trainer can no longer return to a checkpoint before it. The trainer keeps an answer
until the device can no longer do so. A file exists as soon as it is written, so a killed process loses nothing. It
survives a power cut after ``sync``, which precedes each checkpoint. A torn or damaged file counts as absent.

Files that are no longer needed are overwritten, which costs the kernel a tenth of making and removing a file.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import xxhash

from adc_edge.arrays import Body
from adc_edge.files import make_directory, sync_directory
from adc_edge.storage.position import MicroBatches

LIMIT_BYTES = 256 * 1024 * 1024  # what one side makes the other keep; above it that side makes an extra checkpoint
_SPARE, _SPARE_BYTES = "spare-", 64 * 1024 * 1024
_MAGIC = b"ADC-EDGE JOURNAL"
_CHECKED = len(_MAGIC) + 8  # magic and the XXH3 of the rest: length of the header, header, body
_LENGTH = struct.Struct("<I")


class JournalKey(NamedTuple):
    """Key of a micro-batch of a step or, if ``part`` is a number, of that part of the evaluation before the step."""

    step: int
    micro_batch: int = 0
    part: int | None = None

    @property
    def file_name(self) -> str:
        """``00000042-0`` or, for an evaluation, ``00000042.3``."""
        return f"{self.step:08d}" + (f"-{self.micro_batch}" if self.part is None else f".{self.part}")


class Journal:
    """One session's messages in one direction, in a directory of their own.

    Args:
        directory: created if absent.
        keep_damaged: leave damaged entries in it where they are, since nobody can send them again; else remove them.

    Raises:
        OSError: the directory cannot be created or read.
    """

    def __init__(self, directory: Path, keep_damaged: bool = False) -> None:
        self.directory = directory
        make_directory(directory)
        self._keys: dict[JournalKey, int] = {}  # each with its size
        self._spares: list[tuple[Path, int]] = []
        self._spare_bytes = 0  # a running sum: one checkpoint frees hundreds of entries
        self._made = itertools.count()
        self._unsynced: set[JournalKey] = set()
        for path in directory.iterdir():
            key = _key(path.name)
            if key is None or key.file_name != path.name:
                path.unlink()
            elif _read(path) is not None:
                self._keys[key] = path.stat().st_size
            elif not keep_damaged:
                path.unlink()
        self._unsynced |= self._keys.keys()

    def append(self, key: JournalKey, header: bytes, body: Body) -> None:
        """Keep a message; raises OSError, and keeps no part of it, if it cannot be written."""
        length = _LENGTH.pack(len(header))
        check = xxhash.xxh3_64(length + header)
        check.update(body)
        path = self.directory / key.file_name
        spare, old_bytes = self._spares.pop() if self._spares else (self._new_spare(), 0)
        self._spare_bytes -= old_bytes
        try:
            size = _write_over(spare, _MAGIC + check.digest() + length + header, body)
            os.replace(spare, path)
        except OSError as error:
            self._remove(key)
            self._spares.append((spare, 0))
            self.drop_spares()  # the disk may be full
            error.filename = str(path)
            raise
        self._keys[key] = size
        self._unsynced.add(key)

    def read(self, key: JournalKey) -> tuple[bytes, memoryview] | None:
        """Header and body of a message; None if it is absent or damaged."""
        return _read(self.directory / key.file_name) if key in self._keys else None

    def has(self, key: JournalKey) -> bool:
        """Whether a message was kept."""
        return key in self._keys

    def held_bytes(self) -> int:
        """Size in bytes of all entries."""
        return sum(self._keys.values())

    def oldest(self, until: int, micro_batches: MicroBatches = lambda step: 1) -> int:
        """The function ``oldest``, for the entries of this journal."""
        return oldest(self.has, until, micro_batches)

    def prune(self, before: int) -> None:
        """Drop the entries of steps before ``before``, which the other side can no longer need."""
        for key in [key for key in self._keys if key.step < before]:
            self._remove(key)

    def forget(self, start: int) -> None:
        """Drop the steps from ``start`` on: their sender returned to a checkpoint and will send them again."""
        for key in [key for key in self._keys if key.part is None and key.step >= start]:
            self._remove(key)

    def sync(self) -> None:
        """Make every entry survive a power cut."""
        for key in self._unsynced:
            handle = os.open(self.directory / key.file_name, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        self._unsynced.clear()
        sync_directory(self.directory)

    def drop_spares(self) -> None:
        """Remove the files that are kept only to be overwritten."""
        for spare, _ in self._spares:
            with contextlib.suppress(OSError):
                spare.unlink(missing_ok=True)
        self._spares.clear()
        self._spare_bytes = 0

    def _new_spare(self) -> Path:
        return self.directory / f"{_SPARE}{next(self._made)}"

    def _remove(self, key: JournalKey) -> None:
        self._unsynced.discard(key)
        size = self._keys.pop(key, None)
        if size is None:
            return
        path, spare = self.directory / key.file_name, self._new_spare()
        with contextlib.suppress(OSError):
            if self._spare_bytes + size <= _SPARE_BYTES:
                os.replace(path, spare)
                self._spares.append((spare, size))
                self._spare_bytes += size
            else:
                path.unlink()


def oldest(has: Callable[[JournalKey], bool], until: int, micro_batches: MicroBatches) -> int:
    """The first step such that ``has`` knows every micro-batch from that step up to ``until``."""
    step = until
    while step > 0 and all(has(JournalKey(step - 1, micro_batch)) for micro_batch in range(micro_batches(step - 1))):
        step -= 1
    return step


def _key(name: str) -> JournalKey | None:
    separator = "." if "." in name else "-"
    step, _, number = name.partition(separator)
    if not step.isdecimal() or not number.isdecimal():
        return None
    return JournalKey(int(step), part=int(number)) if separator == "." else JournalKey(int(step), int(number))


def _write_over(path: Path, head: bytes, body: Body) -> int:
    """Overwrite a file and return its size; after an OSError its content is undefined."""
    size = len(head) + memoryview(body).nbytes
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        if os.writev(handle, [head, body]) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if os.fstat(handle).st_size > size:
            os.ftruncate(handle, size)
    finally:
        os.close(handle)
    return size


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
