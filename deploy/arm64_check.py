"""The checks of deploy/arm64.sh. This file runs on the host, and its part `device` runs under the emulator.

The host exports a small bundle and runs real trainers on loopback. The device imports its modules, computes the golden
pair and trains over an encrypted connection. The same run with a device on the host must give the same losses.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

EXPORT = (
    "--model vit_tiny_patch16_224 --model-arg patch_size=4 --img-size 16 --model-arg embed_dim=64 "
    "--model-arg num_heads=4 --model-arg depth=4 --num-classes 10 --split 2 --ratio 0.4 "
    "--batch-size 16 --precision fp32"
)
STEPS = {"frozen": 30, "train": 12}
TOLERANCE = 1e-4  # of activations, relative to the largest; fp32 on both sides, with other instructions
LOSS_TOLERANCE = 1e-3  # of the losses of a run, relative; rounding errors add up over the steps
SIZE_MB = 250  # largest installation of a device with a frozen trunk
# A module that imports one of these belongs to an extra that a light device does not have.
EXTRAS = set(
    "torch timm onnx onnxscript torchvision sklearn tensorrt cuda pandas matplotlib jinja2 joblib skimage "
    "prometheus_client starlette uvicorn zstandard cryptography".split()
)
LIMIT_S = 300.0  # for each process


class Failed(Exception):
    """A check failed."""


class Run(NamedTuple):
    """The results of one training, from the device's files."""

    report: dict[str, Any]
    losses: list[float]
    seconds: float


def main() -> None:
    """Run the part `host OUT` on this machine, or the part `device BUNDLE` under the emulator."""
    parser = argparse.ArgumentParser(description=__doc__)
    roles = parser.add_subparsers(dest="role", required=True)
    host = roles.add_parser("host")
    host.add_argument("out", type=Path)
    host.add_argument("--setup-seconds", type=int, default=0)
    host.add_argument("--train", action="store_true")
    roles.add_parser("device").add_argument("bundle", type=Path)
    arguments = parser.parse_args()
    if arguments.role == "device":
        print(json.dumps(describe_device(arguments.bundle)))
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the trainer ends with this process
    try:
        print(prove(arguments.out, arguments.train, arguments.setup_seconds))
    except Failed as error:
        raise SystemExit(f"arm64: FAILED: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


# The part that runs under the emulator.


def describe_device(bundle_path: Path) -> dict[str, Any]:
    """Import all modules and check the golden pair. Return the versions and the differences."""
    from adc_edge.edge_runtime.engines.onnxruntime import OnnxEngine
    from adc_edge.onnx.golden import check_golden
    from adc_edge.storage.bundle import CLIENT, Bundle

    importlib.import_module("adc_edge.edge_runtime.runner")
    assert "torch" not in sys.modules, "a frozen device imports torch"
    bundle = Bundle.load(bundle_path, (CLIENT,))
    with OnnxEngine(bundle.path / CLIENT, bundle.manifest.trunk) as engine:
        found = check_golden(bundle, engine)
    modules = list(import_all())
    import zmq

    needs = [line for line in metadata.requires("adc-edge") or [] if ";" not in line]  # the other lines are extras
    names = [name.group() for name in map(re.compile(r"[\w.-]+").match, needs) if name]
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in names},
        "libzmq": zmq.zmq_version(),
        "curve": bool(zmq.has("curve")),
        "modules": len(modules),
        "torch": metadata.version("torch") if "torch" in sys.modules else None,
        **found._asdict(),
    }


