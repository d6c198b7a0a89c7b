"""The needs of a fleet of 100 to 10,000 devices: ranks, step time, bandwidth, cost, and the next bottleneck.

Everything that was not measured on this machine is a constant of scale_stated.py, or an argument here.
"""

from __future__ import annotations

import gc
import hashlib
import math
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from random import Random
from typing import NamedTuple

import msgspec
from scale_fleet import DeviceWork, Link, Outcome, RankWork, RoundWork, simulate
from scale_gloo import Gloo
from scale_profile import DOWN, SPLIT, UP, Speeds
from scale_stated import STATED, Board, Head, LinkClass, Stated
from scale_values import add, quantile
from scale_work import BODY_BYTES, COPIES, Work

from adc_edge.cloud_trainer.ranks.learning.rows import RankRow
from adc_edge.planning.step_model import LinkRates, Prediction, StepPlan, predict

DEVICES = (100, 1_000, 10_000)
SLOWER = 1.2  # median step time v that of a device that has a rank to itself
MOST_RANKS = 2048
CHECKPOINT_S = 5.0  # about, between two checkpoints: --checkpoint-every is set to the steps of so long, 100 at least
_HORIZON_S, _STEPS, _WARM_STEPS, _LONE = 6.0, 5, 2, 200
_SETTLED_STEPS = 20  # with a rank for each device: it takes several steps until all do theirs at the same time
_MORE = 1.2  # times as many ranks in the next number of the grid
_BELOW = 0.6  # of the ranks that a smaller fleet needs for as many devices
_FAR = 1.1  # times the best median step time: beyond, the search ends
_NEAR = 1.03  # times the best one: as good as it
_GARBAGE = 200_000  # new objects between two collections: events are many, and few of them are garbage
_INT_BYTES, _LINE_BYTES = 8, 500  # of a number, and of a metrics line


class Answer(msgspec.Struct, frozen=True):
    """The needs of so many devices; seconds, Mbit/s at all trainers together, $ a day."""

    head: str
    board: str
    link: str
    devices: int
    ranks: int
    met: bool  # the median step time is within SLOWER of a lone device's
    rate: float
    lone_p50: float
    p50: float
    p99: float
    up_mbit_s: float
    down_mbit_s: float
    cost_day: float
    egress_day: float
    use: dict[str, float]  # share of a rank's time by what it is spent for, and of its network interface
    tried: list[int]  # numbers of ranks


class Case(NamedTuple):
    """A question."""

    head: Head
    board: Board
    link: LinkClass
    devices: int


