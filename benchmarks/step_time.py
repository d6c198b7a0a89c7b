"""Time of a training step compared with its physical bound, over an emulated link, with and without overlap.

    python benchmarks/step_time.py --json out/step_time.json

Trainer and device are processes with one thread each, in their own network namespaces. link_emulator.py needs root;
without it the list of results is empty. The bound of a step is the largest of four times from the same run: computation
on the device, bytes up over the link's rate, bytes down over the link's rate, computation on the trainer.

How near a step comes to its bound depends on the machine: a pipeline of M pieces in three places that take equally
long needs (M + 2) / M of it, and less the more one place outweighs the others. `--rate` chooses the balance.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from harness import Result, arguments, compare, show, table
from link_emulator import LinkEmulator, Way, available, process

from adc_edge.codec.precision import Precision
from adc_edge.planning.schedule import Costs, step_seconds

# Heavy packages (torch, timm, onnx) are imported inside functions, because the emulator's process imports this module.

# With one thread each and at 20 Mbit/s, device, link and trainer take about the same time for a step.
MODEL, MODEL_ARGS, SPLIT = "vit_tiny_patch16_224", {"img_size": 112, "depth": 5}, 2
CLUSTERS, TOKENS = 0.75, 0.8
PRECISION: Precision = "fp16"
RATE_MBIT_S, RTT_MS, BATCH, MICRO_BATCHES = 20.0, 40.0, 256, (1, 8, 16, 32)  # settings of the main claim
GRID_BATCH, GRID_MICRO_BATCHES = 64, (1, 8)
WARM_UP = 1
LAG_MS = 20.0  # a case with a larger lag of the emulator is run again, and marked if the lag stays
ENDPOINT = f"tcp://{LinkEmulator.trainer_address}:5700"
START_S = 120.0
BOTH: dict[str, Any] = {"insecure": True, "threads": 1, "checkpoint_every": 0}  # settings of both device and trainer


class Case(NamedTuple):
    """One run of the device."""

    rate_mbit_s: float
    rtt_ms: float
    batch: int
    micro_batches: int
    steps: int  # measured
    trained: bool = True
    overlap: bool = True

    def __str__(self) -> str:
        link = f"{self.rate_mbit_s:g} Mbit/s, {self.rtt_ms:g} ms, {'trained' if self.trained else 'frozen'}"
        return f"{link}, B={self.batch}, M={self.micro_batches}" + ("" if self.overlap else ", no overlap")


class Row(NamedTuple):
    """The result of a case: medians of its steps, in seconds."""

    case: Case
    step: float
    places: dict[str, float]  # busy time of each place
    wait: float  # the device waits for answers
    other: float  # the device neither computes nor waits
    predicted: float
    lag_ms: float  # largest lag of the emulator

    @property
    def bound(self) -> float:
        return max(self.places.values())

    @property
    def name(self) -> str:
        busiest = max(self.places, key=lambda place: self.places[place])
        return f"{self.case} (bound: {busiest})" + ("; lag" if self.lag_ms > LAG_MS else "")


def export(bundle: Path) -> None:
    from adc_edge.export.build import ExportSettings, export_bundle
    from adc_edge.method.ratio import Ratio

    ratio = Ratio(batch=CLUSTERS, token=TOKENS)  # both parts: ξ is the same for every M
    export_bundle(ExportSettings(MODEL, SPLIT, bundle, ratio, BATCH, PRECISION, classes=10, model_args=MODEL_ARGS))


def trainer(bundle: Path, directory: Path, pipe: Connection) -> None:
    """The trainer's process, until the pipe ends."""
    from rich.console import Console

    from adc_edge.cloud_trainer.runner import Trainer, TrainerSettings

    settings = TrainerSettings(bundle, ENDPOINT, run=directory / "trainer", device="cpu", **BOTH)
    with open(os.devnull, "w") as nowhere:
        Trainer(settings, Console(file=nowhere), pipe.poll).run()


