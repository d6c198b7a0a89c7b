"""The cost for a real run of being watched by everything at once.

    python benchmarks/watching.py --json out/watching.json
    python benchmarks/watching.py --idle 1000   # and so many idle connections to the page, again and again

A trainer and a device, processes with one thread each, on loopback. The page is open in three browsers, the metrics are
scraped each second, and TensorBoard's files are written. The watching process and the browsers are stopped (SIGSTOP)
for some steps and go on for the next ones, in turns, so that both times meet the same machine. The browsers have a low
priority, since they would run elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from harness import Result, arguments, compare, show
from playwright.sync_api import sync_playwright

EXPORT = "--model vit_tiny_patch16_224 --model-arg img_size=112 --model-arg depth=6 --num-classes 10 --split 3"
BATCH, BROWSERS, TURN_STEPS = 16, 3, 8
CHROMIUM = "/usr/bin/chromium"
READY_S = 120.0


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "adc_edge", *words]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def children(parent: int) -> list[int]:
    """All processes below one."""
    below = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return below + [pid for child in below for pid in children(child)]


def send(processes: list[int], number: signal.Signals) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def step_seconds(metrics: Path) -> list[float]:
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return [json.loads(line)["seconds"] for line in lines if '"kind": "step"' in line]


def wait_for(found: Path) -> None:
    deadline = time.monotonic() + READY_S
    while not (found.exists() and found.read_text()):
        assert time.monotonic() < deadline, f"{found} was not written"
        time.sleep(0.05)


@contextlib.contextmanager
def watched_run(where: Path, steps: int) -> Iterator[tuple[Path, int, str, str]]:
    """A run that goes on; yields the device's metrics, the trainer's process, page and metrics' address."""
    web, metrics = free_port(), free_port()
    bundle, cloud, device = where / "bundle", where / "cloud", where / "device"
    subprocess.run(command("export", *shlex.split(EXPORT), "-o", str(bundle)), check=True, stdout=subprocess.DEVNULL)
    watching = [
        "--web",
        f"127.0.0.1:{web}",
        "--metrics-port",
        str(metrics),
        "--tensorboard",
        str(where / "tensorboard"),
    ]
    base = ["--threads", "1", "--bundle", str(bundle)]
    quiet = partial(subprocess.Popen, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    trainer = quiet(command("trainer", *base, "--bind", "tcp://127.0.0.1:*", "--run", str(cloud), *watching))
    serving = None
    try:
        wait_for(cloud / "endpoint")
        serve = ["--trainer", (cloud / "endpoint").read_text(), "--steps", str(steps), "--batch-size", str(BATCH)]
        serve += ["--eval-images", "1", "--micro-batches", "1", "--run", str(device)]
        serving = quiet(command("serve", *base, *serve))
        wait_for(device / "metrics.jsonl")
        yield device / "metrics.jsonl", trainer.pid, f"http://127.0.0.1:{web}/", f"http://127.0.0.1:{metrics}/metrics"
    finally:
        for process in (serving, trainer):
            if process is not None:
                process.terminate()
                process.wait(30)


def keep_idle(port: int, count: int, going: threading.Event, over: threading.Event) -> None:
    """Open connections that say nothing, and others when the page has closed them, while ``going`` is set."""
    while not over.is_set():
        if not going.wait(0.2):
            continue
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                with contextlib.suppress(OSError):
                    stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=1))
            over.wait(10.0)  # the page closes silent connections after that


def measure(turns: int, idle: int) -> list[Result]:
    with (
        tempfile.TemporaryDirectory() as name,
        watched_run(Path(name), 10**6) as (metrics, trainer, page, scraped),
        sync_playwright() as playwright,
    ):
        before = children(os.getpid())
        low = Path(name) / "chromium"  # browsers would be on other machines
        low.write_text(f'#!/bin/sh\nexec nice -n 19 {CHROMIUM} "$@"\n')
        low.chmod(0o755)
        browser = playwright.chromium.launch(executable_path=low, args=["--no-sandbox"])
        for _ in range(BROWSERS):
            browser.new_context().new_page().goto(page)
        time.sleep(5)
        browsers = [pid for pid in children(os.getpid()) if pid not in before]
        stopped = [*children(trainer), *browsers]
        over, going = threading.Event(), threading.Event()

        def scrape() -> None:
            while not over.wait(1.0):
                if going.wait(1.0):
                    with contextlib.suppress(OSError):
                        urllib.request.urlopen(scraped, timeout=5).read()

        threads = [threading.Thread(target=scrape)]
        if idle:
            port = int(page.rstrip("/").rpartition(":")[2])
            threads.append(threading.Thread(target=keep_idle, args=(port, idle, going, over)))
        for thread in threads:
            thread.start()
        medians: dict[bool, list[float]] = {True: [], False: []}
        try:
            for turn in range(2 * turns):
                on = (turn + turn // 2) % 2 == 0  # on, off, off, on
                send(stopped, signal.SIGCONT if on else signal.SIGSTOP)
                (going.set if on else going.clear)()
                start = len(step_seconds(metrics))
                while len(done := step_seconds(metrics)) < start + TURN_STEPS + 2:
                    time.sleep(0.2)
                medians[on].append(statistics.median(done[start + 2 :]))  # the step under way belongs to neither
        finally:
            send(stopped, signal.SIGCONT)
            over.set()
            for thread in threads:
                thread.join()
            browser.close()
    ratios = [a / b for a, b in zip(medians[True], medians[False], strict=True)]
    print(f"ratios of neighbouring turns: {', '.join(f'{ratio:.3f}' for ratio in sorted(ratios))}")
    with_all, alone = (1e3 * statistics.median(medians[key]) for key in (True, False))
    return [
        compare("a step, watched by everything v by nothing", with_all, alone, "ms"),
        compare("median of the ratios of neighbouring turns", statistics.median(ratios), 1.0, ""),
    ]


def main() -> None:
    parser = arguments("The step of a real run that is watched by everything v by nothing.")
    parser.add_argument("--turns", type=int, default=20, help="turns of each kind")
    parser.add_argument("--idle", type=int, default=0, metavar="N", help="idle connections to the page")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results = measure(args.turns, args.idle)
    show(f"the price of being watched: {BROWSERS} browsers, a scrape a second, TensorBoard", results, args.json)


if __name__ == "__main__":
    main()
