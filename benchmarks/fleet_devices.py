"""Light devices that replay recorded messages: a process of many, each with a real session, journal and window.

A device computes nothing: it sends its next message as soon as the window allows. The process imports no torch.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from fleet_recording import Recorded, bundle_of, recorded
from link_forwarder import enter

from adc_edge.codec.precision import Precision
from adc_edge.defaults import CHECKPOINT_EVERY
from adc_edge.edge_runtime.session import DeviceSession
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.journal import Journal, JournalKey
from adc_edge.wire.connection import ClientKeys
from adc_edge.wire.headers import pack_header
from adc_edge.wire.messages import VERSION, Gradient, Hello, Step

Ends = list[list[list[float]]]  # times at which steps ended, of each group and device

_TRANSFER_BITS = 62
OUTAGE_S = 120.0


class Group(NamedTuple):
    """Devices of one process."""

    recording: Path
    directory: Path  # of their journals
    endpoint: str
    first: int  # number of the first one
    devices: int
    precision: Precision
    gradient: Precision
    micro_batches: int
    window: int
    keys: Path | None  # directory of everybody's keys
    cores: frozenset[int]
    namespace: str | None = None  # at an emulated link's end


class Told(NamedTuple):
    """A device tells at its end: its session, its steps, and what went wrong."""

    session: str
    steps: int
    outages: int
    torch: bool
    peer: str


class ReplayDevice:
    """One device: a session, a journal, and a position in the recording."""

    def __init__(self, group: Group, number: int, bundle: Bundle, messages: list[Recorded]) -> None:
        self._group, self.number, self.step = group, number, 0
        self._bundle, self._messages = bundle, messages
        self._session_number, self._incarnation = secrets.randbits(_TRANSFER_BITS), secrets.randbits(_TRANSFER_BITS)
        self._transfer = secrets.randbits(_TRANSFER_BITS)
        self._journal = Journal(group.directory / f"journal-{number}")
        keys = None if group.keys is None else ClientKeys.load(group.keys / f"keys-{number}")
        self._session = DeviceSession(
            group.endpoint,
            self._hello,
            self._journal,
            self._bundle.manifest.dim,
            keys=keys,
            micro_batches=lambda step: group.micro_batches,
        )

    def open(self) -> None:
        self._session.open(OUTAGE_S)

    def run(self, until_s: float, most_steps: int) -> list[float]:
        """Do steps until a time of the monotonic clock, or until there are so many; return the times of their ends."""
        times = []
        while time.monotonic() < until_s and self.step < most_steps:
            self._one_step()
            times.append(time.monotonic())
        return times

    def end(self) -> Told:
        self._session.close_session()
        self._session.close()
        session = f"{self._session_number:016x}"
        return Told(session, self.step, self._session.outages, "torch" in sys.modules, f"device-{self.number}")

    def _one_step(self) -> None:
        in_flight: deque[int] = deque()
        for micro_batch in range(self._group.micro_batches):
            if len(in_flight) == self._group.window:
                self._take(in_flight.popleft())
            self._send(micro_batch)
            in_flight.append(micro_batch)
        while in_flight:
            self._take(in_flight.popleft())
        self.step += 1

    def _send(self, micro_batch: int) -> None:
        place = self.step * self._group.micro_batches + micro_batch + self.number
        sent = self._messages[place % len(self._messages)]
        self._transfer += 1
        message = Step(
            self._session_number,
            self.step,
            micro_batch,
            self._transfer,
            memoryview(sent.body).nbytes,
            sent.images,
            *sent.shape[:2],
            sent.triples,
            sent.precision,
            sent.gradient,
            self._durable(),
        )
        self._session.submit(message, sent.body)
        self._journal.append(JournalKey(self.step, micro_batch), pack_header(message), sent.body)

    def _take(self, micro_batch: int) -> None:
        answer, gradient = self._session.result(OUTAGE_S)
        assert isinstance(answer, Gradient)
        assert (answer.step, answer.micro_batch) == (self.step, micro_batch), "an answer to another micro-batch"
        assert len(gradient) == answer.body_bytes

    def _durable(self) -> int:
        """The step of the older of two checkpoints, as if a device made one every CHECKPOINT_EVERY steps."""
        return max(0, self.step // CHECKPOINT_EVERY - 1) * CHECKPOINT_EVERY

    def _hello(self) -> Hello:
        count = self._group.micro_batches
        oldest = self._journal.oldest(self.step, lambda step: count)
        name = f"device-{self.number}"
        stands = (self.step, self._durable(), oldest)
        ours = (self._session_number, self._incarnation, name)
        return Hello(VERSION, self._bundle.digest, *ours, *stands, micro_batches=count, named=True, moves=True)


def replay(group: Group, pipe: Connection) -> None:
    """The process of a group. An order (seconds, most steps) is answered with each device's times; None ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark handles it
    try:
        os.sched_setaffinity(0, group.cores)
        if group.namespace is not None:
            enter(group.namespace)
        with ThreadPoolExecutor(group.devices) as pool:
            bundle = bundle_of(group.recording)
            messages = recorded(group.recording, group.precision, group.gradient)
            numbers = range(group.first, group.first + group.devices)
            devices = [ReplayDevice(group, number, bundle, messages) for number in numbers]
            list(pool.map(ReplayDevice.open, devices))
            pipe.send(None)
            for seconds, most_steps in _orders(pipe):
                until_s = time.monotonic() + seconds
                turns = [pool.submit(device.run, until_s, most_steps) for device in devices]
                pipe.send([turn.result() for turn in turns])
            pipe.send(list(pool.map(ReplayDevice.end, devices)))
    except BaseException:
        pipe.send(RuntimeError(traceback.format_exc()))