def device(bundle: Path, directory: Path, pipe: Connection) -> None:
    """The device's process: a run for each case that comes through the pipe. It answers with the name of the run."""
    from rich.console import Console

    from adc_edge.edge_runtime import loop, runner
    from adc_edge.edge_runtime.settings import ServeSettings

    with open(os.devnull, "w") as nowhere, suppress(EOFError):
        for number in range(sys.maxsize):
            case: Case = pipe.recv()
            name = f"case-{number}"
            trunk = "train" if case.trained else "frozen"
            more = BOTH | {"steps": WARM_UP + case.steps, "trunk": trunk}
            more |= {"batch_size": case.batch, "micro_batches": case.micro_batches}
            run = directory / name
            settings = ServeSettings(bundle, ENDPOINT, run=run, name=name, evaluate_images=1, outage_s=START_S, **more)
            with patch.object(runner, "DeviceLoop", loop.DeviceLoop if case.overlap else without_overlap()):
                runner.Serve(settings, Console(file=nowhere), pipe.poll).run()
            pipe.send(name)


def without_overlap() -> type[Any]:
    """The loop of a device without overlap: it computes nothing while it waits for a gradient."""
    from adc_edge.edge_runtime.loop import DeviceLoop, _InFlight
    from adc_edge.edge_runtime.stopwatch import Stopwatch

    class Sequential(DeviceLoop):
        def _finish(self, step: int, in_flight: deque[_InFlight], watch: Stopwatch) -> None:
            part = in_flight.popleft()
            with watch.phase("wait"):
                gradient, answer = self._gradient(step, part.number)
            watch.answered(gradient, self._arrival())
            assert self.shim is not None
            with watch.phase("recompute"):
                self.shim.recompute(part.images, part.sent)
            with watch.phase("backward"):
                self.shim.backward(self._received(answer, gradient, step))

    return Sequential


