"""Two trainer ranks v one trainer where the head is the bottleneck; the cost of a round without work.

    python benchmarks/ranks.py --json docs/results/ranks.json
    python benchmarks/ranks.py --sync every 8 --turns 4 --profile   # and what the ranks' time goes to

The ranks run under a real torchrun, with gloo on loopback, a thread each, and each is pinned to a core. The trainer
beside them is a plain `adc-edge trainer` of one thread, pinned to one core. Both serve as many light devices, which
replay what a real engine has computed (fleet_devices.py) and share the cores. They take turns; a ratio is the median
over pairs of neighbouring turns. The bound of the machine is what two processes that do the head's work and exchange
nothing are, both at once, v one of them alone. A run fails if a step is lost or counted twice.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fleet_devices import Ends, Fleet, Group, fleet
from fleet_recording import Model, record
from fleet_reference import Alone, reference
from fleet_trainer import TrainerProcess, counting
from harness import Result, arguments, compare, show, table
from ranks_trainer import RanksProcess, TimedRank, cpu_seconds, losses, machine_cpu_seconds

RANKS = 2
MOST_ROUND_MS = 2.0
_EDGE_S = 0.7  # begin of a turn that is not counted: the first messages are on their way
_FIRST_S = 1.0  # of the ranks' life
_MOST_OTHERS = 0.15  # of a core; pairs of turns with more of it are left out, unless all are such
_STEPS_SHOWN = 10  # of each device, in the mean loss


class Turn(NamedTuple):
    """The work of a fleet in some seconds."""

    rate: float  # steps a second
    devices_cpu: float  # share of one core
    cpu_ms: float  # of the trainer or of all ranks, a step
    others_cpu: float  # processor time of everything else on the machine, share of one core


class Served(NamedTuple):
    """A trainer, or ranks, with its devices."""

    name: str
    run: Path
    troubles: Callable[[], dict[str, int]]
    devices: Fleet
    processes: list[int]  # of the devices
    ranks: list[int]  # processes of the trainer or the ranks

    def turn(self, seconds: float) -> Turn:
        """Let the devices work."""
        begun, before = time.monotonic(), self._cpu_seconds()
        self.devices.begin(seconds)
        found = self.devices.turn()
        devices_s, ranks_s, all_s = (after - start for after, start in zip(self._cpu_seconds(), before, strict=True))
        steps = sum(len(device) for group in found for device in group)
        rate = rate_within(found, begun + _EDGE_S, begun + seconds)
        passed_s = time.monotonic() - begun
        others = (all_s - devices_s - ranks_s) / passed_s
        return Turn(rate, devices_s / passed_s, 1e3 * ranks_s / max(1, steps), others)

    def _cpu_seconds(self) -> tuple[float, float, float]:
        return sum(map(cpu_seconds, self.processes)), sum(map(cpu_seconds, self.ranks)), machine_cpu_seconds()

    def end(self) -> None:
        """End the devices; raises unless each of their steps is counted once."""
        told = self.devices.end()
        lost, twice = counting(self.run, {one.session: one.steps for one in told})
        outages = sum(one.outages for one in told)
        troubles = {"lost": lost, "twice": twice, "outages": outages} | self.troubles()
        assert not any(troubles.values()), f"{self.name}: {troubles}"
        print(f"{self.name}: {sum(one.steps for one in told)} steps of {len(told)} devices, each counted once")


def rate_within(found: Ends, begin_s: float, end_s: float) -> float:
    """Steps a second that ended between two times. Ranks end theirs together, so that ends are no fair bounds."""
    ends = [end for group in found for device in group for end in device]
    return sum(begin_s < end <= end_s for end in ends) / (end_s - begin_s)


class Bench:
    """The recording, the cores, and a directory for each trainer."""

    def __init__(self, directory: Path, recording: Path, args: argparse.Namespace) -> None:
        self.directory, self.recording, self.args = directory, recording, args
        self.cores = sorted(os.sched_getaffinity(0))[-RANKS:]

    @contextmanager
    def served(self, name: str, trainer: TrainerProcess | RanksProcess, devices: int) -> Iterator[Served]:
        """A trainer that was started, with so many devices; they may use all cores."""
        before = {child.pid for child in multiprocessing.active_children()}
        precision, cores = self.args.precision, frozenset(self.cores)
        directory = trainer.run.with_suffix(".devices")
        directory.mkdir()
        sent = (precision, precision, 1, 1, None)
        group = Group(self.recording, directory, trainer.endpoint, 0, devices, *sent, cores)
        with fleet([group]) as found:
            own = {child.pid for child in multiprocessing.active_children()} - before
            pids = [pid for pid in own if pid is not None]
            served = Served(name, trainer.run, trainer.troubles, found, pids, trainer.ranks)
            served.turn(2.0)  # warms up
            yield served

    def one(self, name: str) -> TrainerProcess:
        return TrainerProcess(self.directory / name, self.recording, "127.0.0.1", None, self.cores[-1])

    def ranks(self, name: str, *more: str, timed: bool = False) -> RanksProcess:
        return RanksProcess(self.directory / name, self.recording, self.cores, more, timed)


def bound_of_machine(bench: Bench, turns: int, seconds: float) -> Result:
    """Two processes that do the head's work alone, both at once, v one of them."""
    precision = bench.args.precision
    with ExitStack() as stack, ThreadPoolExecutor(RANKS) as pool:
        works = [stack.enter_context(reference(bench.recording, precision, precision, 1, core)) for core in bench.cores]
        pairs: list[tuple[float, float]] = []
        for _ in range(turns):
            alone: Alone = works[-1](seconds)
            together = pool.map(lambda work: work(seconds), works)
            pairs.append((sum(one.rate for one in together), alone.rate))
    ratio = statistics.median(both / alone for both, alone in pairs)
    both, alone_rate = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    name = "two processes that exchange nothing, at once, v one: decode + head + encode"
    return Result(name, both, alone_rate, ratio, "steps/s")


