"""`adc-edge infer` over a link that goes dark ten times: seconds until it answers locally, and until it is back.

    python benchmarks/infer_fallback.py

Dark means that every packet vanishes: no end of the connection is told. A real trainer and a real device have keys and
a namespace each, and images come to a watched directory at a camera's pace. It needs root, as the emulator does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fleet_trainer import TRAINER_KEYS, make_all_keys
from harness import Result, arguments, compare, show, table
from link_emulator import LinkEmulator, Way, available, enter, inside
from PIL import Image

PORT = 5700
ENDPOINT = f"tcp://{LinkEmulator.trainer_address}:{PORT}"
MODEL_ARGS = {"patch_size": 4, "img_size": 16, "embed_dim": 32, "num_heads": 2, "depth": 4}
PROMISED_S = 2.0  # of the fallback, and of the way back
START_S = 120.0
LIGHT_S = 3.0  # between two cuts, at least

# Packages of the export (torch, timm) are imported inside a function: the emulator's process imports this module.


class Cut(NamedTuple):
    """A time in which the link was dark, by the wall clock."""

    start_s: float
    end_s: float


class Line(NamedTuple):
    """A line of the output, and the wall clock when it came."""

    came_s: float
    answer: dict[str, Any]

    @property
    def written_s(self) -> float:
        """When the image came to the directory."""
        return float(self.answer["modified_ns"]) / 1e9


class CutTimes(NamedTuple):
    """Seconds that a cut has cost; infinite: such an answer did not come."""

    dark_s: float
    local_s: float  # from the cut to the first local answer
    back_s: float  # from the link's return to the next split answer


def export(bundle: Path) -> None:
    """Export a small bundle with its whole model."""
    from adc_edge.export.build import ExportSettings, export_bundle
    from adc_edge.method.ratio import Ratio

    ratio, model = Ratio(xi=1.0), "vit_tiny_patch16_224"
    export_bundle(ExportSettings(model, 2, bundle, ratio, 8, "int8", classes=10, model_args=MODEL_ARGS, whole=True))


@contextlib.contextmanager
def command(namespace: str, log: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run adc-edge at one end of the link, with its log in a file, and end it by SIGTERM."""
    call, place = [sys.executable, "-m", "adc_edge", *options], partial(enter, namespace)
    with (
        log.open("wb") as errors,
        subprocess.Popen(call, stdout=subprocess.PIPE, stderr=errors, preexec_fn=place) as child,
    ):
        try:
            yield child
        finally:
            child.terminate()
            child.wait(30)


def wait_for_trainer(link: LinkEmulator, child: subprocess.Popen[bytes], log: Path) -> None:
    """Return once it listens."""
    end = time.monotonic() + START_S
    while child.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), inside(link.trainer_namespace):
            socket.create_connection((link.trainer_address, PORT), 1.0).close()
            return
        time.sleep(0.1)
    raise RuntimeError(f"the trainer does not start: {log.read_text()}")


class Camera:
    """A thread that writes images to a directory at an even pace, each one at once.

    Args:
        directory: to write to.
        count: of the images.
        pace_hz: images a second.
    """

    def __init__(self, directory: Path, count: int, pace_hz: float) -> None:
        self.directory, self._count, self._pace_hz = directory, count, pace_hz
        self.thread = threading.Thread(target=self._write, daemon=True)
        directory.mkdir()

    def put(self, name: str, seed: int) -> None:
        """Write one image."""
        hidden = self.directory.parent / name
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(hidden)
        os.utime(hidden)
        hidden.rename(self.directory / name)

    def _write(self) -> None:
        start = time.monotonic()
        for number in range(self._count):
            time.sleep(max(0.0, start + number / self._pace_hz - time.monotonic()))
            self.put(f"{number:05}.png", number)


class Reader:
    """A thread that reads the answers.

    Args:
        child: `adc-edge infer`.
    """

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self.lines: list[Line] = []
        self._child, self._thread = child, threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait(self, count: int, timeout_s: float) -> None:
        """Return once so many answers have come, or the time is over."""
        end = time.monotonic() + timeout_s
        while len(self.lines) < count and time.monotonic() < end and self._child.poll() is None:
            time.sleep(0.01)

    def _read(self) -> None:
        assert self._child.stdout is not None
        for text in self._child.stdout:
            self.lines.append(Line(time.time(), json.loads(text)))


