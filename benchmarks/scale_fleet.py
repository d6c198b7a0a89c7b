"""A fleet as discrete events (SimPy): devices, their links, and the ranks of a trainer with one loop each.

What is real here: the order in which a rank takes messages (`FairQueue`), how long a rank without one waits before it
joins a round (`Expecting`, `Pauses`), the order of a device's work in a step (`DeviceLoop.step`), and that a rank
answers before it updates, logs and makes checkpoints. Times are arguments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import simpy
from scale_ranks import Draw as Draw
from scale_ranks import Events, Message, Rank, Rounds
from scale_ranks import RankWork as RankWork
from scale_ranks import RoundWork as RoundWork


class DeviceWork(NamedTuple):
    """Seconds of a device for a micro-batch; ``update`` for a step, after its last gradient."""

    forward: float
    recompute: float = 0.0
    backward: float = 0.0
    update: float = 0.0
    micro_batches: int = 1
    window: int = 0  # micro-batches in flight at most; 0: all


class Link(NamedTuple):
    """Seconds of a message on a device's own link: its bytes over the rate, and one way of the round trip."""

    up: float
    down: float
    way: Draw = lambda: 0.0


class Outcome(NamedTuple):
    """A run of the simulation."""

    ends: list[list[float]]  # of each device, times at which its steps ended
    spent: list[dict[str, float]]  # of each rank, seconds
    answered: Counter[tuple[int, int, int]]  # device, step, micro-batch
    seconds: float
    passes: int
    sent: float  # bytes that each rank sent to others

    def latencies(self, after_s: float = 0.0) -> list[float]:
        """Seconds from one end of a step to the device's next one, of steps that began after ``after_s``."""
        return [b - a for ends in self.ends for a, b in pairwise(ends) if a >= after_s]

    def rate(self, after_s: float = 0.0) -> float:
        """Steps a second from the first end of a step after ``after_s`` to the last one."""
        ends = sorted(end for device in self.ends for end in device if end >= after_s)
        return (len(ends) - 1) / (ends[-1] - ends[0]) if len(ends) > 1 else 0.0


class _Device:
    def __init__(self, env: simpy.Environment, number: int, work: DeviceWork, link: Link, rank: Rank) -> None:
        self._env, self.number, self._work, self._link, self._rank = env, number, work, link, rank
        self._up_free = self._down_free = self._reached = self._back = 0.0
        self._step, self.ends = 0, list[float]()

    def run(self, start_s: float, until_s: float) -> Events:
        yield self._env.timeout(start_s)
        self._rank.devices[self] = None
        while self._env.now < until_s:
            yield from self._do_step()
            self.ends.append(self._env.now)
            self._step += 1
        del self._rank.devices[self]

    def _do_step(self) -> Events:
        work, env = self._work, self._env
        window, recomputed, answers = min(work.window or work.micro_batches, work.micro_batches), 0, list[simpy.Event]()
        for number in range(work.micro_batches + window):
            if number >= window:
                if work.recompute and recomputed < len(answers):
                    yield env.timeout((len(answers) - recomputed) * work.recompute)
                recomputed = len(answers)
                yield answers[number - window]
                yield env.timeout(work.backward)
            if number < work.micro_batches:
                yield env.timeout(work.forward)
                answers.append(self._send(number))
        if work.update:
            yield env.timeout(work.update)

    def _send(self, micro_batch: int) -> simpy.Event:
        self._up_free = max(self._env.now, self._up_free) + self._link.up
        self._reached = max(self._reached, self._up_free + self._link.way())
        message = Message(self, self._step, micro_batch, self._env.event(), self._reached)
        _at(self._env, self._reached, lambda: self._rank.arrive(message))
        return message.came

    def answer(self, message: Message) -> None:
        """Let an answer travel that leaves the rank now."""
        self._down_free = max(self._env.now, self._down_free) + self._link.down
        self._back = max(self._back, self._down_free + self._link.way())
        _at(self._env, self._back, lambda: message.came.succeed())


def simulate(
    devices: Sequence[tuple[DeviceWork, Link]],
    ranks: Sequence[RankWork],
    until_s: float,
    *,
    rounds: RoundWork | None = None,
    starts: Sequence[float] = (),
) -> Outcome:
    """Let devices work until a time; steps that have begun before it come to their end.

    Args:
        devices: device i is at rank i modulo the number of ranks.
        ranks: the loops.
        until_s: no step begins at or after it.
        rounds: of all ranks together; None: ranks know nothing of one another.
        starts: seconds at which each device begins; empty: all at 0.
    """
    env = simpy.Environment()
    world = None if rounds is None else Rounds(env, len(ranks), rounds, ranks[0])
    loops = [Rank(env, number, work, world) for number, work in enumerate(ranks)]
    fleet = [_Device(env, n, *device, loops[n % len(loops)]) for n, device in enumerate(devices)]
    for loop in loops:
        env.process(loop.run())
    begins = starts or [0.0] * len(fleet)
    done = [env.process(device.run(begin, until_s)) for device, begin in zip(fleet, begins, strict=True)]
    env.run(until=env.all_of(done))
    answered = sum((loop.answered for loop in loops), Counter[tuple[int, int, int]]())
    passes, sent = sum(loop.passes for loop in loops), world.sent if world else 0.0
    spent = [loop.spent for loop in loops]
    return Outcome([device.ends for device in fleet], spent, answered, env.now, passes, sent)


def _at(env: simpy.Environment, time_s: float, call: Callable[[], object]) -> None:
    event = env.timeout(max(0.0, time_s - env.now))
    assert event.callbacks is not None

    def called(_: simpy.Event) -> None:
        call()

    event.callbacks.append(called)