def throughput(bench: Bench, sync: str) -> list[Result]:
    """Ranks and a trainer take turns."""
    args, label = bench.args, f"{RANKS} ranks, --sync {sync}"
    with ExitStack() as stack:
        one = stack.enter_context(bench.one(f"one-{sync}"))
        ranks = stack.enter_context(bench.ranks(f"ranks-{sync}", "--sync", sync))
        served = [
            stack.enter_context(bench.served("one trainer", one, args.devices)),
            stack.enter_context(bench.served(label, ranks, args.devices)),
        ]
        pairs: list[tuple[Turn, Turn]] = []
        for turn in range(args.turns):
            first, second = served[turn % 2].turn(args.seconds), served[1 - turn % 2].turn(args.seconds)
            pairs.append((first, second) if turn % 2 else (second, first))
            others = max(turn.others_cpu for turn in pairs[-1])
            rates = " v ".join(f"{turn.rate:.2f}" for turn in pairs[-1])
            print(f"{label}: {rates} steps/s, other processes at {others:.2f} of a core", flush=True)
        for one_served in served:
            one_served.end()
        found = losses([one_served.run for one_served in served], _STEPS_SHOWN)
    pairs = [pair for pair in pairs if max(turn.others_cpu for turn in pair) < _MOST_OTHERS] or pairs
    mine, other = (
        Turn(*(statistics.median(values) for values in zip(*turns, strict=True))) for turns in zip(*pairs, strict=True)
    )
    ratio = statistics.median(ours.rate / theirs.rate for ours, theirs in pairs)
    (other_first, other_last), (first_loss, last_loss) = found
    return [
        Result(f"{label}, {args.devices} devices: v one trainer", mine.rate, other.rate, ratio, "steps/s"),
        compare(f"{label}: the ranks' processor time of a step v one trainer's", mine.cpu_ms, other.cpu_ms, "ms"),
        compare(f"{label}: the devices' processor time v beside one", mine.devices_cpu, other.devices_cpu, "of a core"),
        compare(f"{label}: mean loss of the first {_STEPS_SHOWN} steps, v one trainer", first_loss, other_first, ""),
        compare(
            f"{label}: mean loss {_STEPS_SHOWN} steps before the shorter end, v one trainer", last_loss, other_last, ""
        ),
    ]


def costs_ms(clocks: Sequence[TimedRank]) -> list[float]:
    """The cost of each round without work: from when its last rank has joined until all have left it.

    Rounds of the first second are left out: the ranks tell each other their addresses, and everything runs first.
    """
    rounds = list(zip(*(rank.rounds for rank in clocks), strict=True))  # all ranks do the same rounds
    first_s = rounds[0][0][0] + _FIRST_S
    idle = [each for each in rounds if each[0][0] > first_s and not any(work for _, _, work in each)]
    return [1e3 * (max(end for _, end, _ in each) - max(begin for begin, _, _ in each)) for each in idle]