def cut_often(link: LinkEmulator, way: Way, schedule: Sequence[tuple[float, float]]) -> list[Cut]:
    """Make the link dark as often as the schedule says, after so many seconds and for so many; return when."""
    dark, cuts = way._replace(loss=1.0), []
    for before_s, dark_s in schedule:
        time.sleep(before_s)
        link.set(dark, dark)
        start = time.time()
        time.sleep(dark_s)
        link.set(way, way)
        cuts.append(Cut(start, time.time()))
    return cuts


def times_of(cuts: Sequence[Cut], lines: Sequence[Line]) -> list[CutTimes]:
    """Return what each cut has cost."""

    def first(where: str, after_s: float) -> float:
        found = (line.came_s - after_s for line in lines if line.came_s > after_s and line.answer["where"] == where)
        return next(found, float("inf"))

    return [CutTimes(cut.end_s - cut.start_s, first("local", cut.start_s), first("split", cut.end_s)) for cut in cuts]


def measure(directory: Path, args: argparse.Namespace) -> tuple[list[Line], list[CutTimes]]:
    """Run trainer and device; return all answers, and what each cut has cost."""
    bundle, way, log = directory / "bundle", Way(20, args.rtt_ms / 2), directory / "trainer.log"
    export(bundle)
    make_all_keys(directory, 1)
    rng = random.Random(args.seed)
    schedule = [(LIGHT_S + rng.random(), rng.uniform(*args.dark_s)) for _ in range(args.cuts)]
    camera = Camera(directory / "camera", args.images, args.images / (sum(map(sum, schedule)) + LIGHT_S))
    common = ("--bundle", str(bundle), "--threads", "1")
    serve = ("trainer", *common, "--serve-only", "--bind", ENDPOINT, "--keys", str(directory / TRAINER_KEYS))
    judge = ("infer", *common, "--trainer", ENDPOINT, "--keys", str(directory / "keys-0"), "--mode", "split", "-o", "-")
    with LinkEmulator(way, way) as link, command(link.trainer_namespace, log, *serve) as trainer:
        wait_for_trainer(link, trainer, log)
        with command(
            link.device_namespace, directory / "infer.log", *judge, "--watch", str(camera.directory)
        ) as device:
            reader = Reader(device)
            camera.put("first.png", args.images)
            reader.wait(1, START_S)
            camera.thread.start()
            cuts = cut_often(link, way, schedule)
            reader.wait(args.images + 1, 30.0)
            time.sleep(1.0)  # an answer too many would come now
    lines = [line for line in reader.lines if not line.answer["file"].endswith("first.png")]
    return lines, times_of(cuts, lines)


def report(lines: Sequence[Line], found: Sequence[CutTimes], images: int) -> list[Result]:
    """Print a table of the cuts, and return the results."""
    rows = [(str(number), *(f"{value:.2f}" for value in cut)) for number, cut in enumerate(found, 1)]
    table("seconds", ("cut", "dark", "until local", "until split again"), rows)
    files = {line.answer["file"] for line in lines}
    local, back = [cut.local_s for cut in found], [cut.back_s for cut in found]
    print(f"{images - len(files)} lost, {len(lines) - len(files)} answered twice", flush=True)
    return [
        compare("images with an answer v images", len(files), images, "images"),
        compare("answers v images", len(lines), images, "answers"),
        compare("from the cut to the first local answer, median v promise", statistics.median(local), PROMISED_S, "s"),
        compare("the same, worst", max(local), PROMISED_S, "s"),
        compare("from the return to the next split answer, median v promise", statistics.median(back), PROMISED_S, "s"),
        compare("the same, worst", max(back), PROMISED_S, "s"),
        compare("an image's wait for its answer, worst", max(x.came_s - x.written_s for x in lines), PROMISED_S, "s"),
    ]


def options() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = arguments("`infer` over a link that goes dark: seconds until it answers locally, and until it is back.")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--cuts", type=int, default=10)
    parser.add_argument("--dark-s", type=float, nargs=2, default=(2.0, 9.0), help="least and most seconds of a cut")
    parser.add_argument("--rtt-ms", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    args = options().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the namespaces are removed
    if trouble := available():
        print(trouble)
        return
    with tempfile.TemporaryDirectory() as name:
        results = report(*measure(Path(name), args), args.images)
    show("infer over a link that goes dark", results, args.json)


if __name__ == "__main__":
    main()