class World:
    """Measured and stated numbers, as the simulation takes them."""

    def __init__(self, work: Work, gloo: Gloo, speeds: Speeds, stated: Stated) -> None:
        self.work, self.speeds, self.stated = work, speeds, stated
        self.ring = gloo.ring.over(stated.network)
        trainer = speeds.profile.trainer
        assert trainer is not None
        self._trainer, self._rows = trainer, speeds.shape.clusters * speeds.shape.kept
        plain = StepPlan(SPLIT, speeds.shape, UP, DOWN)
        self.predicted: Prediction = predict(plan=plain, link=LinkRates(30.0, 20.0, 100.0), profile=speeds.profile)

    def device(self, board: Board) -> DeviceWork:
        """A device's work; it sends a step as one message."""
        costs, profile = self.predicted.costs, self.speeds.profile.device
        times = (costs.forward, costs.recompute, costs.backward, profile.update_seconds)
        forward, recompute, backward, update = (board.factor * seconds for seconds in times)
        return DeviceWork(forward, recompute, backward, update)

    def links(self, link: LinkClass, count: int, random: Random) -> list[Link]:
        """A link for each device."""
        return [self._link(link, random) for _ in range(count)]

    def _link(self, link: LinkClass, random: Random) -> Link:
        spread = random.lognormvariate(0, link.rate_spread)
        up, down = (8e-6 * size / (rate * spread) for size, rate in self._ways(link))
        return Link(up, down, lambda: link.rtt_ms / 2e3 * random.lognormvariate(0, link.rtt_spread))

    def _ways(self, link: LinkClass) -> tuple[tuple[int, float], tuple[int, float]]:
        return (self.predicted.bytes_up, link.up_mbit_s), (self.predicted.bytes_down, link.down_mbit_s)

    def rank(self, head: Head, devices: int, ranks: int, every: int) -> RankWork:
        """The loop of one of so many ranks with so many devices; a checkpoint each ``every`` steps of all ranks."""
        files, sizes = self.work.files, (self.predicted.bytes_up, self.predicted.bytes_down)
        codec = self._codec() if head.codec_s is None else head.codec_s
        wire = self.work.wire
        loop = self.work.loop - 2 * wire.plain.seconds(BODY_BYTES) + sum(map(wire.plain.seconds, sizes))
        curve = sum(wire.curve.seconds(size) - wire.plain.seconds(size) for size in sizes)
        log = self.work.after - files.append.seconds(BODY_BYTES) + files.append.seconds(sizes[1])
        update = self._trainer.update_seconds if head.update_s is None else head.update_s

        def before(messages: int) -> dict[str, float]:
            each = {"loop": loop, "CURVE": curve, "codec": codec}
            return {"head": self._learn(head, messages)} | {
                part: messages * max(0.0, seconds) for part, seconds in each.items()
            }

        def after(messages: int) -> dict[str, float]:
            return {"update": update, "log": messages * max(0.0, log)}

        checkpoint = files.checkpoint(self.speeds.head_bytes, every // ranks, -(-devices // ranks))
        checkpoint *= statistics.median(self.work.checkpoint_ratios or [1.0])
        return RankWork(before, after, head.merged, lambda: checkpoint, every, every // 2)

    def _codec(self) -> float:
        codec = self._trainer.codec
        return codec[UP].decode.seconds(self._rows) + codec[DOWN].encode.seconds(self._rows)

    def _learn(self, head: Head, messages: int) -> float:
        if head.pass_s is None or head.row_s is None:
            return messages * self._trainer.step.seconds(self._rows)
        return head.pass_s + head.row_s * messages * self._rows

    def rounds(self, ranks: int) -> RoundWork:
        """Rounds of so many ranks; all wait for the first one's metrics file.

        The table of rows is in each round. Where ranks other than the first one have lines to tell, an all_gather
        follows, in which all are as long as the longest.
        """
        ring, sync = self.ring, self.stated.sync
        size = self.speeds.parameter_bytes * (1 if sync == 1 else COPIES)
        table = _INT_BYTES * len(RankRow._fields) * ranks

        def told(lines: Sequence[int]) -> dict[str, float]:
            others, seconds = lines[1:], ring.all_reduce(ranks, table)
            if longest := _LINE_BYTES * max(others):
                seconds += ring.all_gather(ranks, longest * ranks)
            return {"small collectives": seconds, "record": sum(others) * self.work.files.metric}

        def sent(lines: Sequence[int], summed: bool) -> float:
            gathered = (ranks - 1) * _LINE_BYTES * max(lines[1:])
            return 2 * (ranks - 1) / ranks * (table + size * summed) + gathered

        whole = ring.all_reduce(ranks, size)
        return RoundWork(told, lambda: {"all_reduce": whole}, sync, self.stated.round_wait_s, sent)


class _Run(NamedTuple):
    """A simulated number of ranks."""

    outcome: Outcome
    after_s: float
    ranks: int

    def p(self, share: float) -> float:
        return quantile(self.outcome.latencies(self.after_s), share)


def cases(stated: Stated) -> Iterator[Case]:
    """The questions of the smallest fleet."""
    for head, board, link in product(stated.heads, stated.boards, stated.links):
        yield Case(head, board, link, DEVICES[0])


def lone_seconds(world: World, case: Case) -> float:
    """Median step time of devices of this class that have a rank each."""
    random, device = Random(0), world.device(case.board)
    fleet = [(device, link) for link in world.links(case.link, _LONE, random)]
    rank = world.rank(case.head, 1, 1, 0)
    least = device.forward + device.recompute + device.backward
    return quantile(simulate(fleet, [rank] * _LONE, 4 * least).latencies(), 0.5)


def run(world: World, case: Case, ranks: int, lone: float) -> _Run:
    """Simulate so many ranks; devices begin at random within a step."""
    random, device = Random(1), world.device(case.board)
    fleet = [(device, link) for link in world.links(case.link, case.devices, random)]
    every = max(100, round(CHECKPOINT_S * case.devices / lone))
    rank = world.rank(case.head, case.devices, ranks, every)
    rounds = world.rounds(ranks) if ranks > 1 else None
    steps, warm = (_SETTLED_STEPS, _SETTLED_STEPS // 2) if ranks == case.devices else (_STEPS, _WARM_STEPS)
    until = max(_HORIZON_S, steps * lone)
    starts = [random.uniform(0, lone) for _ in fleet]
    outcome = simulate(fleet, [rank] * ranks, until, rounds=rounds, starts=starts)
    return _Run(outcome, warm * lone, ranks)


def first_try(world: World, case: Case, lone: float) -> int:
    """Ranks that are busy all the time if nothing is lost."""
    rank = world.rank(case.head, case.devices, 1, 0)
    each = sum(map(sum, (rank.before(rank.most).values(), rank.after(rank.most).values()))) / rank.most
    return min(max(1, math.ceil(case.devices * each / (SLOWER * lone))), case.devices)


def grid(least: int, most: int) -> list[int]:
    """Numbers of ranks from ``least`` to ``most``, a fifth apart: the same ones for all questions."""
    ranks, found = 1, list[int]()
    while ranks < most:
        if ranks >= least:
            found.append(ranks)
        ranks = math.ceil(_MORE * ranks)
    return [*found, most]


def answer(world: World, case: Case, least: int = 1) -> Answer:
    """The smallest number of ranks, from ``least`` on, with which the median step is quick enough.

    Every second number of the grid is tried, and the one before the first that is enough. Where none is, the answer is
    the smallest one whose median step time is about the best. More ranks make rounds longer, so that the search ends
    where the time is far above the best one; but a rank for each device is tried too.
    """
    lone, most = lone_seconds(world, case), min(MOST_RANKS, case.devices)
    numbers = grid(min(most, max(least, first_try(world, case, lone))), most)
    runs, best, met = list[_Run](), math.inf, False
    for place in (*range(0, len(numbers) - 1, 2), len(numbers) - 1):
        runs.append(run(world, case, numbers[place], lone))
        best, met = min(best, runs[-1].p(0.5)), runs[-1].p(0.5) <= SLOWER * lone
        if met and len(runs) > 1 and numbers[place - 1] != runs[-2].ranks:
            runs.append(run(world, case, numbers[place - 1], lone))
        if met or runs[-1].p(0.5) > _FAR * best:
            break
    if not met and runs[-1].ranks < most == case.devices:  # a rank for each device
        runs.append(run(world, case, most, lone))
        best, met = min(best, runs[-1].p(0.5)), runs[-1].p(0.5) <= SLOWER * lone
    enough = SLOWER * lone if met else _NEAR * best
    found = min((one for one in runs if one.p(0.5) <= enough), key=lambda one: one.ranks)
    return _answer(world, case, found, lone, met, [one.ranks for one in runs])


def _answer(world: World, case: Case, found: _Run, lone: float, met: bool, tried: list[int]) -> Answer:
    outcome, ranks, stated = found.outcome, found.ranks, world.stated
    rate = outcome.rate(found.after_s)
    up, down = (8e-6 * size * rate for size in (world.predicted.bytes_up, world.predicted.bytes_down))
    spent = dict[str, float]()
    for one in outcome.spent:
        add(spent, one)
    use = {part: round(seconds / ranks / outcome.seconds, 4) for part, seconds in spent.items()}
    between = 8 * outcome.sent / outcome.seconds  # bit/s that a rank sends to others, and as many come
    use["network"] = round((1e6 * max(up, down) / ranks + between) / stated.host_bit_s, 5)
    egress = down / 8e3 * 86_400 * stated.egress_gb
    cost = ranks * 24 * case.head.price_hour + egress
    return Answer(
        head=case.head.name,
        board=case.board.name,
        link=case.link.name,
        devices=case.devices,
        ranks=ranks,
        met=met,
        rate=round(rate, 3),
        lone_p50=round(lone, 4),
        p50=round(found.p(0.5), 4),
        p99=round(found.p(0.99), 4),
        up_mbit_s=round(up, 3),
        down_mbit_s=round(down, 3),
        cost_day=round(cost, 2),
        egress_day=round(egress, 2),
        use=use,
        tried=tried,
    )


def digest(work: Work | None, gloo: Gloo | None, speeds: Speeds | None, stated: Stated | None) -> str:
    """A digest of what the answers are computed from, the same before it was written to a file and after."""
    parts = ((work, Work), (gloo, Gloo), (speeds, Speeds), (stated, Stated))
    values = [part and msgspec.convert(msgspec.to_builtins(part), kind) for part, kind in parts]  # 10 becomes 10.0
    return hashlib.sha256(msgspec.json.encode(values)).hexdigest()[:16]


def answers(work: Work, gloo: Gloo, speeds: Speeds, stated: Stated = STATED) -> list[Answer]:
    """All answers, on all cores. A fleet is left out if a smaller one has no number of ranks that is enough."""
    with ProcessPoolExecutor() as pool:
        several = [pool.submit(growing, work, gloo, speeds, stated, case) for case in cases(stated)]
        return [found for future in several for found in future.result()]


def growing(work: Work, gloo: Gloo, speeds: Speeds, stated: Stated, case: Case) -> list[Answer]:
    """The answers for larger and larger fleets; the search begins a little below what the smaller one needs."""
    gc.set_threshold(_GARBAGE)
    world, found = World(work, gloo, speeds, stated), list[Answer]()
    for before, devices in zip((0, *DEVICES), DEVICES, strict=False):
        if found and not found[-1].met:
            break
        least = int(_BELOW * found[-1].ranks * devices / before) if found else 1
        found.append(answer(world, case._replace(devices=devices), least))
        print(found[-1], flush=True)
    return found
