"""Files of JSON lines that grow while other processes follow them: metrics.jsonl and events.jsonl."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from adc_edge.files import write_atomic


class JsonLines:
    """A file that is appended to. A line is in it when ``append`` returns. On a full disk the line is lost.

    Safe for threads.

    Args:
        path: the file; it is made by ``open``, or else by the first line.
        most_bytes: size at which it is renamed to ``older``, and a new one begins; 0: it is never renamed.
    """

    def __init__(self, path: Path, most_bytes: int = 0) -> None:
        self._path, self._most_bytes = path, most_bytes
        self._lock, self._closed = threading.Lock(), False
        self._file: int | None = None
        self._size, self._whole = 0, True  # whole: the file ends with a whole line
        self.trouble: OSError | None = None  # why the last line could not be written

    @property
    def older(self) -> Path:
        """Return the path of the lines before the present file: ``events.1.jsonl``."""
        return self._path.with_suffix(f".1{self._path.suffix}")

    def open(self) -> None:
        """Open the file, and make it if it is absent; raises OSError."""
        with self._lock:
            self._reopen()

    def _reopen(self) -> None:
        self._shut()
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._size = os.fstat(self._file).st_size
        self._whole = self._size == 0 or os.pread(self._file, 1, self._size - 1) == b"\n"

    def append(self, line: bytes) -> None:
        """Append a line. If that fails, ``trouble`` tells why, and the next line is written all the same."""
        with self._lock:
            if self._closed:
                return
            try:
                self._write(line)
                self.trouble = None
            except OSError as error:
                self.trouble = error

    def replace(self, lines: bytes) -> None:
        """Replace the whole content; raises OSError, and then the file stays as it was."""
        with self._lock:
            write_atomic(self._path, lines)
            self._reopen()

    def close(self) -> None:
        """Close the file; further lines are lost."""
        with self._lock:
            self._closed = True
            self._shut()

    def _shut(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None

    def _write(self, line: bytes) -> None:
        if 0 < self._most_bytes <= self._size:
            os.replace(self._path, self.older)
            self._shut()
        if self._file is None:
            self._reopen()
        assert self._file is not None
        data = (b"" if self._whole else b"\n") + line + b"\n"
        self._whole = False
        written = os.write(self._file, data)
        self._size += written
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._whole = True


def read_json_lines(path: Path, most_bytes: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects in the lines of a file, without lines that a kill or a full disk has torn.

    Args:
        path: the file; where it is absent there are none.
        most_bytes: size of the end that is read; 0: the whole file.
    """
    with contextlib.suppress(OSError), path.open("rb") as file:
        if most_bytes:
            file.seek(max(0, os.fstat(file.fileno()).st_size - most_bytes))
        yield from json_objects(file)


def json_objects(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects in lines, without lines that hold none."""
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(values := json.loads(line), dict):
                yield values
