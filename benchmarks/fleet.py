"""Many light devices at one trainer: steps a second v the head's work alone, fairness, memory, exactly-once.

    python benchmarks/fleet.py --json out/fleet.json
    python benchmarks/fleet.py --devices 32 --precisions fp32 --keys --kills 1
    python benchmarks/fleet.py --devices 8 --merge-passes off sum each --batch 4   # waiting steps in one pass
    python benchmarks/fleet.py --devices 16 --slow 4 --rate 4   # 4 of them behind a slow link; needs root

The trainer is a real `adc-edge trainer` with a run directory, pinned to one core. The devices are on the other cores:
one process with a thread for each, which replays what a real engine has computed, with real sessions, journals and
windows. The reference decodes, learns (forward, backward, update) and encodes the same messages alone, on the trainer's
core with one thread. Both take turns, and the ratio is the median over pairs of neighbouring turns.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import NamedTuple

from fleet_devices import Ends, Fleet, Group, fleet, paces_of, rate_of
from fleet_recording import Model, record, recorded
from fleet_reference import Alone, reference
from fleet_trainer import TrainerProcess, counting, make_all_keys
from harness import Result, arguments, compare, show, table
from link_emulator import LinkEmulator, available
from main_job import busy
from step_time import link_way

from adc_edge.codec.precision import Precision
from adc_edge.defaults import MergePasses

COUNTS = [1, 4, 8, 16, 32, 64]
GRADIENTS: dict[Precision, Precision] = {"pca1": "pca0.25"}  # other precisions hold both ways
KILLED_STEPS = 12  # of each device while the trainer is killed
_KILLS_S = 180.0


class Case(NamedTuple):
    """The messages that the devices of a trainer send."""

    precision: Precision
    keys: Path | None
    micro_batches: int
    window: int
    merge_passes: MergePasses = "off"

    @property
    def gradient(self) -> Precision:
        return GRADIENTS.get(self.precision, self.precision)

    def __str__(self) -> str:
        cut = f", M={self.micro_batches}, window {self.window}" if self.micro_batches > 1 else ""
        merged = "" if self.merge_passes == "off" else f", --merge-passes {self.merge_passes}"
        return f"{self.precision}{', keys' if self.keys else ''}{cut}{merged}"


class Row(NamedTuple):
    """Measured of so many devices: medians over pairs of turns."""

    case: Case
    devices: int
    rate: float  # steps a second, all together
    alone: Alone
    ratio: float
    paces: list[list[float]]  # of each device, steps a second, by link
    memory: list[float]  # of the trainer after each turn, MB
    cpu_ms: dict[str, float]  # of the trainer's threads, a step

    @property
    def unfair(self) -> float:
        """The fastest device v the slowest one, in the worst of the groups with equal links."""
        return max(max(group) / min(group) for group in self.paces)


class Bench:
    """A trainer, its reference, and the machine's cores.

    Args:
        directory: of the run and the journals; it is made.
        recording: what the devices replay.
        case: what they send.
        cores: of the trainer, and of the devices.
    """

    def __init__(self, directory: Path, recording: Path, case: Case, cores: tuple[int, frozenset[int]]) -> None:
        directory.mkdir()
        self.directory, self.recording, self.case, self.cores = directory, recording, case, cores
        self._joined = 0

    def group(self, endpoint: str, count: int, namespace: str | None = None) -> Group:
        """So many new devices."""
        first, self._joined = self._joined, self._joined + count
        return Group(
            self.recording, self.directory, endpoint, first, count, self.case.precision, self.case.gradient,
            self.case.micro_batches, self.case.window, self.case.keys, self.cores[1], namespace,
        )  # fmt: skip

    @contextmanager
    def trainer(self, namespace: str | None = None) -> Iterator[TrainerProcess]:
        address = "127.0.0.1" if namespace is None else LinkEmulator.trainer_address
        run = self.directory / "trainer"
        more = ["--merge-passes", self.case.merge_passes]
        with TrainerProcess(run, self.recording, address, self.case.keys, self.cores[0], namespace, more) as found:
            yield found

    def message_bytes(self) -> int:
        """Size of the body of a message."""
        return memoryview(recorded(self.recording, self.case.precision, self.case.gradient)[0].body).nbytes

    def measured(
        self, devices: Fleet, trainer: TrainerProcess, alone: Callable[[float], Alone], turns: int, seconds: float
    ) -> Row:
        """Let trainer and reference take turns."""
        devices.begin(min(1.0, seconds))  # warms up
        devices.turn()
        pairs: list[tuple[float, Alone]] = []
        memory: list[float] = []
        turned: list[Ends] = []
        before = trainer.cpu_seconds()
        for turn in range(turns):
            first = alone(seconds) if turn % 2 else None
            devices.begin(seconds)
            found = devices.turn()
            memory.append(trainer.memory_mb())
            pairs.append((rate_of(found), first or alone(seconds)))
            turned.append(found)
        total = sum(len(device) for found in turned for group in found for device in group)
        cpu = {name: 1e3 * spent / total for name, spent in trainer.cpu_since(before).items()}
        rate = statistics.median(mine for mine, _ in pairs)
        other = Alone(*(statistics.median(values) for values in zip(*(other for _, other in pairs), strict=True)))
        ratio = statistics.median(mine / other.rate for mine, other in pairs)
        paces = paces_of(turned)
        return Row(self.case, sum(map(len, paces)), rate, other, ratio, paces, memory, cpu)


def checked(row: Row, trainer: TrainerProcess, devices: Fleet) -> Iterator[Result]:
    """The results of a row; ends the devices, and raises unless the trainer counted each of their steps once."""
    told = devices.end()
    lost, twice = counting(trainer.run, {one.session: one.steps for one in told})
    troubles = {"lost": lost, "twice": twice, "outages": sum(one.outages for one in told)} | trainer.troubles()
    assert not any(one.torch for one in told), "a replaying device has imported torch"
    assert not any(troubles.values()), f"{row.devices} devices, {row.case}: {troubles}"
    name = f"{row.devices} device{'s' * (row.devices > 1)}, {row.case}"
    yield Result(f"{name}: steps v decode + head + encode alone", row.rate, row.alone.rate, row.ratio, "steps/s")
    for paces in row.paces:
        if len(paces) > 1:
            yield compare(f"{name}: fastest v slowest of {len(paces)}", max(paces), min(paces), "steps/s")
    yield compare(f"{name}: processor time of a step v alone", sum(row.cpu_ms.values()), row.alone.cpu_ms, "ms")
    yield compare(f"{name}: the trainer's memory, last turn v first", row.memory[-1], row.memory[0], "MB")


def with_equal_links(bench: Bench, args: argparse.Namespace) -> tuple[list[Row], list[Result]]:
    rows: list[Row] = []
    results: list[Result] = []
    case = bench.case
    with ExitStack() as stack:
        trainer = stack.enter_context(bench.trainer())
        again = (case.precision, case.gradient, case.micro_batches, bench.cores[0])
        alone = stack.enter_context(reference(bench.recording, *again))
        for count in args.devices:
            with fleet([bench.group(trainer.endpoint, count)]) as devices:
                rows.append(bench.measured(devices, trainer, alone, args.turns, args.seconds))
                print(f"{count} devices, {case}: {rows[-1].ratio:.3f}", flush=True)
                results += checked(rows[-1], trainer, devices)
    return rows, results


def with_kills(bench: Bench, args: argparse.Namespace) -> Iterator[Result]:
    """The trainer is killed in the middle and started again: every step of every device counts once."""
    count = max(args.devices)
    with bench.trainer() as trainer, fleet([bench.group(trainer.endpoint, count)]) as devices:
        devices.begin(_KILLS_S, args.killed_steps)
        for kill in range(args.kills):
            trainer.wait_for_steps(count * args.killed_steps * (kill + 1) // (args.kills + 1))
            trainer.kill()
            trainer.start()
        devices.turn()
        told = devices.end()
        lost, twice = counting(trainer.run, {one.session: one.steps for one in told})
        name = f"{count} devices, {bench.case}, {args.kills} kills -9 of the trainer"
        print(f"{name}: {sum(one.outages for one in told)} links lost, {lost} steps lost, {twice} counted twice")
        assert not lost
        assert not twice
        yield compare(f"{name}: steps counted v done", trainer.counted(), sum(one.steps for one in told), "steps")


def with_a_slow_link(bench: Bench, args: argparse.Namespace) -> tuple[list[Row], list[Result]]:
    """Some devices share a slow link, the others have none: each has its link's share."""
    way, count = link_way(args.rate, args.rtt), max(args.devices)
    with ExitStack() as stack:
        link = stack.enter_context(LinkEmulator(way, way))
        trainer = stack.enter_context(bench.trainer(link.trainer_namespace))
        again = (bench.case.precision, bench.case.gradient, bench.case.micro_batches, bench.cores[0])
        alone = stack.enter_context(reference(bench.recording, *again))
        near = bench.group(trainer.endpoint, count - args.slow, link.trainer_namespace)
        far = bench.group(trainer.endpoint, args.slow, link.device_namespace)
        devices = stack.enter_context(fleet([near, far]))
        row = bench.measured(devices, trainer, alone, args.turns, args.seconds)
        results = list(checked(row, trainer, devices))
    carried = args.rate * 1e6 / 8 / bench.message_bytes()
    name = f"{args.slow} devices behind {args.rate:g} Mbit/s: steps v what the link carries"
    results.append(compare(name, sum(row.paces[1]), carried, "steps/s"))
    return [row], results


