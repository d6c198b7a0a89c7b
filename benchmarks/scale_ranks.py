"""The ranks of a simulated trainer: one loop each, and the rounds that they do together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol, cast

import simpy
from scale_values import Parts, add

from adc_edge.cloud_trainer.ranks.expecting import Expecting
from adc_edge.cloud_trainer.ranks.pauses import Pauses
from adc_edge.cloud_trainer.scheduling.queue import FairQueue

ALONE_S, SLICE_S = 0.5, 0.02  # as in ranks/server.py
_SHORTEST_S = 1e-6  # a wait; the clock's rounding errors are none

Draw = Callable[[], float]  # seconds, drawn anew at each call
Events = Generator[simpy.Event, Any, None]


class RankWork(NamedTuple):
    """Seconds of a rank's loop, by what they are spent for.

    ``before`` is told how many messages are learned in a pass, and tells the seconds until their answers leave.
    ``after`` follows: optimizer and logs. Between the two a world of several ranks has its round.
    """

    before: Callable[[int], Parts]
    after: Callable[[int], Parts]
    most: int = 1  # messages in a pass
    checkpoint: Draw = lambda: 0.0
    checkpoint_every: int = 0  # steps of the head; 0: none
    first_step: int = 0  # of the head


class RoundWork(NamedTuple):
    """Seconds and bytes of a round of several ranks.

    ``told`` gets, by rank, the steps that the round before has learned, whose lines of metrics are told now: the table
    of rows, the exchange of bytes, the record. ``summed`` is the all_reduce of gradients (``sync`` 1), or of parameters
    and optimizer once a rank has done ``sync`` steps. ``sent`` tells the bytes of both that each rank sends.
    """

    told: Callable[[Sequence[int]], Parts]
    summed: Callable[[], Parts]
    sync: int = 1
    wait_s: float = 0.02  # that a rank waits for an expected message before it joins a round
    sent: Callable[[Sequence[int], bool], float] = lambda told, summed: 0.0


class Device(Protocol):
    """A device, for its rank."""

    @property
    def number(self) -> int: ...

    def answer(self, message: Message) -> None:
        """Let an answer travel that leaves the rank now."""
        ...


class Message(NamedTuple):
    """A message on its way to a rank."""

    device: Device
    step: int
    micro_batch: int
    came: simpy.Event  # the answer
    at_s: float  # when it arrives


class Rank:
    """A rank's loop."""

    def __init__(self, env: simpy.Environment, number: int, work: RankWork, rounds: Rounds | None) -> None:
        self._env, self._number, self._work, self._rounds = env, number, work, rounds
        self.devices: dict[Device, None] = {}  # those at work
        self._expecting, self._done = Expecting(lambda: env.now), 0  # steps since the last average
        self._pauses = Pauses(rounds.work.wait_s if rounds else 0.0)
        self._queue: FairQueue[Message] = FairQueue()
        self._wake: simpy.Event | None = None
        self._steps, self.passes = work.first_step, 0
        self.spent: dict[str, float] = {}
        self.answered: Counter[tuple[int, int, int]] = Counter()

    def arrive(self, message: Message) -> None:
        self._queue.push(message.device.number, message)
        if self._wake is not None and not self._wake.triggered:
            self._wake.succeed()

    def run(self) -> Events:
        while True:
            if self._rounds is None:
                yield from self._work_alone()
            elif self._rounds.work.sync == 1:
                yield from self._lockstep(self._rounds)
            else:
                yield from self._local_steps(self._rounds)

    def _work_alone(self) -> Events:
        while not (taken := self._take()):
            yield from self._wait()
        busy = yield from self._learn(taken)
        yield from self._follow(taken, busy)
        self._steps += len(taken)
        every = self._work.checkpoint_every
        if every and self._steps % every < len(taken):
            yield from self._spend({"checkpoint": self._work.checkpoint()})

    def _lockstep(self, rounds: Rounds) -> Events:
        """Do one pass at most, and a round, in which all ranks update if one had a step."""
        begun, busy = self._env.now, 0.0
        while not (taken := self._take()) and (rest_s := self._rest_s(begun, False)) > 0:
            yield from self._wait(rest_s)
        if taken:
            busy = yield from self._learn(taken)
        if (yield from self._round(rounds, len(taken), len(taken))):
            yield from self._follow(taken, busy)

    def _local_steps(self, rounds: Rounds) -> Events:
        """Learn alone until ``sync`` steps are done, nothing comes, or others may need a round; then do the round."""
        begun = since = self._env.now
        answered = 0
        while self._done < rounds.work.sync and not (answered and self._env.now - begun > ALONE_S):
            if taken := self._take():
                busy = yield from self._learn(taken)
                since = self._env.now
                yield from self._follow(taken, busy)
                answered, self._done = answered + len(taken), self._done + len(taken)
            elif (rest_s := self._rest_s(since, answered > 0)) > 0:
                yield from self._wait(rest_s)
            else:
                break
        if (yield from self._round(rounds, answered, self._done)):
            self._done = 0

    def _rest_s(self, since: float, answered: bool) -> float:
        """Seconds that this rank still waits for a message."""
        wait_s = self._pauses.round_wait_s
        expects = any(self._expecting.is_due(cast(Any, device), wait_s) for device in self.devices)
        rest_s = self._pauses.seconds(expects, SLICE_S if answered else None) - (self._env.now - since)
        return rest_s if rest_s > _SHORTEST_S else 0.0

    def _take(self) -> list[Message]:
        return self._queue.pop_with(lambda first, other: True, lambda first: self._work.most)

    def _wait(self, longest_s: float | None = None) -> Events:
        """Wait for a message."""
        self._wake = self._env.event()
        yield self._wake if longest_s is None else self._wake | self._env.timeout(longest_s)

    def _learn(self, taken: Sequence[Message]) -> Generator[simpy.Event, Any, float]:
        """Answer messages, and return the seconds that this took."""
        for message in taken:
            self._expecting.arrived(cast(Any, message.device), message.at_s)
        begun = self._env.now
        yield from self._spend(self._work.before(len(taken)))
        self._answer(taken)
        return self._env.now - begun

    def _follow(self, taken: Sequence[Message], busy: float) -> Events:
        """Do what follows the answers, and charge the devices for all."""
        begun = self._env.now
        yield from self._spend(self._work.after(len(taken)))
        self._charge(taken, busy + self._env.now - begun)

    def _spend(self, parts: Parts) -> Events:
        add(self.spent, parts)
        yield self._env.timeout(sum(parts.values()))

    def _answer(self, taken: Sequence[Message]) -> None:
        self.passes += 1
        for message in taken:
            self.answered[message.device.number, message.step, message.micro_batch] += 1
            message.device.answer(message)
            self._expecting.answered(cast(Any, message.device))

    def _charge(self, taken: Sequence[Message], seconds: float) -> None:
        for message in taken:
            self._queue.charge(message.device.number, seconds / len(taken))

    def _round(self, rounds: Rounds, answered: int, done: int) -> Generator[simpy.Event, Any, bool]:
        """Do a round, and return whether the head has learned in it."""
        begun = self._env.now
        ended: _Round = yield rounds.join(self._number, answered, done)
        waited = self._env.now - begun - sum(ended.parts.values())
        add(self.spent, {**ended.parts, "other ranks": waited})
        self._pauses.after(ended.busy)
        return ended.learned


