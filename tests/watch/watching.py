"""The watching process for tests, and what a test asks of it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_CHILD = Path(__file__).parents[2] / "adc_edge" / "watching" / "child.py"


class Watching:
    """`adc-edge watch` as its parent starts it: it says where it listens, and ends with its standard input.

    Args:
        runs: directories.
        options: more words of the command line; port 0 for the page unless they say otherwise.
        environment: more variables.
    """

    def __init__(self, *runs: Path, options: tuple[str, ...] = (), environment: dict[str, str] | None = None) -> None:
        named = [word for run in runs for word in ("--run", str(run))]
        web = () if options else ("--web", "127.0.0.1:*")
        self.process = subprocess.Popen(
            [sys.executable, str(_CHILD), "adc_edge", "watch", *named, *web, *options, "--child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        assert self.process.stdout is not None
        self.told: dict[str, Any] = json.loads(self.process.stdout.readline() or "{}")

    def __enter__(self) -> Watching:
        assert self.told.get("ready"), self.told or self.errors()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def url(self) -> str:
        """Where the page is."""
        return str(self.told["web"])

    @property
    def port(self) -> int:
        """The port of the page."""
        return urlsplit(self.url).port or 0

    def state(self) -> dict[str, Any]:
        """The snapshot."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/state", timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def memory_mb(self) -> float:
        """Resident memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0]) / 1000

    def errors(self) -> str:
        """Return what it wrote to standard error, once it has ended."""
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def end(self) -> int:
        """Close its standard input, and return its exit code."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            for stream in (self.process.stdout, self.process.stderr):
                if stream:
                    stream.close()


def eventually(asked: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Return what ``asked`` returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := asked()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found
