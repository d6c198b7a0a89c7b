"""Accuracy and time of a fleet whose waiting steps are learned in one pass v one after another (`--merge-passes`).

    python benchmarks/merged_accuracy.py --data cifar10_subset.npz --weights six_blocks.safetensors --seeds 0 1 2

A real trainer and real devices over loopback, each device with its part of the training images, `--mode averaged`. The
trainer evaluates trunk and head at the end. The cases take turns within each seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fleet_trainer import free_port
from harness import Result, arguments, compare, show

MODEL = "deit_tiny_patch16_224"
CASES = ("off", "sum", "each")
_LIMIT_S = 900.0


class Trained(NamedTuple):
    """Accuracy of a run at its end, and its time from the first step to the last."""

    accuracy: float
    seconds: float


def adc_edge(*words: object) -> list[str]:
    return [sys.executable, "-m", "adc_edge", *map(str, words)]


def divide(data: Path, devices: int, seed: int, directory: Path) -> list[Path]:
    """Write the training images in as many files, at random, each with the test images."""
    with np.load(data) as found:
        arrays = dict(found)
    order = np.random.default_rng(seed).permutation(len(arrays["x_train"]))
    files = [directory / f"part-{number}.npz" for number in range(devices)]
    for file, part in zip(files, np.array_split(order, devices), strict=True):
        np.savez(file, **arrays | {"x_train": arrays["x_train"][part], "y_train": arrays["y_train"][part]})
    return files


@contextmanager
def started(commands: Sequence[list[str]], log: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    with log.open("wb") as out:
        processes = [subprocess.Popen(command, stdout=out, stderr=out) for command in commands]
        try:
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.wait()


def train(case: str, bundle: Path, parts: list[Path], seed: int, args: argparse.Namespace, directory: Path) -> Trained:
    """Let a fleet do its steps, and return what the trainer has measured at the end."""
    directory.mkdir()
    endpoint, run = f"tcp://127.0.0.1:{free_port()}", directory / "run"
    learning = ("--optimizer", args.optimizer, "--lr", args.lr, "--seed", seed, "--threads", 1)
    trainer = adc_edge(
        "trainer", "--bundle", bundle, "--bind", endpoint, "--run", run, "--devices", len(parts), "--mode", "averaged",
        "--merge-passes", case, "--data", f"npz:{args.data}", *learning,
    )  # fmt: skip
    devices = [
        adc_edge(
            "serve", "--bundle", bundle, "--trainer", endpoint, "--data", f"npz:{part}", "--steps", args.steps,
            "--batch-size", args.batch_size, "--precision", "int8", "--eval-images", 10, "--name", part.stem, *learning,
        )
        for part in parts
    ]  # fmt: skip
    log = directory / "log"
    with started([trainer, *devices], log) as processes:
        codes = [process.wait(_LIMIT_S) for process in processes]
    if any(codes):
        raise RuntimeError(f"a process ended with {codes}: {log.read_text()[-3000:]}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    at = [line["time"] for line in lines if line["kind"] == "step"]
    judged = [line["accuracy"] for line in lines if line["kind"] == "evaluation" and line.get("source") == "central"]
    return Trained(judged[-1], max(at) - min(at))


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="npz file with training and test images")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--depth", type=int, default=6, help="blocks of the model")
    parser.add_argument("--split", type=int, default=3)
    parser.add_argument("--img-size", type=int, default=64)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--steps", type=int, default=94, help="of each device")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    found: dict[str, list[Trained]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as name:
        for seed in args.seeds:
            directory = Path(name) / str(seed)
            directory.mkdir()
            bundle, parts = directory / "bundle", divide(args.data, args.devices, seed, directory)
            subprocess.run(
                adc_edge(
                    "export", "--weights", args.weights, "--model", MODEL, "--img-size", args.img_size,
                    "--model-arg", f"depth={args.depth}", "--crop-pct", 1, "--split", args.split, "--num-classes", 10,
                    "--batch-size", args.batch_size, "--seed", seed, "-o", bundle,
                ),
                check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            for case in CASES:
                start = time.monotonic()
                found[case].append(train(case, bundle, parts, seed, args, directory / case))
                print(f"seed {seed}, {case}: {found[case][-1]}, {time.monotonic() - start:.0f} s", flush=True)
    show("Merged passes v one step after another; accuracy in %", list(results(found)), args.json)


def results(found: dict[str, list[Trained]]) -> Iterator[Result]:
    """Means of accuracy with the standard error of the paired difference, and the medians of the paired times."""
    for case in CASES[1:]:
        pairs = list(zip(found[case], found["off"], strict=True))
        differences = [100 * (mine.accuracy - other.accuracy) for mine, other in pairs]
        error = statistics.stdev(differences) / len(pairs) ** 0.5 if len(pairs) > 1 else float("nan")
        mine, other = (100 * statistics.mean(one.accuracy for one in found[which]) for which in (case, "off"))
        yield compare(
            f"{case} v off: accuracy, {statistics.mean(differences):+.1f} ± {error:.1f} points", mine, other, "%"
        )
        ratio = statistics.median(mine.seconds / other.seconds for mine, other in pairs)
        took, reference = (statistics.median(one.seconds for one in found[which]) for which in (case, "off"))
        yield Result(f"{case} v off: from the first step to the last", took, reference, ratio, "s")


if __name__ == "__main__":
    main()
