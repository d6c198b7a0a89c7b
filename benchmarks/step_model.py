"""Predicted v realised time of a step, for settings and links that nothing was fitted to, over an emulated link.

    python benchmarks/step_model.py --json out/step_model.json

The device measures its profile once for each engine, and asks the trainer for the speed of its head, as `adc-edge
profile` does. Then each case is predicted and run. Trainer and device are processes with one thread each, in their own
network namespaces (`step_time.py`). link_emulator.py needs root; without it the list of results is empty.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from harness import Result, arguments, compare, show, table
from link_emulator import LinkEmulator, available
from step_time import BOTH, ENDPOINT, LAG_MS, START_S, WARM_UP, both_ends, link_way, steps_of

from adc_edge.codec.precision import Precision
from adc_edge.defaults import EngineName
from adc_edge.method.ratio import Ratio
from adc_edge.planning.profile import Profile
from adc_edge.planning.step_model import LinkRates, Prediction, StepPlan, predict

# Heavy packages (torch, timm, onnx) are imported inside functions, because the emulator's process imports this module.

MODEL, MODEL_ARGS, SPLIT, BATCH = "vit_tiny_patch16_224", {"img_size": 112, "depth": 6}, 3, 64
PAYLOAD = 1448 / 1500  # of an IP packet: the emulator's rates count packets, the model's what a socket carries
STEPS = 5


class Case(NamedTuple):
    """A link and the settings of a step."""

    up_mbit_s: float
    down_mbit_s: float
    rtt_ms: float
    micro_batches: int = 1
    window: int = 0
    ratio: tuple[float, float] = (0.5, 0.5)  # T/B, k/N
    precision: Precision = "pca1"
    gradient_precision: Precision | None = "pca0.25"  # None: the trunk is frozen
    freeze_first: int = 0
    engine: EngineName = "onnxruntime"
    batch: int = BATCH

    def __str__(self) -> str:
        link = f"{self.up_mbit_s:g}/{self.down_mbit_s:g} Mbit/s {self.rtt_ms:g} ms"
        step = f"B={self.batch} M={self.micro_batches}" + (f" W={self.window}" if self.window else "")
        trunk = (
            f"{self.precision}, frozen"
            if self.gradient_precision is None
            else f"{self.precision}/{self.gradient_precision}"
        )
        more = [f"K={self.freeze_first}"] * bool(self.freeze_first) + ["torch"] * (self.engine == "torch")
        return ", ".join([link, step, "T/B={:g} k/N={:g}".format(*self.ratio), trunk, *more])

    def plan(self, tokens: int, prefix: int) -> StepPlan:
        ratio = Ratio(batch=self.ratio[0], token=self.ratio[1])
        shape = ratio.shape(self.batch // self.micro_batches, tokens, prefix)
        ways = self.precision, self.gradient_precision
        return StepPlan(SPLIT, shape, *ways, self.micro_batches, self.window, self.freeze_first)

    def link(self) -> LinkRates:
        return LinkRates(self.rtt_ms, PAYLOAD * self.up_mbit_s, PAYLOAD * self.down_mbit_s)


CASES = (
    Case(20, 20, 40),
    Case(20, 20, 40, 8),
    Case(5, 5, 40, 4, precision="fp16", gradient_precision="fp16"),
    Case(5, 5, 40, 8, gradient_precision=None),
    Case(2, 20, 40, 4, precision="pca0.5"),
    Case(2, 20, 200, 1, precision="int8", gradient_precision="int8"),
    Case(100, 100, 5, 1, ratio=(1, 1), precision="int8", gradient_precision="int8"),
    Case(100, 100, 5, 16),
    Case(100, 100, 40, 2, ratio=(0.25, 1), freeze_first=2),
    Case(20, 20, 200, 8, 2),
    Case(20, 20, 200, 1, ratio=(1, 0.25), gradient_precision=None),
    Case(20, 20, 5, 4, ratio=(0.75, 0.8), engine="torch"),
    Case(5, 5, 5, 2, ratio=(0.75, 0.8), freeze_first=1, precision="fp16", gradient_precision="int8"),
    Case(100, 100, 200, 4, ratio=(1, 1), precision="fp32", gradient_precision="fp16", batch=128),
)
PHASES = {  # of the device's records, by cost of the model; the optimizer's step is in the backward
    "forward": ("forward", "encode"),
    "recompute": ("recompute",),
    "backward": ("decode", "backward"),
    "cloud": ("cloud", "cloud_codec"),
}
QUICK = (CASES[0], CASES[1], CASES[3])


class Outcome(NamedTuple):
    """A case, its prediction and its steps."""

    case: Case
    predicted: Prediction
    seconds: float
    bytes_up: float
    bytes_down: float
    phases: dict[str, float]  # seconds of a step, all micro-batches
    lag_ms: float

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted.seconds / self.seconds - 1


def export(bundle: Path) -> None:
    from adc_edge.export.build import ExportSettings, export_bundle

    ratio = Ratio(batch=0.5, token=0.5)
    export_bundle(ExportSettings(MODEL, SPLIT, bundle, ratio, BATCH, "pca1", classes=10, model_args=MODEL_ARGS))


def device(bundle: Path, directory: Path, pipe: Connection) -> None:
    """The device's process. It answers an engine's name with a profile, and a case with the name of its run."""
    from rich.console import Console

    from adc_edge.edge_runtime.profile.device import DeviceMeasurement
    from adc_edge.edge_runtime.profile.trainer import ask_trainer, trainer_channel
    from adc_edge.edge_runtime.runner import Serve
    from adc_edge.edge_runtime.settings import ServeSettings

    with open(os.devnull, "w") as nowhere, suppress(EOFError):
        for number in range(sys.maxsize):
            wish = pipe.recv()
            if isinstance(wish, str):
                settings = ServeSettings(bundle, ENDPOINT, engine=wish, threads=1, insecure=True)  # type: ignore[arg-type]
                measurement = DeviceMeasurement(settings)
                with trainer_channel(settings) as channel:
                    head = ask_trainer(channel, measurement.bundle.digest)
                pipe.send(Profile(measurement.run(), head))
                continue
            name = f"case-{number}"
            settings = ServeSettings(
                bundle, ENDPOINT, run=directory / name, name=name, outage_s=START_S, **serve_options(wish)
            )
            Serve(settings, Console(file=nowhere), pipe.poll).run()
            pipe.send(name)


def serve_options(case: Case) -> dict[str, Any]:
    more: dict[str, Any] = {
        "steps": WARM_UP + STEPS,
        "evaluate_images": 1,
        "trunk": "train" if case.gradient_precision else "frozen",
        "ratio": Ratio(batch=case.ratio[0], token=case.ratio[1]),
        "batch_size": case.batch,
    }
    for name in ("engine", "micro_batches", "window", "freeze_first", "precision", "gradient_precision"):
        more[name] = getattr(case, name)
    return BOTH | more


def outcome(link: LinkEmulator, pipe: Connection, directory: Path, case: Case, profile: Profile) -> Outcome:
    from adc_edge.storage.bundle import Bundle

    link.set(*(link_way(rate, case.rtt_ms) for rate in (case.up_mbit_s, case.down_mbit_s)))
    name = answer(pipe, case)
    manifest = Bundle.load(directory / "bundle", ()).manifest
    predicted = predict(case.plan(manifest.tokens, manifest.prefix), case.link(), profile)
    steps = steps_of(directory / name, name)

    def median(*names: str) -> float:
        return float(statistics.median(sum(step[name] for name in names) for step in steps))

    phases = {name: median(*(f"seconds_{part}" for part in parts)) for name, parts in PHASES.items()}
    return Outcome(case, predicted, median("seconds"), median("bytes_up"), median("bytes_down"), phases, link.lag_ms)


def answer(pipe: Connection, wish: Any) -> Any:
    pipe.send(wish)
    found = pipe.recv()
    if isinstance(found, Exception):
        raise found
    return found


def run(cases: tuple[Case, ...]) -> list[Outcome]:
    with both_ends(link_way(100, 5), export, device) as (link, here, _, directory):
        profiles = {engine: answer(here, engine) for engine in dict.fromkeys(case.engine for case in cases)}
        return [outcome(link, here, directory, case, profiles[case.engine]) for case in cases]


def results_of(outcomes: list[Outcome]) -> list[Result]:
    results = [compare(str(one.case), 1e3 * one.predicted.seconds, 1e3 * one.seconds, "ms") for one in outcomes]
    if errors := [abs(one.error) for one in outcomes]:
        results.append(compare("median error (target 0.10)", statistics.median(errors), 1.0, ""))
        results.append(compare("worst error (target 0.20)", max(errors), 1.0, ""))
    return results


def row(one: Outcome) -> tuple[str, ...]:
    """A line of the table. Phases: predicted ms, and their ratio to the realised ones."""
    predicted, count = one.predicted, one.case.micro_batches
    name = str(one.case) + ("; lag" if one.lag_ms > LAG_MS else "")
    sizes = ((predicted.bytes_up, one.bytes_up), (predicted.bytes_down, one.bytes_down))
    costs = {name: count * getattr(predicted.costs, name) for name in PHASES}
    phases = (f"{1e3 * costs[name]:.0f} ({costs[name] / max(one.phases[name], 1e-4):.2f})" for name in PHASES)
    times = (f"{1e3 * seconds:.0f}" for seconds in (predicted.seconds, one.seconds))
    return (name, *times, f"{one.error:+.1%}", *(f"{here / there:.3f}" for here, there in sizes), *phases)


def main() -> None:
    parser = arguments("Predicted v realised time of a step over an emulated link.")
    parser.add_argument("--quick", action="store_true", help=f"run {len(QUICK)} cases")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the namespaces are removed
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in adc_edge/cli.py: the processes share the cores
    if trouble := available():
        print(trouble)
        show("predicted v realised step", [], args.json)
        return
    outcomes = run(QUICK if args.quick else CASES)
    columns = ("case", "predicted", "realised", "error", "bytes up", "bytes down", *PHASES)
    table("step in ms; predicted v realised: bytes, and the time of each phase", columns, map(row, outcomes))
    cut = f"{MODEL}, {MODEL_ARGS}, split {SPLIT}"
    show(f"predicted v realised step: {cut}, one thread each", results_of(outcomes), args.json)


if __name__ == "__main__":
    main()