def measure(model: Model, args: argparse.Namespace) -> tuple[list[Row], list[Result]]:
    rows: list[Row] = []
    results: list[Result] = []
    *others, last = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name, busy(args.busy):
        recording = Path(name) / "recording"
        record(recording, model)
        keys = Path(name) if args.keys else None
        if keys is not None:
            make_all_keys(keys, sum(args.devices))
        for precision, merge_passes in product(args.precisions, args.merge_passes):
            case = Case(precision, keys, args.micro_batches, min(args.window, args.micro_batches), merge_passes)
            bench = Bench(
                Path(name) / f"{precision}-{merge_passes}", recording, case, (last, frozenset(others or [last]))
            )
            if args.kills:
                results += with_kills(bench, args)
                continue
            found = with_a_slow_link(bench, args) if args.slow else with_equal_links(bench, args)
            rows += found[0]
            results += found[1]
    return rows, results


def show_rows(rows: list[Row]) -> None:
    columns = ("devices", "alone", "together", "ratio", "max/min", "MB", "CPU alone", "main", "libzmq", "other")
    cells = [
        (
            f"{row.devices}, {row.case}",
            f"{row.alone.rate:.1f}",
            f"{row.rate:.1f}",
            f"{row.ratio:.3f}",
            f"{row.unfair:.2f}",
            f"{row.memory[0]:.0f}–{row.memory[-1]:.0f}",
            f"{row.alone.cpu_ms:.2f}",
            *(f"{row.cpu_ms[name]:.2f}" for name in columns[-3:]),
        )
        for row in rows
    ]
    table("steps a second; the trainer's memory; CPU of its threads, ms a step", columns, cells)


