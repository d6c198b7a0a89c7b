"""The reference of fleet.py: decode + head + encode of the same messages, alone in a process, on the trainer's core."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fleet_recording import bundle_of, recorded

from adc_edge.codec.precision import Precision, encoded_bytes

if TYPE_CHECKING:
    from adc_edge.cloud_trainer.accumulator import StepAccumulator


class Alone(NamedTuple):
    """Speed of the work alone: steps a second, and processor time of a step."""

    rate: float
    cpu_ms: float


def work_alone(
    recording: Path, precision: Precision, gradient: Precision, micro_batches: int, core: int, pipe: Connection
) -> None:
    """The process: each number of seconds that comes through the pipe is answered with an Alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark handles it
    os.sched_setaffinity(0, {core})
    try:
        step = make_step(recording, precision, gradient, micro_batches)
        for _ in range(3):
            step()
        pipe.send(None)
        while (seconds := pipe.recv()) is not None:
            start, cpu_s, steps = time.perf_counter(), time.process_time(), 0
            while (passed := time.perf_counter() - start) < seconds:
                step()
                steps += 1
            pipe.send(Alone(steps / passed, 1e3 * (time.process_time() - cpu_s) / steps))
    except EOFError:
        pass
    except BaseException:
        pipe.send(RuntimeError(traceback.format_exc()))


def make_step(recording: Path, precision: Precision, gradient: Precision, micro_batches: int) -> Callable[[], None]:
    """A function that does the next step: forward, backward and update of the head, between decode and encode."""
    learn, update = make_parts(recording, precision, gradient, micro_batches)
    return lambda: update(learn())


def make_parts(
    recording: Path, precision: Precision, gradient: Precision, micro_batches: int
) -> tuple[Callable[[], StepAccumulator], Callable[[StepAccumulator], None]]:
    """Two functions: one decodes, learns and encodes the next step's messages, the other updates the head."""
    import torch
    from safetensors.torch import load

    from adc_edge.cloud_trainer.accumulator import StepAccumulator
    from adc_edge.cloud_trainer.codec.on_device import decode_to, encode_from
    from adc_edge.cloud_trainer.head import HeadTraining
    from adc_edge.machine.threads import divide_cores
    from adc_edge.method.labels import soft_labels
    from adc_edge.method.split import head_from_manifest
    from adc_edge.optimizer.settings import OptimizerSettings
    from adc_edge.storage.bundle import HEAD

    torch.set_num_threads(divide_cores(1))
    bundle = bundle_of(recording)
    head = head_from_manifest(bundle.manifest)
    head.vit.load_state_dict(load((bundle.path / HEAD).read_bytes()))
    training = HeadTraining(head, OptimizerSettings())
    messages, numbers = recorded(recording, precision, gradient), count()

    def learn() -> StepAccumulator:
        totals = StepAccumulator(micro_batches)
        for _ in range(micro_batches):
            sent = messages[next(numbers) % len(messages)]
            body, split = memoryview(sent.body), encoded_bytes(sent.shape, sent.precision)
            soft = soft_labels(body[split:], sent.shape[0], bundle.manifest.classes, sent.images)
            activations = decode_to(training.device, body[:split], sent.shape, sent.precision)
            learned = training.learn(activations, soft, True, totals)
            assert learned.gradient is not None
            encode_from(learned.gradient, sent.gradient)
        return totals

    return learn, lambda totals: training.update(totals, 0)


@contextmanager
def reference(
    recording: Path,
    precision: Precision,
    gradient: Precision,
    micro_batches: int,
    core: int,
    target: Callable[..., None] = work_alone,
) -> Iterator[Callable[[float], Any]]:
    """Yield a function that works for some seconds, and returns what ``target`` tells: an Alone."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(
        target=target, args=(recording, precision, gradient, micro_batches, core, theirs), daemon=True
    )
    process.start()
    theirs.close()

    def work(seconds: float) -> Any:
        ours.send(seconds)
        found = ours.recv()
        if isinstance(found, Exception):
            raise found
        return found

    try:
        if (trouble := ours.recv()) is not None:
            raise trouble
        yield work
    finally:
        ours.close()
        process.join(5)
        process.kill()
        process.join()
