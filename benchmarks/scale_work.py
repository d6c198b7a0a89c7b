"""The time of a trainer's loop beside its head: calibrated with few devices, and from files and sockets alone."""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

import msgspec
import numpy as np
import zmq
from scale_fleet import DeviceWork, Link, Outcome, RankWork, simulate
from scale_runs import LIGHT, Alone, Point, stand
from scale_values import Series

from adc_edge.defaults import CHECKPOINT_EVERY
from adc_edge.planning.profile import Line
from adc_edge.planning.timing import line
from adc_edge.storage.bundle import HEAD
from adc_edge.storage.checkpoint import save_checkpoint
from adc_edge.storage.journal import Journal, JournalKey
from adc_edge.storage.run_dir import RunDir

POINTS = (1, 4, 16)  # devices; the check has others
TURN_S, TURNS = 12.0, 2
COPIES = 3  # of the head in a checkpoint: weights, and two moments of Adam
BODY_BYTES = 77_000  # of a message of a point, about, and of its answer
_SMALL, _LARGE = 20_000, 320_000  # bytes
_ENTRIES, _LOGS = 50, (1, 25)
_ECHOES = 150


class Files(msgspec.Struct, frozen=True):
    """Seconds of what a trainer does with files."""

    append: Line  # of an answer to a session's log, by bytes
    metric: float  # of a line of the metrics
    save: Line  # of head and optimizer in a checkpoint, by bytes
    entry: float  # to flush an answer to the disk
    log: float  # to flush a session's directory to the disk

    def checkpoint(self, head_bytes: float, entries: int, logs: int) -> float:
        """Seconds of a checkpoint with so many answers since the last one, in the logs of so many sessions."""
        return self.save.seconds(head_bytes) + entries * self.entry + logs * self.log


class Wire(msgspec.Struct, frozen=True):
    """Processor seconds of a process that receives a message or sends one, libzmq's thread among them, by bytes."""

    plain: Line
    curve: Line


class Work(msgspec.Struct, frozen=True):
    """Processor seconds of a trainer's loop beside the work alone (decode, head, encode, optimizer)."""

    loop: float  # of a message before its answer has left
    after: float  # of a step after its answer: log and metrics
    own: float  # of a replaying device between an answer and the next message's arrival
    files: Files
    wire: Wire
    checkpoint_ratios: list[float]  # checkpoints of the trainer v ``files``
    points: dict[str, float]  # devices: steps a second
    unclipped: dict[str, float] = {}  # loop, after and own as computed; below 0 the error is larger than the value


def head_bytes(bundle: Path) -> int:
    """Size of head and optimizer in a checkpoint."""
    return COPIES * (bundle / HEAD).stat().st_size


def calibrate_work() -> Work:
    """Run the trainer with few devices, and time files and sockets alone."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with stand(directory / "stand", LIGHT) as measure:
            points = [measure(count, TURN_S, TURNS) for count in POINTS]
            size = head_bytes(directory / "stand" / "recording" / "bundle")
        files = measure_files(directory / "files", size)
    return work_of(points, files, measure_wire(), size)


def work_of(points: list[Point], files: Files, wire: Wire, size: int) -> Work:
    """The parameters that the points tell; the first one has one device, the others keep the trainer busy.

    The processor time of a busy trainer's step is that of the work alone, of the loop, and of what follows the answer.
    With one device the last part overlaps with the device's own time. Measured seconds are divided by ``stretch``.
    """
    first, *busy = points
    beside = statistics.fmean(point.cpu - point.alone.mean / point.alone.stretch for point in busy)
    kept = [statistics.fmean(point.checkpoints) - statistics.fmean(point.gaps) for point in busy if point.checkpoints]
    part = statistics.fmean(kept) / CHECKPOINT_EVERY if kept else 0.0
    after = statistics.fmean(
        (point.after - statistics.fmean(point.alone.update) - part) / point.alone.stretch for point in busy
    )
    unclipped = {"after": after, "loop": beside - after}
    after = min(max(after, 0.0), max(beside, 0.0))
    loop = max(beside - after, 0.0)
    own = (statistics.fmean(first.gaps) - statistics.fmean(first.alone.learn)) / first.alone.stretch - loop
    unclipped["own"] = own
    ratios = [
        max(gap - statistics.fmean(point.gaps), 0.0) / files.checkpoint(size, CHECKPOINT_EVERY, point.devices)
        for point in points
        for gap in point.checkpoints
    ]
    rates = {str(point.devices): point.rate for point in points}
    shown = [round(ratio, 3) for ratio in ratios]
    return Work(loop, after, max(own, 0.0), files, wire, shown, rates, unclipped)


def simulated(work: Work, alone: Alone, devices: int, size: int, turn_s: float, seed: int) -> Outcome:
    """A turn of replaying devices at one trainer, all of which begin at once, as fleet.py's do."""
    random = Random(seed)
    learn, update, ratio = (Series(v, random) for v in (alone.learn, alone.update, work.checkpoint_ratios or [1.0]))
    whole, stretch = work.files.checkpoint(size, CHECKPOINT_EVERY, devices), alone.stretch
    rank = RankWork(
        lambda messages: {"head": learn(), "loop": work.loop * stretch},
        lambda messages: {"update": update(), "log": work.after * stretch},
        checkpoint=lambda: whole * ratio(),
        checkpoint_every=CHECKPOINT_EVERY,
        first_step=random.randrange(CHECKPOINT_EVERY),
    )
    return simulate([(DeviceWork(work.own * stretch), Link(0.0, 0.0))] * devices, [rank], turn_s)


