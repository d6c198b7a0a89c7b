"""A run that is told nothing v the best of a sweep: `--micro-batches auto`, and `--plan auto` on a link that changes.

    python benchmarks/follow.py --json out/follow.json
    python benchmarks/follow.py --busy 1

Trainer and device are processes with one thread each, in their own network namespaces (`step_time.py`).
link_emulator.py needs root; without it the list of results is empty. Only steps after the first ones count, and of
`--plan auto` those after its last change.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from codec import busy
from harness import Result, arguments, compare, show, table
from link_emulator import LinkEmulator, available
from step_time import BOTH, ENDPOINT, START_S, both_ends, link_way

# Heavy packages (torch, timm, onnx) are imported inside functions, because the emulator's process imports this module.

MODEL, MODEL_ARGS, SPLIT, BATCH = "vit_tiny_patch16_224", {"img_size": 112, "depth": 6}, 3, 32
LINKS = ((2.0, 40.0), (10.0, 40.0), (50.0, 40.0), (10.0, 200.0))  # Mbit/s both ways, round trip in ms
COUNTS = (1, 2, 4, 8, 16)
SETTINGS = {("pca1", "pca0.25"): (1, 2), ("int3", "int3"): (1, 8, 16), ("int8", "int8"): (1, 8)}  # and counts
CHANGES = (50.0, 0.5, 50.0)  # Mbit/s, at 40 ms
FOLLOWED_STEPS = 12  # at each rate of CHANGES
AUTO_STEPS, SWEEP_STEPS, WARM_UP = 16, 7, 2

Options = dict[str, Any]


def export(bundle: Path) -> None:
    from adc_edge.export.build import ExportSettings, export_bundle
    from adc_edge.method.ratio import Ratio

    export_bundle(
        ExportSettings(
            MODEL,
            SPLIT,
            bundle,
            Ratio(xi=1.0),
            BATCH,
            "pca1",
            gradient_precision="pca0.25",
            classes=10,
            model_args=MODEL_ARGS,
        )
    )


def device(bundle: Path, directory: Path, pipe: Connection) -> None:
    """The device's process: a run for each dictionary of options. It answers with the name of the run."""
    from rich.console import Console

    from adc_edge.edge_runtime.runner import Serve
    from adc_edge.edge_runtime.settings import ServeSettings

    with open(os.devnull, "w") as nowhere, suppress(EOFError):
        for number in range(sys.maxsize):
            options: Options = pipe.recv()
            name = f"run-{number}"
            more = BOTH | {"evaluate_images": 1} | options
            settings = ServeSettings(bundle, ENDPOINT, run=directory / name, name=name, outage_s=START_S, **more)
            Serve(settings, Console(file=nowhere), lambda: False).run()
            pipe.send(name)


class Runs:
    """Runs of the device over a link, one after the other."""

    def __init__(self, link: LinkEmulator, pipe: Connection, directory: Path) -> None:
        self.link, self._pipe, self._directory, self._count = link, pipe, directory, 0

    def run(self, rates: Sequence[float], rtt_ms: float, steps: int, **options: Any) -> list[dict[str, Any]]:
        """Run ``steps`` steps at each of the rates; return the lines of the metrics."""
        self.link.set(*2 * [link_way(rates[0], rtt_ms)])
        metrics = self._directory / f"run-{self._count}" / "metrics.jsonl"
        self._count += 1
        self._pipe.send({"steps": steps * len(rates), **options})
        for number, rate in enumerate(rates[1:], 1):
            while not metrics.exists() or metrics.read_text().count('"kind": "step"') < number * steps:
                if self._pipe.poll(0.01):
                    raise RuntimeError(self._pipe.recv())
            self.link.set(*2 * [link_way(rate, rtt_ms)])
        name = self._pipe.recv()
        if isinstance(name, Exception):
            raise name
        return [json.loads(line) for line in metrics.read_text().splitlines()]


def median_step(lines: list[dict[str, Any]]) -> float:
    """Median seconds of the steps after the first ones and after the last change."""
    changes = [line["step"] for line in lines if line["kind"] == "plan"]
    first = max([WARM_UP, *(step + 1 for step in changes)])
    return float(statistics.median(one["seconds"] for one in lines if one["kind"] == "step" and one["step"] >= first))