class _Round(NamedTuple):
    """The times and the counts of one round."""

    parts: Parts
    busy: bool  # some rank has answered a message
    learned: bool  # gradients or parameters were summed


class Rounds:
    """The rounds of a world: one ends when all ranks have joined it and its exchanges are done."""

    def __init__(self, env: simpy.Environment, size: int, work: RoundWork, rank: RankWork) -> None:
        self._env, self._size, self.work, self._rank = env, size, work, rank
        self._joined: dict[int, tuple[simpy.Event, int, int]] = {}
        self._untold = [0] * size  # by rank, steps whose lines of metrics are told in the next round
        self._steps, self.sent = rank.first_step, 0.0

    def join(self, rank: int, answered: int, done: int) -> simpy.Event:
        """Return the event of the round's end, whose value is what it was.

        Args:
            rank: its number.
            answered: messages since the last round.
            done: steps since the last one that learned.
        """
        ended = self._env.event()
        self._joined[rank] = ended, answered, done
        if len(self._joined) == self._size:
            self._env.process(self._close())
        return ended

    def _close(self) -> Events:
        joined, self._joined = self._joined, {}
        done = [joined[rank][2] for rank in range(self._size)]
        parts, learned = dict(self.work.told(self._untold)), max(done) >= self.work.sync
        self.sent += self.work.sent(self._untold, learned)
        self._untold = done if learned else [0] * self._size
        if learned:
            add(parts, self.work.summed())
            steps, every = sum(done), self._rank.checkpoint_every
            self._steps += steps
            if every and self._steps % every < steps:
                add(parts, {"checkpoint": self._rank.checkpoint()})
        yield self._env.timeout(sum(parts.values()))
        busy = any(answered for _, answered, _ in joined.values())
        for ended, _, _ in joined.values():
            ended.succeed(_Round(parts, busy, learned))