def idle_rounds(bench: Bench, sync: str) -> list[Result]:
    """Ranks that nobody asks for anything: what a round costs, and the processor time of a rank."""
    seconds = bench.args.idle_seconds
    with bench.ranks(f"idle-{sync}", "--sync", sync, timed=True) as ranks:
        time.sleep(_FIRST_S)
        before = ranks.cpu_seconds()
        time.sleep(seconds)
        spent = [after - start for after, start in zip(ranks.cpu_seconds(), before, strict=True)]
    costs = costs_ms(ranks.clocks())
    name = f"{len(costs)} rounds without work, --sync {sync}"
    return [
        compare(f"{name}: median v bound", statistics.median(costs), MOST_ROUND_MS, "ms"),
        compare(f"{name}: 99 % v bound", float(np.quantile(costs, 0.99)), MOST_ROUND_MS, "ms"),
        compare(f"processor time of an idle rank, --sync {sync}, of a core", max(spent) / seconds, 1.0, ""),
    ]


def idle_beside_work(bench: Bench, sync: str) -> list[Result]:
    """One device, thus one rank without work, v the same at one trainer."""
    args, label = bench.args, f"one device at {RANKS} ranks, --sync {sync}"
    rates: list[tuple[float, float]] = []
    shares: list[float] = []
    with ExitStack() as stack:
        one = stack.enter_context(bench.one(f"one-beside-{sync}"))
        ranks = stack.enter_context(bench.ranks(f"beside-{sync}", "--sync", sync))
        alone = stack.enter_context(bench.served("one trainer", one, 1))
        served = stack.enter_context(bench.served(label, ranks, 1))
        for _ in range(args.turns):
            before, begun = ranks.cpu_seconds(), time.monotonic()
            mine = served.turn(args.seconds).rate
            passed = time.monotonic() - begun
            shares.append(min(b - a for a, b in zip(before, ranks.cpu_seconds(), strict=True)) / passed)
            rates.append((mine, alone.turn(args.seconds).rate))
        served.end()
        alone.end()
    ratio = statistics.median(mine / other for mine, other in rates)
    mine, other = (statistics.median(values) for values in zip(*rates, strict=True))
    return [
        Result(f"{label}: v one trainer", mine, other, ratio, "steps/s"),
        compare(f"{label}: processor time of the rank without a device", statistics.median(shares), 1.0, "of a core"),
    ]


def profile(bench: Bench, sync: str) -> None:
    """Print what the time of each rank goes to while all have work."""
    args = bench.args
    timed = bench.ranks(f"profile-{sync}", "--sync", sync, timed=True)
    with timed as ranks, bench.served("ranks", ranks, args.devices) as served:
        served.turn(args.seconds)
        steps = sum(one.steps for one in served.devices.end())
    rows = [
        (f"rank {number}: {name}", str(len(spent)), *(f"{1e3 * part:.2f}" for part in quantiles(spent)))
        for number, rank in enumerate(ranks.clocks())
        for name, spent in rank.calls.items()
        if spent
    ]
    table(f"--sync {sync}, {steps} steps: calls and their ms", ("call", "calls", "10 %", "median", "90 %"), rows)


def quantiles(values: Sequence[float]) -> list[float]:
    return [float(np.quantile(values, share)) for share in (0.1, 0.5, 0.9)]


def measure(model: Model, args: argparse.Namespace) -> list[Result]:
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as name:
        recording = Path(name) / "recording"
        record(recording, model)
        bench = Bench(Path(name), recording, args)
        if "bound" in args.parts:
            results.append(bound_of_machine(bench, args.turns, args.seconds))
        for sync in args.sync:
            for part, measuring in (("speed", throughput), ("idle", idle_rounds), ("beside", idle_beside_work)):
                if part in args.parts:
                    results += measuring(bench, sync)
            if args.profile:
                profile(bench, sync)
    return results


def options() -> argparse.ArgumentParser:
    parser = arguments("Two trainer ranks v one trainer; the cost of a round without work.")
    parser.add_argument("--sync", nargs="+", default=["every", "8"], help="every, or local steps between averages")
    parser.add_argument("--parts", nargs="+", default=["bound", "speed", "idle", "beside"])
    parser.add_argument("--devices", type=int, default=4, help="at the ranks, and as many at the trainer")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--batch", type=int, default=8, help="images of a message")
    parser.add_argument("--depth", type=int, default=12, help="blocks of the model")
    parser.add_argument("--split", type=int, default=6)
    parser.add_argument("--turns", type=int, default=4, help="pairs of turns")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a turn")
    parser.add_argument("--idle-seconds", type=float, default=60.0, help="without devices")
    parser.add_argument("--profile", action="store_true", help="print what the ranks' time goes to")
    return parser


def main() -> None:
    args = options().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that processes end
    if len(os.sched_getaffinity(0)) < RANKS:
        sys.exit(f"{RANKS} ranks need {RANKS} cores")
    model = Model(args={**Model().args, "depth": args.depth}, split=args.split, batch=args.batch)
    show(f"{model}, {args.precision}", measure(model, args), args.json)


if __name__ == "__main__":
    main()
