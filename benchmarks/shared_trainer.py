"""Predicted v realised time of a step while a trainer works for other devices too.

    python benchmarks/shared_trainer.py --json out/shared_trainer.json

One device asks the trainer for its share (a Pong tells it, as to `adc-edge link` and `plan`) while other devices train
with the same settings. Then it trains beside them. Its step is predicted from what its phases take and from the share.
Trainer and devices are processes with one thread each, in their own network namespaces. They share the machine's cores,
so phases are those of the same run. link_emulator.py needs root; without it the list of results is empty.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from harness import Result, arguments, compare, show, table
from link_emulator import LinkEmulator, available, process
from step_time import BOTH, ENDPOINT, START_S, link_way, steps_of, trainer

from adc_edge.planning.profile import TrainerShare
from adc_edge.planning.schedule import Costs, step_seconds

# Heavy packages (torch, timm, onnx) are imported inside functions, because the emulator's process imports this module.

MODEL, MODEL_ARGS, BATCH = "vit_tiny_patch16_224", {"img_size": 112, "depth": 6}, 16
SPLIT, RATE_MBIT_S, RTT_MS = 2, 200.0, 20.0
STEPS, LISTEN_S, MOST_DEVICES = 30, 15.0, 3

Asked = tuple[TrainerShare | None, str]


class Case(NamedTuple):
    """Devices at the trainer, and the messages of a step of each."""

    devices: int
    micro_batches: int

    def __str__(self) -> str:
        return f"{self.devices} device{'s' * (self.devices > 1)}, M={self.micro_batches}"


class Outcome(NamedTuple):
    """A case: what was told before, and what the steps took."""

    case: Case
    told: TrainerShare | None
    seconds: float
    alone: float  # predicted without the share
    predicted: float
    waited: float  # of a message, in the mean
    link_ms: float  # of a step of one message, without the wait

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted / self.seconds - 1


def export(bundle: Path) -> None:
    from adc_edge.export.build import ExportSettings, export_bundle
    from adc_edge.method.ratio import Ratio

    ratio = Ratio(batch=1.0, token=0.5)
    export_bundle(ExportSettings(MODEL, SPLIT, bundle, ratio, BATCH, "pca4", classes=10, model_args=MODEL_ARGS))


def device(bundle: Path, directory: Path, number: int, pipe: Connection) -> None:
    """A device's process. It answers a case with what the trainer told before, and with the name of the run."""
    from rich.console import Console

    from adc_edge.edge_runtime.profile.trainer import trainer_channel
    from adc_edge.edge_runtime.runner import Serve
    from adc_edge.edge_runtime.settings import ServeSettings
    from adc_edge.wire.link_messages import Ping, Pong

    with open(os.devnull, "w") as nowhere, suppress(EOFError):
        for turn in range(sys.maxsize):
            steps, micro_batches = pipe.recv()
            name = f"device-{number}-{turn}"
            more = BOTH | {"steps": steps, "micro_batches": micro_batches, "evaluate_images": 1, "outage_s": START_S}
            settings = ServeSettings(bundle, ENDPOINT, run=directory / name, name=name, wait_s=60.0, **more)
            with trainer_channel(settings) as channel:
                channel.send(Ping(1, 0))
                pong, _ = channel.receive()
            assert isinstance(pong, Pong)
            Serve(settings, Console(file=nowhere), pipe.poll).run()
            if pipe.poll():
                pipe.recv()
            pipe.send((pong.share or None, name))


@contextmanager
def ends() -> Iterator[tuple[Path, list[Connection]]]:
    """A trainer and some devices. Yields the directory of the runs, and the pipes to the devices."""
    way = link_way(RATE_MBIT_S, RTT_MS)
    with tempfile.TemporaryDirectory() as name, LinkEmulator(way, way) as link, ExitStack() as stack:
        directory = Path(name)
        export(directory / "bundle")
        work = partial(trainer, directory / "bundle", directory)
        there = stack.enter_context(process(link.trainer_namespace, work))
        pipes = [
            stack.enter_context(
                process(link.device_namespace, partial(device, directory / "bundle", directory, number))
            )
            for number in range(MOST_DEVICES)
        ]
        while not (directory / "trainer" / "endpoint").exists():
            if there.poll(0.1):
                raise there.recv()
        yield directory, pipes


def outcome(case: Case, directory: Path, pipes: list[Connection]) -> Outcome:
    first, *others = pipes[: case.devices]
    for pipe in others:
        pipe.send((10_000, case.micro_batches))
    time.sleep(LISTEN_S)  # the trainer forgets the case before, and knows these
    told, name = asked(first, (STEPS, case.micro_batches))
    for pipe in others:
        asked(pipe, "end")
    steps = steps_of(directory / name, name)
    count = case.micro_batches

    def median(*names: str) -> float:
        return float(statistics.median(sum(step[f"seconds_{one}"] for one in names) for step in steps)) / count

    def bits(way: str) -> float:
        return 8 * float(statistics.median(step[f"bytes_{way}"] for step in steps)) / count

    costs = Costs(
        forward=median("forward", "encode", "send"),
        recompute=median("recompute"),
        backward=median("decode", "backward"),
        up=bits("up") / (1e6 * RATE_MBIT_S),
        cloud=median("cloud", "cloud_codec"),
        down=bits("down") / (1e6 * RATE_MBIT_S),
    )
    data = count * median("data")
    alone = predicted = data + step_seconds(costs, RTT_MS / 1e3, count)
    if told is not None:
        shared = costs._replace(share=told.share, wait=told.wait_s)
        served = count * costs.cloud / told.share
        predicted = max(data + step_seconds(shared, RTT_MS / 1e3, count), served)
    total = float(statistics.median(step["seconds"] for step in steps))
    waited = statistics.mean(step["seconds_cloud_wait"] for step in steps) / count
    return Outcome(case, told, total, alone, predicted, waited, 1e3 * count * median("link"))


def asked(pipe: Connection, wish: Any) -> Asked:
    with suppress(BrokenPipeError):  # then it tells why
        pipe.send(wish)
    found: Asked = pipe.recv()
    if isinstance(found, Exception):
        raise found
    return found


def row(one: Outcome) -> tuple[str, ...]:
    told = one.told
    share = ("–", "–") if told is None else (f"{told.share:.2f}", f"{1e3 * told.wait_s:.0f}")
    times = (f"{1e3 * seconds:.0f}" for seconds in (one.waited, one.alone, one.predicted, one.seconds))
    return (str(one.case), *share, *times, f"{one.error:+.1%}", f"{one.link_ms:.0f}")


def main() -> None:
    parser = arguments("Predicted v realised time of a step at a trainer that works for other devices too.")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the namespaces are removed
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in adc_edge/cli.py: the processes share the cores
    if trouble := available():
        print(trouble)
        show("a shared trainer: predicted v realised step", [], args.json)
        return
    with ends() as (directory, pipes):
        cases = [Case(devices, count) for count in (1, 4) for devices in range(1, MOST_DEVICES + 1)]
        outcomes = [outcome(case, directory, pipes) for case in cases]
    columns = ("case", "told share", "wait", "waited", "without share", "predicted", "realised", "error", "link")
    table("ms; wait: expected of a message, waited: measured of one", columns, map(row, outcomes))
    results: list[Result] = [compare(str(one.case), 1e3 * one.predicted, 1e3 * one.seconds, "ms") for one in outcomes]
    show(f"a shared trainer: {MODEL}, {MODEL_ARGS}, split {SPLIT}, B={BATCH}", results, args.json)


if __name__ == "__main__":
    main()