def steps_of(run: Path, name: str) -> list[dict[str, Any]]:
    """The measured steps of a device, from the metrics of its own run or of the trainer's."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    steps = (line for line in lines if line["kind"] == "step" and line["step"] >= WARM_UP)
    return [step for step in steps if step.get("device", name) == name]


class Bench(NamedTuple):
    """Device and trainer at the two ends of a link. They run the cases one after the other."""

    link: LinkEmulator
    device: Connection
    trainer: Connection
    directory: Path

    def rows(self, cases: Sequence[Case], rounds: int = 1) -> list[Row]:
        """Run each case, in a new random order each round, because machines are shared and change their speed."""
        steps: dict[Case, list[dict[str, float]]] = {case: [] for case in cases}
        for turn in range(rounds):
            for case in random.Random(turn).sample(cases, len(cases)):
                run = self._run(case)
                steps[case] += run if run[0]["lag_ms"] <= LAG_MS else self._run(case)
        return [make_row(case, steps[case]) for case in cases]

    def _run(self, case: Case) -> list[dict[str, float]]:
        """Run a case. Return the metrics of both sides for each measured step."""
        way = link_way(case.rate_mbit_s, case.rtt_ms)
        self.link.set(way, way)
        self.device.send(case)
        name = self.device.recv()
        if isinstance(name, Exception):
            raise name
        lag_ms = self.link.lag_ms
        both = zip(steps_of(self.directory / name, name), steps_of(self.directory / "trainer", name), strict=True)
        return [here | {"seconds_trainer": there["seconds_cloud"], "lag_ms": lag_ms} for here, there in both]


def link_way(rate_mbit_s: float, rtt_ms: float) -> Way:
    """A link whose queue holds twice the bandwidth-delay product: BBR has up to 2.9 times it in flight, in bursts."""
    return Way(rate_mbit_s, rtt_ms / 2, queue_bytes=max(2**18, round(2 * rate_mbit_s * 125 * rtt_ms)))


def make_row(case: Case, steps: list[dict[str, float]]) -> Row:
    def median(*names: str) -> float:
        return statistics.median(sum(step[name] for name in names) for step in steps)

    forward, backward = ["seconds_forward", "seconds_encode"], ["seconds_decode", "seconds_backward"]
    busy, wait = ["seconds_data", *forward, "seconds_recompute", *backward], median("seconds_wait")
    up, down = (median(f"bytes_{way}") * 8 / (case.rate_mbit_s * 1e6) for way in ("up", "down"))
    places = {"device": median(*busy), "up": up, "down": down, "cloud": median("seconds_trainer")}
    # The optimizer's time is not in the answers, because the trainer's optimizer runs after the last answer was sent.
    cloud = median("seconds_cloud", "seconds_cloud_codec")
    seconds = (median(*forward), median("seconds_recompute"), median(*backward), up, cloud, down)
    costs, rtt_s = Costs(*(value / case.micro_batches for value in seconds)), case.rtt_ms / 1e3
    predicted = median("seconds_data") + step_seconds(costs, rtt_s, case.micro_batches)
    if not case.overlap:
        predicted = sum(places.values()) + rtt_s
    other = statistics.median(step["seconds"] - step["seconds_wait"] - sum(step[n] for n in busy) for step in steps)
    return Row(case, median("seconds"), places, wait, other, predicted, max(step["lag_ms"] for step in steps))


def claim(bench: Bench, rate_mbit_s: float, rounds: int, steps: int) -> tuple[list[Row], list[Result]]:
    """Every M on one link, and M=1 without overlap. The results compare the best M with bound, model and no overlap."""
    cases = [Case(rate_mbit_s, RTT_MS, BATCH, count, steps) for count in MICRO_BATCHES]
    *rows, sequential = bench.rows([*cases, Case(rate_mbit_s, RTT_MS, BATCH, 1, steps, overlap=False)], rounds)
    best = min(rows, key=lambda row: row.step)
    goals = (
        ("its bound (target 1.15)", best.bound),
        ("its pipeline, which fills and empties each step", best.predicted),
        ("no overlap (target 0.7)", sequential.step),
    )
    name = f"best M={best.case.micro_batches} v"
    results = [compare(f"{name} {goal}", best.step * 1e3, seconds * 1e3, "ms") for goal, seconds in goals]
    return [*rows, sequential], results


def grid(bench: Bench) -> list[Row]:
    """Links of three rates and three round trips, trunk trained and frozen, one and several messages a step."""
    cases = [
        Case(rate, rtt, GRID_BATCH, count, 2 if rate < RATE_MBIT_S else 4, trained)
        for rate in (5.0, 20.0, 100.0)
        for rtt in (5.0, 40.0, 120.0)
        for trained in (True, False)
        for count in GRID_MICRO_BATCHES
    ]
    return bench.rows(cases)


def show_all(rows: list[Row], results: list[Result], file: Path | None) -> None:
    columns = ("ms", "device", "up", "down", "cloud", "device waits", "other", "predicted", "step")
    times = [(*row.places.values(), row.wait, row.other, row.predicted, row.step) for row in rows]
    cells = [(str(row.case), *(f"{1e3 * time:.0f}" for time in each)) for row, each in zip(rows, times, strict=True)]
    table("median step by place", columns, cells)
    results = [compare(row.name, row.step * 1e3, row.bound * 1e3, "ms") for row in rows] + results
    cut = f"{MODEL}, {MODEL_ARGS}, split {SPLIT}, T/B={CLUSTERS}, k/N={TOKENS}, {PRECISION}"
    show(f"step v its bound: {cut}, one thread each", results, file)


@contextmanager
def both_ends(
    start: Way, export: Callable[[Path], None], device: Callable[[Path, Path, Connection], None]
) -> Iterator[tuple[LinkEmulator, Connection, Connection, Path]]:
    """A trainer that listens and a device, each in its process at its end of a link.

    Yields the link, the pipes to device and trainer, and the directory of the runs.
    """
    with tempfile.TemporaryDirectory() as name, LinkEmulator(start, start) as link:
        directory = Path(name)
        bundle = directory / "bundle"
        export(bundle)
        with (
            process(link.trainer_namespace, partial(trainer, bundle, directory)) as there,
            process(link.device_namespace, partial(device, bundle, directory)) as here,
        ):
            while not (directory / "trainer" / "endpoint").exists():
                if there.poll(0.1):
                    raise there.recv()
            yield link, here, there, directory


def run(quick: bool, rate_mbit_s: float) -> tuple[list[Row], list[Result]]:
    with both_ends(link_way(rate_mbit_s, RTT_MS), export, device) as ends:
        bench = Bench(*ends)
        rows, results = claim(bench, rate_mbit_s, 1 if quick else 2, steps=2)
        return rows + ([] if quick else grid(bench)), results


def main() -> None:
    parser = arguments("Time of a step v its physical bound, over an emulated link.")
    parser.add_argument("--quick", action="store_true", help="measure only the main claim, with few steps")
    parser.add_argument(
        "--rate", type=float, default=RATE_MBIT_S, help="Mbit/s of the main claim; choose one that balances the places"
    )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the namespaces are removed
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in adc_edge/cli.py: the processes share the cores
    if trouble := available():
        print(trouble)
        show("step v its bound", [], args.json)
        return
    show_all(*run(args.quick, args.rate), args.json)


if __name__ == "__main__":
    main()
