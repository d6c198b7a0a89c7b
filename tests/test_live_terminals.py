"""`serve` and `trainer` on real terminals: live areas there, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adc_edge.cloud_trainer.server import Server

CURSOR_UP = "\x1b[1A"


class OnTerminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments: str | Path, environment: dict[str, str]) -> None:
        self._parent, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        without = ("CI", "NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR")
        inherited = {key: value for key, value in os.environ.items() if key not in without}
        command = [sys.executable, "-m", "adc_edge", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=child, stdout=child, stderr=child, env=inherited | {"TERM": "xterm-256color"} | environment
        )
        os.close(child)
        self.seen = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def text(self) -> str:
        return self.seen.decode(errors="replace")

    def wait_for(self, found: Callable[[str], bool]) -> None:
        end = time.monotonic() + 120
        while not found(self.text()):
            assert time.monotonic() < end, self.text()
            assert self.process.poll() is None or found(self.text()), self.text()
            time.sleep(0.05)

    def end(self) -> str:
        self.process.wait(120)
        self._thread.join(10)
        return self.text()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while part := os.read(self._parent, 1 << 16):
                self.seen += part


@contextlib.contextmanager
def on_terminal(*arguments: str | Path, **more: str) -> Iterator[OnTerminal]:
    """Run a command on a terminal, and kill it at the end of the block if it still runs."""
    command = OnTerminal(*arguments, environment=more)
    try:
        yield command
    finally:
        command.process.kill()
        command.end()


def serving(bundle: Path, endpoint: str, *more: str) -> list[str | Path]:
    shared = "--data digits --trunk frozen --micro-batches 1 --eval-images 8 --threads 1 --name".split()
    return ["serve", "--bundle", bundle, "--trainer", endpoint, *shared, "\x1b[2J[red]x", *more]


def test_serve_draws_its_run_and_ends_with_one_line_and_the_table(bundle_dir: Path, server: Server) -> None:
    with on_terminal(*serving(bundle_dir, server.endpoint, "--steps", "40")) as device:
        text = device.end()
    assert device.process.returncode == 0
    assert "── serve" in text
    assert CURSOR_UP in text
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text[text.rindex("step 40/40") :])
    assert last.startswith("step 40/40  loss")
    assert "What the run did and what it cost" in last
    assert "── serve" not in last


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        ([], {"CI": "true"}),
        pytest.param([], {"TERM": "dumb"}, marks=pytest.mark.slow),
        pytest.param(["--quiet"], {}, marks=pytest.mark.slow),
        pytest.param(["--log-json"], {}, marks=pytest.mark.slow),
    ],
)
def test_serve_prints_plain_lines_where_nothing_can_be_drawn(
    options: list[str], environment: dict[str, str], bundle_dir: Path, server: Server
) -> None:
    with on_terminal(*serving(bundle_dir, server.endpoint, "--steps", "6", *options), **environment) as device:
        text = device.end()
    assert device.process.returncode == 0
    assert CURSOR_UP not in text
    assert "── serve" not in text
    assert ("step 1/6" in text) == ("--quiet" not in options)


@pytest.mark.slow
def test_an_outage_is_shown_while_it_lasts_and_names_are_escaped(bundle_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "trainer"
    trainer: list[str | Path] = ["trainer", "--bundle", bundle_dir, "--threads", "1", "--run", run, "--bind"]
    with on_terminal(*trainer, "tcp://127.0.0.1:*") as first:
        first.wait_for(lambda text: (run / "endpoint").exists())
        endpoint = (run / "endpoint").read_text()
        with on_terminal(*serving(bundle_dir, endpoint, "--steps", "1000000")) as device:
            first.wait_for(lambda text: "1 connected" in text and "steps/s" in text)
            first.wait_for(lambda text: r"\x1b[2J[red]x" in text)
            assert "\x1b[2J" not in first.text()
            first.process.send_signal(signal.SIGKILL)
            device.wait_for(lambda text: "link lost, waiting for the trainer" in text and "try 2" in text)
            with on_terminal(*trainer, endpoint) as second:
                second.wait_for(lambda text: "1 connected" in text)
                before = len(device.text())
                device.wait_for(lambda text: "steps/s" in text[before:])
                device.process.send_signal(signal.SIGTERM)
                second.wait_for(lambda text: "1 away" in text)