def measure_files(directory: Path, size: int) -> Files:
    """Time the trainer's files, on the disk of ``directory``."""
    return Files(_appends(directory), _metrics(directory), _saves(directory, size), *_flushes(directory))


def _median(work: Callable[[int], object], times: int) -> float:
    found = []
    for number in range(times):
        begun = time.perf_counter()
        work(number)
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def _appends(directory: Path) -> Line:
    def seconds(size: int) -> float:
        journal, body = Journal(directory / f"append-{size}"), bytes(size)

        def append(number: int) -> None:
            journal.append(JournalKey(number), b"header", body)
            journal.prune(number - 20)

        return _median(append, 100)

    return line({size: seconds(size) for size in (_SMALL, _LARGE)})


def _metrics(directory: Path) -> float:
    run = RunDir(directory / "run", {}, {})
    values = {f"value_{number}": number / 3 for number in range(16)}
    try:
        return _median(lambda number: run.metric(kind="step", head_step=number, **values), 300)
    finally:
        run.close()


def _saves(directory: Path, size: int) -> Line:
    def seconds(bytes_: int) -> float:
        arrays = {"weights": np.random.default_rng(0).random(bytes_ // 4, np.float32)}
        place = directory / f"save-{bytes_}"
        place.mkdir(parents=True)
        return _median(lambda number: save_checkpoint(place, number, arrays, {}), 6)

    return line({bytes_: seconds(bytes_) for bytes_ in (size, 6 * size)})


def _flushes(directory: Path) -> tuple[float, float]:
    """Seconds to flush an entry, and a log."""

    def seconds(logs: int) -> float:
        journals, body = [Journal(directory / f"flush-{logs}-{number}") for number in range(logs)], bytes(BODY_BYTES)
        found = []
        for turn in range(5):
            for number in range(_ENTRIES):
                journals[number % logs].append(JournalKey(turn * _ENTRIES + number), b"header", body)
            begun = time.perf_counter()
            for journal in journals:
                journal.sync()
            found.append(time.perf_counter() - begun)
        return statistics.median(found)

    few, many = (seconds(logs) for logs in _LOGS)
    log = max(0.0, (many - few) / (_LOGS[1] - _LOGS[0]))
    return max(0.0, few - _LOGS[0] * log) / _ENTRIES, log


def measure_wire() -> Wire:
    """Time messages of two sizes, with CURVE and without."""

    def found(curve: bool) -> Line:
        return line({size: _echo_seconds(size, curve) for size in (_SMALL, _LARGE)})

    return Wire(found(False), found(True))


def _echo_seconds(size: int, curve: bool) -> float:
    """Processor seconds of this process for a message: it receives some from another one, and sends them back."""
    public, secret = zmq.curve_keypair()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.ROUTER) as router:
        if curve:
            router.curve_secretkey, router.curve_publickey, router.curve_server = secret, public, True
        port = router.bind_to_random_port("tcp://127.0.0.1")
        with _child(_ask, f"tcp://127.0.0.1:{port}", size, public if curve else b""):
            begun = 0.0
            for number in range(2 * _ECHOES):
                if number == _ECHOES:
                    begun = time.process_time()
                router.send_multipart(router.recv_multipart(copy=False), copy=False)
            return (time.process_time() - begun) / _ECHOES / 2


def _ask(endpoint: str, size: int, server: bytes, pipe: Connection) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.DEALER) as dealer:
        if server:
            dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
            dealer.curve_serverkey = server
        dealer.connect(endpoint)
        for _ in range(2 * _ECHOES):
            dealer.send_multipart([b"header", bytes(size)])
            dealer.recv_multipart()


@contextmanager
def _child(target: Callable[..., None], *args: object) -> Iterator[Connection]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=target, args=(*args, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.join(10)
        process.kill()
        process.join()
