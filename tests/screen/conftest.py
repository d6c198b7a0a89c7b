"""A terminal of a given size, on a pseudo-terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest


class Terminal:
    """A pseudo-terminal: what is written to ``child`` is collected in ``seen``."""

    def __init__(self, columns: int, lines: int) -> None:
        self._parent, self.child = pty.openpty()
        fcntl.ioctl(self.child, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.name = Path(os.ttyname(self.child))
        self.seen = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def text(self) -> str:
        return self.seen.decode(errors="replace")

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while part := os.read(self._parent, 1 << 16):
                self.seen += part

    def close(self) -> None:
        os.close(self.child)
        self._thread.join(10)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    for name in ("CI", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    made = Terminal(80, 24)
    yield made
    made.close()
