"""Follow a file of JSON lines that another process appends to, rewinds or replaces."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

_MOST_BYTES = 2**22  # read at once, and of a line
_HEAD_BYTES = 256  # that tell a file from another one, since the number of a deleted file is given again


class Tail:
    """The lines of a file, as they come.

    Args:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._inode, self._offset, self._rest, self._head = path, 0, 0, b"", b""
        self._too_long = False  # the line that has no end yet was dropped
        self.behind = False  # the file may have more than the last reading took
        self.torn = 0  # lines that are no JSON object, left by a kill or a full disk

    def follow_renamed(self, path: Path) -> bool:
        """Go on with the same file under its new name, if ``path`` is that file; return whether it is."""
        try:
            renamed = self._inode != 0 and path.stat().st_ino == self._inode
        except OSError:
            return False
        if renamed:
            self._path = path
        return renamed

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Return the new lines, and whether they begin anew: the file was replaced or cut, as after a resume.

        Never more than 4 MB at once: call it until it returns nothing and is not ``behind``. An unfinished last line
        waits for its end; one above 4 MB counts as torn.
        """
        try:
            with self._path.open("rb") as file:
                about = os.fstat(file.fileno())
                head = file.read(_HEAD_BYTES)
                same = about.st_ino == self._inode and head.startswith(self._head)
                anew = not same or about.st_size < self._offset
                self._head = head
                if anew:
                    self._inode, self._offset, self.torn = about.st_ino, 0, 0
                    self._rest, self._too_long = b"", False
                file.seek(self._offset)
                data = file.read(_MOST_BYTES)
        except OSError:
            self.behind = False
            return [], False
        self._offset += len(data)
        self.behind = len(data) == _MOST_BYTES
        return self._objects(self._lines(data)), anew

    def _lines(self, data: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._too_long and lines:
            del lines[0]
            self._too_long = False
        if len(self._rest) > _MOST_BYTES and not self._too_long:
            self._too_long = True
            self.torn += 1
        if self._too_long:
            self._rest = b""
        return lines

    def _objects(self, lines: list[bytes]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                values = json.loads(line)  # NaN too
                if isinstance(values, dict):
                    found.append(values)
                    continue
            self.torn += bool(line.strip())
        return found
