"""The watching process as its run sees it: started before the work, not waited for during it, ended with the run.

It is a command of its own, `adc-edge watch`, that reads the files of the run. So nothing that it does can delay a step.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from adc_edge.errors import SettingError
from adc_edge.files import temporary_directory
from adc_edge.watching.options import WatchSettings

_READY_S = 120.0  # a small board imports for a long time
_END_S = 10.0  # the process ends itself after 8 s
_TICK_S = 0.1
_PIECE_BYTES, _LINE_BYTES = 64 * 1024, 4096
_MOST_WARNINGS, _WINDOW_S = 10, 60.0
_LOGGED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ([A-Z]+) +(.*)")  # a plain line of our own log
_CHILD = Path(__file__).with_name("child.py")

logger = logging.getLogger(__name__)


@contextmanager
def watching(run: Path | None, settings: WatchSettings, stop: Callable[[], bool]) -> Iterator[Path | None]:
    """Have a run watched while the context lasts, if the settings ask for it.

    Args:
        run: directory of the run; None: it is not kept.
        settings: what is to show it.
        stop: asked while the process starts; True ends the waiting.

    Yields:
        An empty directory for the metrics of a run that is not kept; None where there is nothing to write to it.

    Raises:
        SettingError: the process cannot start: a port is in use, a package is missing.
    """
    if not settings.asked:
        yield None
        return
    with ExitStack() as stack:
        shown = None if run is not None else Path(stack.enter_context(temporary_directory()))
        process = stack.enter_context(WatchingProcess(settings.arguments(run or shown or Path())))
        say_addresses(process.wait_until_ready(stop))
        yield shown


def say_addresses(addresses: Mapping[str, str]) -> None:
    """Write what is served where to standard error: an address may hold a token, which no log is to keep."""
    for name, address in addresses.items():
        with suppress(OSError):  # its reader has gone
            click.echo(f"{name:8} {address}", err=True)


class WatchingProcess:
    """A process that ends with the context, and also if this process is killed. Its own end is one warning.

    Args:
        arguments: command line of the module.
        module: what it runs.
    """

    def __init__(self, arguments: Sequence[str], module: str = "adc_edge") -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_CHILD), module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal is for the run, which ends this process after itself
        )
        self._answer: dict[str, Any] | None = None  # the line that says whether it is ready
        self._answered, self._ending = threading.Event(), False
        self._last: deque[str] = deque(maxlen=5)  # of its output
        self._warned: deque[float] = deque(maxlen=_MOST_WARNINGS)
        self._reader = threading.Thread(target=self._read, name="watching", daemon=True)
        self._reader.start()

    def wait_until_ready(self, stop: Callable[[], bool]) -> dict[str, str]:
        """Return the addresses that it serves, by name; nothing if ``stop`` returned True meanwhile.

        Raises:
            SettingError: it cannot start.
        """
        deadline = time.monotonic() + _READY_S
        while not self._answered.wait(_TICK_S):
            if stop():
                return {}
            if time.monotonic() > deadline:
                raise _not_started(f"has said nothing for {_READY_S:.0f} s")
        if self._answer is None:
            raise _not_started(f"has ended with code {self._process.wait()}: {self._last_words}")
        if (error := self._answer.get("error")) is not None:
            raise SettingError(*map(str, error))
        return {name: str(where) for name, where in self._answer.items() if name != "ready" and where}

    def __enter__(self) -> WatchingProcess:
        """Return the process, which runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let it read the last lines and end; after 10 s end it."""
        self._ending = True
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(_TICK_S * 10)
        if not self._reader.is_alive():  # else a process of its own holds the pipe
            self._process.stdout.close()

    @property
    def _last_words(self) -> str:
        return next((line for line in reversed(self._last) if line.strip()), "without a word")

    def _read(self) -> None:
        """Take what it prints, slowly: a process that prints without end waits, and this one is not disturbed."""
        assert self._process.stdout is not None
        rest = b""
        with suppress(OSError, ValueError):  # closed
            while piece := os.read(self._process.stdout.fileno(), _PIECE_BYTES):
                *lines, rest = (rest + piece).split(b"\n")
                rest = rest[:_LINE_BYTES]
                for line in lines:
                    self._take(line[:_LINE_BYTES].decode(errors="replace"))
                time.sleep(_TICK_S / 2)
        if rest:
            self._take(rest.decode(errors="replace"))
        code = self._process.wait()
        if self._answer is not None and "error" not in self._answer and not self._ending:
            words = f"code {code}: {self._last_words}"
            logger.warning("the watching process has ended (%s); the run goes on without it", words)
        self._answered.set()

    def _take(self, line: str) -> None:
        if self._answer is None and line.startswith("{"):
            with suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict) and ("ready" in found or "error" in found):
                    self._answer = found
                    self._answered.set()
                    return
        self._last.append(line)
        logged = _LOGGED.fullmatch(line)
        if logged is None or logged[1] not in ("WARNING", "ERROR", "CRITICAL"):
            logger.debug("watching: %s", line)
            return
        now = time.monotonic()
        if len(self._warned) < _MOST_WARNINGS or now - self._warned[0] > _WINDOW_S:
            self._warned.append(now)
            logger.log(logging.WARNING if logged[1] == "WARNING" else logging.ERROR, "watching: %s", logged[2])


def _not_started(what: str) -> SettingError:
    return SettingError(
        f"the process for --web, --metrics-port, --tensorboard and --tracker {what}",
        "a process that says what it serves",
        "leave these options out, and type adc-edge watch --run DIR beside the run to see what is wrong",
    )
