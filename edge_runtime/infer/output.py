"""Where answers go: JSON lines or CSV in a file or on standard output, or a line for people. Each one as it comes.

A file is continued: the images that it has answers to are not judged again. A line that a kill has torn is dropped.
One process writes to a file at a time.
"""

from __future__ import annotations

import csv
import fcntl
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from adc_edge.edge_runtime.infer.answers import InferAnswer
from adc_edge.edge_runtime.infer.settings import STDOUT
from adc_edge.errors import SettingError

_FIELDS = InferAnswer.__struct_encode_fields__
_JSON_BEGINS = b'{"file":'  # every answer


class AnswerWriter(Protocol):
    """Takes answers, and knows which images had one before this start."""

    def begin(self) -> None:
        """Drop what is to be dropped; called once everything that the answers need is there."""

    def write(self, answer: InferAnswer) -> None:
        """Write one answer; it is out when this returns."""

    def answered(self, key: tuple[str, int]) -> bool:
        """Return whether this version of a file has an answer from an earlier start."""

    def close(self) -> None:
        """Close what was opened."""


class StreamWriter:
    """Writes lines by a function; nothing is known of earlier starts.

    Args:
        say: prints a line.
        as_json: JSON instead of words.
    """

    def __init__(self, say: Callable[[str], object], as_json: bool) -> None:
        self._say, self._as_json = say, as_json

    def begin(self) -> None:
        """Do nothing."""

    def write(self, answer: InferAnswer) -> None:
        """Print one answer."""
        self._say(_json(answer).decode() if self._as_json else in_words(answer))

    def answered(self, key: tuple[str, int]) -> bool:
        """Return False."""
        return False

    def close(self) -> None:
        """Do nothing."""


class FileWriter:
    """A file of JSON lines or of CSV that is continued, or begun anew.

    Args:
        path: the file; its suffix is the format.
        fresh: whether ``begin`` drops what it holds.

    Raises:
        SettingError: the file holds something else, or another process writes to it.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self._path, self._csv = path, path.suffix == ".csv"
        self._whole_bytes = 0  # of the lines that stay
        self.known = set[tuple[str, int]]()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            if not fresh:
                self.known.update(self._keys(self._whole_lines()))
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        """Drop a torn line, or all of them, and write the names of the columns where they are missing."""
        os.ftruncate(self._file, self._whole_bytes)
        if self._csv and not self._whole_bytes:
            self._put(_row(_FIELDS))

    def write(self, answer: InferAnswer) -> None:
        """Append one answer; raises OSError if it did not get there whole."""
        self._put(_row(_cells(answer)) if self._csv else _json(answer) + b"\n")

    def answered(self, key: tuple[str, int]) -> bool:
        """Return whether the file had an answer to this version when it was opened; one begun anew has none."""
        return key in self.known

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _lock(self) -> None:
        """Lock the file for this process; the kernel releases the lock however the process ends."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            received = f"-o {self._path} is in use by another process"
            raise SettingError(received, "one `infer` for each file", "stop it, or choose another file") from None
        except OSError:  # a file system without locks
            return

    def _put(self, data: bytes) -> None:
        start = os.fstat(self._file).st_size
        written = os.write(self._file, data)
        if written < len(data):  # a full disk: no half line stays
            os.ftruncate(self._file, start)
            raise OSError(28, os.strerror(28), str(self._path))

    def _whole_lines(self) -> bytes:
        data = self._path.read_bytes()
        self._whole_bytes = data.rfind(b"\n") + 1
        whole, torn = data[: self._whole_bytes], data[self._whole_bytes :]
        begins = (b"" if whole else _row(_FIELDS)) if self._csv else _JSON_BEGINS
        if not (torn.startswith(begins) or begins.startswith(torn)):
            raise self._others("its last line is no part of an answer")
        return whole

    def _keys(self, data: bytes) -> Iterable[tuple[str, int]]:
        try:
            if self._csv:
                rows = csv.DictReader(io.StringIO(data.decode(), newline=""))
                if data and tuple(rows.fieldnames or ()) != _FIELDS:
                    raise ValueError("its first line names other columns")
                return [(row["file"], int(row["modified_ns"])) for row in rows]
            return [msgspec.json.decode(line, type=InferAnswer).key for line in data.splitlines() if line]
        except (ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
            raise self._others(str(error)) from None

    def _others(self, why: str) -> SettingError:
        received = f"{self._path} holds no answers of `adc-edge infer` ({why})"
        return SettingError(received, "a new file, or one to go on with", "choose another -o, or --fresh")


def make_writer(path: Path | None, fresh: bool, say: Callable[[str], object]) -> AnswerWriter:
    """Return the writer for ``-o PATH``: a file, ``-`` for JSON on standard output, None for words there."""
    return StreamWriter(say, as_json=path == STDOUT) if path in (None, STDOUT) else FileWriter(path, fresh)


def in_words(answer: InferAnswer) -> str:
    """Return an answer for people."""
    if answer.error:
        return f"{answer.file}  unreadable: {answer.error}"
    place = f"{answer.where} {answer.milliseconds:.0f} ms" + (f" ({answer.reason})" if answer.reason else "")
    return f"{answer.file}  {answer.name} {100 * (answer.probability or 0.0):.1f} %  {place}"


def _json(answer: InferAnswer) -> bytes:
    return msgspec.json.encode(answer)


def _cells(answer: InferAnswer) -> list[Any]:
    values = msgspec.to_builtins(answer)
    cells = [values.get(name, "") for name in _FIELDS]
    top5 = _FIELDS.index("top5")
    cells[top5] = msgspec.json.encode(answer.top5).decode() if answer.top5 else ""
    return cells


def _row(cells: Iterable[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()