def _orders(pipe: Connection) -> Iterator[tuple[float, int]]:
    while (order := pipe.recv()) is not None:
        yield order


class Fleet:
    """Groups of devices, each a process; orders go to all of them at once."""

    def __init__(self, pipes: list[Connection]) -> None:
        self._pipes = pipes

    def begin(self, seconds: float, most_steps: int = sys.maxsize) -> None:
        """Let all devices work for so long, or until each has done so many steps."""
        for pipe in self._pipes:
            pipe.send((seconds, most_steps))

    def turn(self) -> Ends:
        """Wait until all devices rest; return the times of their steps, for each group and device."""
        return [answer(pipe) for pipe in self._pipes]

    def end(self) -> list[Told]:
        for pipe in self._pipes:
            pipe.send(None)
        return [told for pipe in self._pipes for told in answer(pipe)]


def answer(pipe: Connection) -> list:  # type: ignore[type-arg]
    found = pipe.recv()
    if isinstance(found, Exception):
        raise found
    return found  # type: ignore[no-any-return]


def rate_of(found: Ends) -> float:
    """Steps a second from the first end of a step to the last one."""
    ends = sorted(end for group in found for device in group for end in device)
    return (len(ends) - 1) / (ends[-1] - ends[0]) if len(ends) > 1 else 0.0


def paces_of(turned: list[Ends]) -> list[list[float]]:
    """Steps a second of each device, from the first end of its steps in a turn to the last one."""
    return [
        [pace_of([found[number][device] for found in turned]) for device in range(len(group))]
        for number, group in enumerate(turned[0])
    ]


def pace_of(turns: list[list[float]]) -> float:
    seconds = sum(ends[-1] - ends[0] for ends in turns if ends)
    return sum(len(ends) - 1 for ends in turns if ends) / seconds if seconds else 0.0


@contextmanager
def fleet(groups: list[Group]) -> Iterator[Fleet]:
    """The groups' processes, whose sessions are open."""
    import multiprocessing

    spawn = multiprocessing.get_context("spawn")
    pairs = [spawn.Pipe() for _ in groups]
    processes = [
        spawn.Process(target=replay, args=(group, theirs), daemon=True)
        for group, (_, theirs) in zip(groups, pairs, strict=True)
    ]
    for process, (_, theirs) in zip(processes, pairs, strict=True):
        process.start()
        theirs.close()
    pipes = [ours for ours, _ in pairs]
    try:
        for pipe in pipes:
            answer_of_start = pipe.recv()
            if isinstance(answer_of_start, Exception):
                raise answer_of_start
        yield Fleet(pipes)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(5)
            process.kill()
            process.join()
