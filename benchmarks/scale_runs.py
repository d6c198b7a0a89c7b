"""Real runs for scale.py: a trainer with replaying devices (fleet.py), and its work alone on the same core."""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from fleet import Bench, Case
from fleet_devices import Ends, Fleet, fleet, rate_of
from fleet_recording import Model, record
from fleet_reference import make_parts, reference
from fleet_trainer import TrainerProcess, counting

from adc_edge.codec.precision import Precision
from adc_edge.defaults import CHECKPOINT_EVERY

LIGHT = Model()  # one block of ViT-T at 112 px as the head
HEAVIER = Model(args={"img_size": 112, "depth": 6})  # three blocks
HEADS = {"light": LIGHT, "heavier": HEAVIER}
PRECISION: Precision = "int8"
ALONE_S = 3.0
_WARM_S = 1.0
_BREAK = 5.0  # times the median: a longer pause between two steps is the one between two turns


class Alone(NamedTuple):
    """The trainer's work alone, step by step: decode to encode, and the optimizer; seconds."""

    learn: list[float]
    update: list[float]
    cpu: float  # processor seconds of all

    def more(self, other: Alone) -> Alone:
        return Alone(self.learn + other.learn, self.update + other.update, self.cpu + other.cpu)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.learn) + statistics.fmean(self.update)

    @property
    def stretch(self) -> float:
        """Seconds v processor seconds: above 1 where others use the core too."""
        return self.mean * len(self.learn) / self.cpu


class Point(NamedTuple):
    """A trainer with so many devices, and its work alone in neighbouring turns; seconds."""

    devices: int
    turn_s: float
    rates: list[float]  # steps a second, of each turn
    latencies: list[float]  # from one end of a step to the device's next one
    gaps: list[float]  # from one step to the next in the trainer's metrics, without a checkpoint between them
    checkpoints: list[float]  # the same with one
    cpu: float  # processor seconds of a step, all threads of the trainer
    after: float  # of a step: optimizer, log, metrics and its part of a checkpoint, as the trainer measures them
    alone: Alone

    @property
    def rate(self) -> float:
        return statistics.fmean(self.rates)


def series_alone(
    recording: Path, precision: Precision, gradient: Precision, micro_batches: int, core: int, pipe: Connection
) -> None:
    """The process of the work alone: a number of seconds is answered with the times of each step's two parts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark handles it
    os.sched_setaffinity(0, {core})
    try:
        learn, update = make_parts(recording, precision, gradient, micro_batches)
        for _ in range(3):
            update(learn())
        pipe.send(None)
        while (seconds := pipe.recv()) is not None:
            until, found = time.perf_counter() + seconds, Alone([], [], 0.0)
            begun_cpu = time.process_time()
            while (begun := time.perf_counter()) < until:
                totals = learn()
                learned = time.perf_counter()
                update(totals)
                found.learn.append(learned - begun)
                found.update.append(time.perf_counter() - learned)
            pipe.send(found._replace(cpu=time.process_time() - begun_cpu))
    except EOFError:
        pass
    except BaseException:
        pipe.send(RuntimeError(traceback.format_exc()))


@contextmanager
def stand(directory: Path, model: Model) -> Iterator[Callable[[int, float, int], Point]]:
    """Yield a function that measures a point: number of devices, seconds of a turn, turns."""
    *others, core = sorted(os.sched_getaffinity(0))
    directory.mkdir(parents=True)
    recording = directory / "recording"
    record(recording, model)
    case = Case(PRECISION, None, 1, 1)
    cores = (core, frozenset(others or [core]))
    with reference(recording, case.precision, case.gradient, 1, core, series_alone) as alone:
        numbers = iter(range(1000))

        def measure(devices: int, seconds: float, turns: int) -> Point:
            bench = Bench(directory / f"bench-{next(numbers)}", recording, case, cores)
            with bench.trainer() as trainer, fleet([bench.group(trainer.endpoint, devices)]) as group:
                return _measured(group, trainer, alone, seconds, turns)

        yield measure


def _measured(
    group: Fleet, trainer: TrainerProcess, alone: Callable[[float], Any], seconds: float, turns: int
) -> Point:
    group.begin(_WARM_S)
    group.turn()
    worked: Alone = alone(ALONE_S)
    turned: list[Ends] = []
    times: list[tuple[float, float]] = []
    cpu = 0.0
    for _ in range(turns):
        begun, before = time.time(), trainer.cpu_seconds()
        group.begin(seconds)
        turned.append(group.turn())
        cpu += sum(trainer.cpu_since(before).values())
        times.append((begun, time.time()))
        worked = worked.more(alone(ALONE_S))
    told = group.end()
    lost, twice = counting(trainer.run, {one.session: one.steps for one in told})
    assert lost + twice + sum(one.outages for one in told) == 0, f"{lost} steps lost, {twice} counted twice"
    devices = [device for found in turned for rows in found for device in rows]
    latencies = [b - a for ends in devices for a, b in pairwise(ends)]
    gaps, checkpoints = _gaps(trainer.run, times)
    after = after_seconds(trainer.run, times)
    rates, each = list(map(rate_of, turned)), cpu / sum(map(len, devices))
    return Point(len(told), seconds, rates, latencies, gaps, checkpoints, each, after, worked)


def _lines(path: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, path.read_bytes().splitlines())
    return [line for line in lines if line["kind"] == kind]


def _gaps(run: Path, turns: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Seconds between neighbouring steps in the metrics of a run: without a checkpoint between them, and with one."""
    plain: list[float] = []
    kept: list[float] = []
    steps = _lines(run / "metrics.jsonl", "step")
    for first, second in pairwise(steps):
        if any(begun < first["time"] and second["time"] < ended for begun, ended in turns):
            to = kept if first["head_step"] % CHECKPOINT_EVERY == 0 else plain
            to.append(second["time"] - first["time"])
    return plain, kept


def after_seconds(run: Path, turns: list[tuple[float, float]]) -> float:
    """Seconds of a step after its answer, by the trainer's reports that lie within a turn; 0: there are none."""
    times = [line["time"] for line in _lines(run / "metrics.jsonl", "step")]
    spent, steps = 0.0, 0
    for use in _lines(run / "events.jsonl", "use"):
        begun, ended = use["time"] - use["seconds"], use["time"]
        if any(first < begun and ended < last for first, last in turns):
            spent += use["seconds_update"]
            steps += sum(begun < moment <= ended for moment in times)
    return spent / steps if steps else 0.0