def options() -> argparse.ArgumentParser:
    parser = arguments("Many light devices at one trainer v the head's work alone.")
    parser.add_argument("--devices", type=int, nargs="+", default=COUNTS, metavar="N")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8", "pca1"])
    parser.add_argument("--keys", action="store_true", help="encrypt by CURVE; a key for each device")
    parser.add_argument("--merge-passes", nargs="+", default=["off"], help="off, sum, each")
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--window", type=int, default=2, help="micro-batches in flight at most")
    parser.add_argument("--batch", type=int, default=Model().batch, help="images of a message")
    parser.add_argument("--depth", type=int, default=Model().args["depth"], help="blocks of the model")
    parser.add_argument("--split", type=int, default=Model().split)
    parser.add_argument("--turns", type=int, default=10, help="pairs of turns")
    parser.add_argument("--seconds", type=float, default=1.5, help="of a turn")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="cores to load with other processes")
    parser.add_argument("--kills", type=int, default=0, help="kill the trainer so often instead of measuring")
    parser.add_argument("--killed-steps", type=int, default=KILLED_STEPS, help="of each device meanwhile")
    parser.add_argument("--slow", type=int, default=0, metavar="N", help="devices behind a slow link; needs root")
    parser.add_argument("--rate", type=float, default=5.0, help="Mbit/s of the slow link")
    parser.add_argument("--rtt", type=float, default=40.0, help="ms of the slow link")
    return parser


def main() -> None:
    args = options().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that processes and namespaces end
    if args.slow and (trouble := available()):
        sys.exit(trouble)
    model = Model(args={**Model().args, "depth": args.depth}, split=args.split, batch=args.batch)
    rows, results = measure(model, args)
    if rows:
        show_rows(rows)
    show(f"{model}, replayed by light devices; {args.busy} cores busy with other processes", results, args.json)


if __name__ == "__main__":
    main()
