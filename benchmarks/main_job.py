"""Time of a step of the default command, typed as users type it, idle and with every core busy.

    python benchmarks/main_job.py --json out/main_job.json

Trainer and device are `adc-edge trainer` and `adc-edge serve` with their default settings, beside each other on this
machine, over loopback: DeiT-T at 224 px, split 6, B=32, with random weights. The bound of a step is the slower of the
two sides' computation without the codec: with one message a step they take turns, so it cannot be reached.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from harness import Result, arguments, compare, show

MODEL, SPLIT, BATCH = "deit_tiny_patch16_224", 6, 32
WARM_UP, STEPS = 2, 6
THREADS = {"default": [], "--threads 1": ["--threads", "1"]}
START_S = 120.0


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "adc_edge", *arguments]


@contextlib.contextmanager
def background(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output, subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep ``count`` cores busy."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            loop = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(loop.kill)
        yield


def steps_of(directory: Path, bundle: Path, options: list[str]) -> list[dict[str, float]]:
    """Run trainer and device; return the device's record of each measured step."""
    there, here, log = directory / "trainer", directory / "device", directory / "trainer.log"
    listen = ["--bundle", str(bundle), "--bind", "tcp://127.0.0.1:*", "--run", str(there), "--devices", "1"]
    with background(command("trainer", *listen, *options), log) as trainer:
        limit = time.monotonic() + START_S
        while not (there / "endpoint").exists():
            if trainer.poll() is not None or time.monotonic() > limit:
                raise SystemExit(log.read_text())
            time.sleep(0.1)
        connect = ["--bundle", str(bundle), "--trainer", (there / "endpoint").read_text(), "--run", str(here)]
        length = ["--steps", str(WARM_UP + STEPS), "--eval-images", "8"]
        done = subprocess.run(command("serve", *connect, *length, *options), capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr + log.read_text())
    lines = map(json.loads, (here / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "step" and line["step"] >= WARM_UP]


def results_of(name: str, steps: dict[str, list[dict[str, float]]]) -> Iterator[Result]:
    def median(case: str, *phases: str) -> float:
        return 1e3 * statistics.median(sum(step[f"seconds_{phase}"] for phase in phases) for step in steps[case])

    step = {case: 1e3 * statistics.median(step["seconds"] for step in steps[case]) for case in steps}
    device, cloud = median("default", "data", "forward", "recompute", "backward"), median("default", "cloud")
    yield compare(f"{name}: step v its bound", step["default"], max(device, cloud), "ms")
    yield compare(f"{name}: step v computation of both sides", step["default"], device + cloud, "ms")
    yield compare(f"{name}: default v --threads 1", step["default"], step["--threads 1"], "ms")


def main() -> None:
    parser = arguments("Time of a step of the default command v its bound, idle and busy.")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each case")
    parser.add_argument("--busy", type=int, default=2, help="cores that other work keeps busy in the second half")
    args = parser.parse_args()
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as name:
        bundle = Path(name) / "bundle"
        model = ["--model", MODEL, "--num-classes", "10", "--split", str(SPLIT), "--batch-size", str(BATCH)]
        subprocess.run(command("export", *model, "-o", str(bundle)), check=True, capture_output=True)
        for load in dict.fromkeys((0, args.busy)):
            steps: dict[str, list[dict[str, float]]] = {case: [] for case in THREADS}
            with busy(load):
                for turn in range(args.rounds):
                    for case, options in THREADS.items():
                        directory = Path(name) / f"{load}-{turn}-{len(options)}"
                        directory.mkdir()
                        steps[case] += steps_of(directory, bundle, options)
            results += results_of(f"{load} cores busy" if load else "idle", steps)
    show(f"the default command: {MODEL}, split {SPLIT}, B={BATCH}, 224 px, loopback", results, args.json)


if __name__ == "__main__":
    main()