def by_link(runs: Runs, what: str, auto: Options, sweep: dict[str, Options]) -> list[Result]:
    """A run with ``auto`` v the best of ``sweep``, on each link; the best is run again."""
    results, rows = [], []
    for rate, rtt_ms in LINKS:
        fixed = {name: median_step(runs.run([rate], rtt_ms, SWEEP_STEPS, **options)) for name, options in sweep.items()}
        lines = runs.run([rate], rtt_ms, AUTO_STEPS, **auto)
        best = min(fixed, key=lambda name: fixed[name])
        # Timed again, since the least of many noisy times is too small.
        fixed[best] = median_step(runs.run([rate], rtt_ms, AUTO_STEPS, **sweep[best]))
        link = f"{rate:g} Mbit/s, {rtt_ms:g} ms"
        results.append(compare(f"{what}, {link} v {best}", 1e3 * median_step(lines), 1e3 * fixed[best], "ms"))
        rows.append((link, *(f"{1e3 * seconds:.0f}" for seconds in (median_step(lines), *fixed.values()))))
    table(f"{what}: median step in ms", ("link", "auto", *sweep), rows)
    return results


def followed(runs: Runs) -> list[Result]:
    """Steps from each change of the link to the last change of the run's settings."""
    lines = runs.run(CHANGES, 40.0, FOLLOWED_STEPS, plan="auto")
    steps = [line for line in lines if line["kind"] == "step"]
    changes = [(line["step"], line["why"]) for line in lines if line["kind"] == "plan"]
    for step, why in changes:
        print(f"step {step}: {why}")
    columns = ("step", "link Mbit/s", "seconds", "kB up", "kB down", "estimated up", "down")
    table(
        "the run that follows",
        columns,
        [
            (
                str(line["step"]),
                f"{CHANGES[line['step'] // FOLLOWED_STEPS]:g}",
                f"{line['seconds']:.2f}",
                f"{line['bytes_up'] / 1e3:.0f}",
                f"{line['bytes_down'] / 1e3:.0f}",
                *(f"{line[name] or 0:.3g}" for name in ("up_mbit_s", "down_mbit_s")),
            )
            for line in steps
        ],
    )
    results = []
    for number, rate in enumerate(CHANGES):
        begins, ends = number * FOLLOWED_STEPS, (number + 1) * FOLLOWED_STEPS
        late = [step - begins for step, _ in changes if begins <= step < ends]
        name = f"{rate:g} Mbit/s: steps until the settings are the last ones (target 10)"
        results.append(compare(name, max(late, default=0), FOLLOWED_STEPS, "steps"))
    assert [line["step"] for line in steps] == list(range(len(steps))), "a step was lost or repeated"
    return results


@contextmanager
def running() -> Iterator[Runs]:
    """A trainer and a device at the two ends of a link."""
    with both_ends(link_way(50, 40), export, device) as (link, here, _, directory):
        yield Runs(link, here, directory)


def measure(which: str) -> list[Result]:
    results = []
    with running() as runs:
        if which in ("all", "follow"):
            results += followed(runs)
        if which in ("all", "cut"):
            sweep: dict[str, Options] = {
                f"M={count}": {"precision": "int8", "micro_batches": count} for count in COUNTS
            }
            results += by_link(runs, "--micro-batches auto", {"precision": "int8"}, sweep)
        if which in ("all", "plan"):
            sweep = {
                f"{up}:{down}, M={count}": {"precision": up, "gradient_precision": down, "micro_batches": count}
                for (up, down), counts in SETTINGS.items()
                for count in counts
            }
            results += by_link(runs, "--plan auto", {"plan": "auto"}, sweep)
    return results


def main() -> None:
    parser = arguments("`--micro-batches auto` and `--plan auto` v the best of a sweep, over an emulated link.")
    parser.add_argument("--only", choices=("all", "follow", "cut", "plan"), default="all", help="part to measure")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="cores to load with other processes")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the namespaces are removed
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in adc_edge/cli.py: the processes share the cores
    if trouble := available():
        print(trouble)
        show("told nothing v the best of a sweep", [], args.json)
        return
    with busy(args.busy):
        results = measure(args.only)
    cut = f"{MODEL}, {MODEL_ARGS}, split {SPLIT}, B={BATCH}, {args.busy} cores busy"
    show(f"told nothing v the best of a sweep: {cut}, one thread each", results, args.json)


if __name__ == "__main__":
    main()