def import_all() -> Iterator[str]:
    """Import every module of adc-edge, except those of an extra that is not installed. Yield their names."""
    import adc_edge

    for module in pkgutil.walk_packages(adc_edge.__path__, "adc_edge."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
            yield module.name
        except ImportError as error:
            if (error.name or "").partition(".")[0] not in EXTRAS:
                raise


# The part that runs on the host.


def prove(out: Path, train: bool, setup_seconds: int) -> str:
    """Run all checks. Return the table for the docs. Raises Failed with the check that failed."""
    work = out / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    started = time.monotonic()
    bundle, images = work / "bundle", make_images(work / "images.npz")
    command([sys.executable, "-m", "adc_edge", "export", *EXPORT.split(), "-o", bundle], work / "export.log")
    make_all_keys(work / "keys")
    exported = time.monotonic() - started
    arm64 = [str(out / "python")]

    started = time.monotonic()
    device = json.loads(command([*arm64, __file__, "device", bundle], work / "device.log").splitlines()[-1])
    rows = check_device(device, time.monotonic() - started)
    health = command([*arm64, "-m", "adc_edge", "doctor", "--health", "--bundle", bundle], work / "doctor.log").strip()
    rows.append(("`doctor --health`", health, ""))
    for trunk in ("frozen", "train") if train else ("frozen",):
        runs = [
            train_once(python, trunk, bundle, images, work / f"{trunk}-{name}")
            for name, python in (("x86", [sys.executable]), ("arm64", arm64))
        ]
        rows += compare(trunk, *runs)
    rows += check_size([out / "adc-edge", out / "packages"], "frozen trunk", SIZE_MB)
    if train:
        rows += check_size([out / "torch"], "PyTorch for `--trunk train`, on top", None)
    rows.append(("set-up; export, keys and data on the host", "", f"{setup_seconds} + {exported:.0f} s"))
    from adc_edge.markdown import markdown_table

    return "\n" + markdown_table(("on ARM64", "found", "time"), rows)


Rows = list[tuple[str, str, str]]  # check, result, time


def check_device(device: Mapping[str, Any], seconds: float) -> Rows:
    """Rows about the device's description of itself. Raises Failed if it is wrong."""
    versions = ", ".join(f"{name} {version}" for name, version in device["versions"].items())
    print(f"arm64: {device['machine']}, Python {device['python']}, {versions}, libzmq {device['libzmq']}")
    if device["machine"] != "aarch64":
        raise Failed(f"the device's machine is {device['machine']}, not aarch64")
    if not device["curve"]:
        raise Failed("the device's libzmq has no CURVE encryption")
    if device["assignment"] < 1 or device["tokens"] < 1 or not device["difference"] <= TOLERANCE:
        raise Failed(
            f"the golden pair: {device['assignment']:.0%} of assignments and {device['tokens']:.0%} of tokens are the "
            f"host's, activations differ by {device['difference']:.1e} of the largest (at most {TOLERANCE:.0e})"
        )
    torch = f", torch {device['torch']}" if device["torch"] else ""
    engine = f"numpy {device['versions']['numpy']}, onnxruntime {device['versions']['onnxruntime']}{torch}"
    same = f"every assignment and token; activations within {device['difference']:.1e} of the largest"
    return [
        ("device", f"{device['machine']}, Python {device['python']}, {engine}, libzmq {device['libzmq']}", ""),
        ("modules of adc-edge that import there", str(device["modules"]), ""),
        ("golden pair v the host's", same, f"{seconds:.0f} s, imports included"),
    ]


def train_once(python: list[str], trunk: str, bundle: Path, images: Path, work: Path) -> Run:
    """Train once: a real trainer on the host and a device, each in its process, over an encrypted connection."""
    keys = work.parent / "keys"
    cloud, device, report = work / "cloud", work / "device", work / "report.json"
    work.mkdir()
    steps, learning = STEPS[trunk], ["--lr", "2e-3", "--threads", "1"]
    listen: list[str | Path] = [
        "--bundle", bundle, "--bind", "tcp://127.0.0.1:*", "--keys", keys / "trainer", "--run", cloud, "--devices", "1",
    ]  # fmt: skip
    with trainer([*listen, *learning], cloud / "endpoint", work / "trainer.log") as process:
        started = time.monotonic()
        address = (cloud / "endpoint").read_text()
        serve: list[str | Path] = [
            "serve", "--bundle", bundle, "--trainer", address, "--keys", keys / "device", "--data", f"npz:{images}",
            "--trunk", trunk, "--engine", "onnxruntime", "--steps", str(steps), "--eval-images", "32",
            "--run", device, "--report", report, *learning,
        ]  # fmt: skip
        command([*python, "-m", "adc_edge", *serve], work / "device.log")
        seconds = time.monotonic() - started
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        if process.returncode != 0:  # None: still running, although its only device is done
            raise Failed(f"the trainer ended with exit code {process.returncode}, see {work / 'trainer.log'}")
    learned = [line["body_bytes_up"] for line in metrics(cloud)]
    if len(learned) != steps or min(learned) <= 0:
        raise Failed(f"the trainer recorded {len(learned)} of {steps} steps")
    return Run(json.loads(report.read_text()), [line["loss"] for line in metrics(device)], seconds)


def compare(trunk: str, host: Run, device: Run) -> Rows:
    """Rows about the device's run. Raises Failed unless it did all steps, learned, and agrees with the host's run."""
    report, steps = device.report, STEPS[trunk]
    if not report["complete"] or report["steps"] != steps or len(device.losses) != steps:
        raise Failed(f"{trunk} trunk: {report['steps']} of {steps} steps reported, {len(device.losses)} logged")
    missing = {"images", "accuracy", "loss", "xi", "precision", "seconds_forward", "peak_memory_mb"} - report.keys()
    if missing or report["images"] != steps * 16 or report["outages"]:
        raise Failed(f"{trunk} trunk: the report lacks {missing or 'nothing'}, or counts wrongly: {report}")
    third = steps // 3
    first, last = (sum(part) / third for part in (device.losses[:third], device.losses[-third:]))
    if not last < first:
        raise Failed(f"{trunk} trunk: the loss does not fall: {first:.3f} in the first third, {last:.3f} in the last")
    apart = max(abs(ours - theirs) / theirs for ours, theirs in zip(device.losses, host.losses, strict=True))
    if not apart <= LOSS_TOLERANCE:
        raise Failed(f"{trunk} trunk: losses differ by {apart:.1e} from the same run on x86 (at most {LOSS_TOLERANCE})")
    words = f"{steps} steps, loss {device.losses[0]:.3f} → {device.losses[-1]:.3f}, losses within {apart:.1e} of x86's"
    print(f"arm64: trunk {trunk}: {words}")
    took = f"{device.seconds:.0f} s, of which start {device.seconds - report['seconds']:.0f}; x86 {host.seconds:.0f} s"
    return [(f"`serve --trunk {trunk}`, CURVE, a trainer on the host", words, took)]


def check_size(places: list[Path], what: str, limit_mb: int | None) -> Rows:
    """A row about the installed size. Raises Failed if it is too large."""
    files = [path for place in places for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    size_mb = sum(path.stat().st_size for path in files) / 1e6
    if limit_mb is not None and size_mb > limit_mb:
        raise Failed(f"{what}: {size_mb:.0f} MB installed, at most {limit_mb}")
    bytecode = sum(path.stat().st_size for path in files if path.suffix == ".pyc") / 1e6
    return [(f"installed, {what}", f"{size_mb:.0f} MB, of which bytecode {bytecode:.0f}", "")]


def make_images(path: Path) -> Path:
    """Write images of ten classes to an npz file: each class has a brightness, under noise."""
    import numpy as np

    rng, labels = np.random.default_rng(0), np.arange(400) % 10
    images = (rng.random((400, 16, 16, 3)) * 60 + labels[:, None, None, None] * 19).astype(np.uint8)
    np.savez(path, x_train=images, y_train=labels, x_test=images[:50], y_test=labels[:50])
    return path


def make_all_keys(keys: Path) -> None:
    """Make the keys of a trainer and a device that trust each other."""
    commands: list[list[str | Path]] = [
        ["new", "--keys", keys / "trainer"],
        ["new", "--keys", keys / "device"],
        ["allow", "arm64", keys / "device" / "public.key", "--keys", keys / "trainer"],
        ["pin", keys / "trainer" / "public.key", "--keys", keys / "device"],
    ]
    for arguments in commands:
        command([sys.executable, "-m", "adc_edge", "keys", *arguments], keys.with_suffix(".log"))


def metrics(run: Path) -> list[dict[str, Any]]:
    """The steps in the metrics of a run directory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "step"]


def command(arguments: Sequence[str | Path], log: Path) -> str:
    """Run a command within the time limit. Return its output. Raises Failed with its last lines."""
    try:
        done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"not done after {LIMIT_S:.0f} s: {' '.join(map(str, arguments))}") from None
    log.write_text(done.stdout + done.stderr)
    if done.returncode:
        tail = "\n  ".join((done.stderr or done.stdout).splitlines()[-8:])
        raise Failed(f"exit code {done.returncode}, all of it in {log}\n  {tail}")
    return done.stdout


@contextmanager
def trainer(arguments: Sequence[str | Path], endpoint: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `adc-edge trainer`, and yield its process when it listens. The process ends with the block."""
    with log.open("wb") as output:
        line = [sys.executable, "-m", "adc_edge", "trainer", *map(str, arguments)]
        process = subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while not endpoint.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"the trainer did not start, see {log}")
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
