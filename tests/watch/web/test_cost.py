"""The price of being watched: none for the run, and a bounded one for the watching process."""

from __future__ import annotations

import contextlib
import functools
import signal
import socket
import statistics
import time
from pathlib import Path

import numpy as np
import pytest

from tests.watch.synthetic import SyntheticRun
from tests.watch.watching import Watching, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


def dead_browser(port: int) -> socket.socket:
    """A page that asks for the stream and never reads it."""
    page = socket.socket()
    page.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    page.connect(("127.0.0.1", port))
    page.sendall(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    return page


def has_done(watching: Watching, steps: int) -> bool:
    """Whether the page shows so many steps."""
    return int(watching.state()["runs"][0]["about"]["steps_done"]) >= steps


def stepping_s(run: SyntheticRun, steps: int = 20) -> float:
    """Seconds of so many steps that compute and write their line."""
    left, right = (np.ones((200, 200), np.float32) for _ in range(2))
    begin = time.perf_counter()
    for _ in range(steps):
        for _ in range(60):
            left @ right
        run.step()
    return time.perf_counter() - begin


@pytest.mark.timed
def test_twenty_dead_browsers_delay_no_step(tmp_path: Path) -> None:
    """The watching process is stopped and continued in turns, so that both times meet the same machine."""
    ratios = []
    with (
        SyntheticRun(tmp_path / "run", "device") as run,
        Watching(run.path) as watching,
        contextlib.ExitStack() as pages,
    ):
        for _ in range(20):
            pages.enter_context(dead_browser(watching.port))
        stepping_s(run)
        for turn in range(40):
            times = {}
            for number in (signal.SIGSTOP, signal.SIGCONT)[:: 1 if turn % 2 else -1]:
                watching.process.send_signal(number)
                times[number] = stepping_s(run)
            ratios.append(times[signal.SIGCONT] / times[signal.SIGSTOP])
        watching.process.send_signal(signal.SIGCONT)
    print(f"a step takes {statistics.median(ratios):.3f} times as long while it is watched; of {sorted(ratios)}")
    assert statistics.median(ratios) < 1.1  # 1.02 on an idle machine


@pytest.mark.parametrize("role", ["device", "trainer"])
def test_a_hundred_thousand_steps_fit_into_bounded_memory(tmp_path: Path, role: str) -> None:
    sizes = []
    names = [f"device-{number}" for number in range(8)]
    with (
        SyntheticRun(tmp_path / "run", "device" if role == "device" else "trainer", names, start=1e9) as run,
        Watching(run.path) as watching,
        socket.create_connection(("127.0.0.1", watching.port)) as page,
    ):
        page.sendall(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        page.settimeout(0.01)
        for part in range(10):
            for number in range(10_000):
                run.step(number % 8 if role == "trainer" else 0)
                if number % 1000 == 0:
                    run.evaluation(0)
                    with contextlib.suppress(TimeoutError):
                        while page.recv(1 << 20):
                            pass
            eventually(functools.partial(has_done, watching, 10_000 * (part + 1)), 60)
            sizes.append(watching.memory_mb())
        curves = watching.state()["runs"][0]["curves"]
        for curve in curves.values():
            assert len(curve["columns"]["step"]) <= 2000
    print("MB after each 10,000 steps:", sizes)
    assert sizes[-1] < 250
    assert sizes[-1] - sizes[3] < 15
