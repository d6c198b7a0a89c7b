"""A device with a frozen trunk: a virtual environment with the light dependencies, without torch and timm."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adc_edge.cli import COMMANDS
from deploy import arm64_check

ROOT = Path(__file__).parents[1]
TOP = set("torch timm onnx torchvision onnxscript pandas matplotlib jinja2 joblib skimage".split())
TOP |= {"prometheus_client", "starlette", "uvicorn", "zstandard", "cryptography"}


def test_the_arm64_check_expects_no_more_of_a_device() -> None:
    assert TOP <= arm64_check.EXTRAS


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment in which adc-edge is installed as a wheel."""
    path = tmp_path_factory.mktemp("bare")
    venv.create(path, with_pip=True)
    python = path / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(ROOT)], check=True, timeout=280)
    return python


def run(python: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=200, cwd=python.parent
    )


@pytest.mark.slow
def test_the_environment_has_no_torch_and_every_help_is_printed(bare: Path) -> None:
    installed = {p["name"].lower() for p in json.loads(run(bare, "-m", "pip", "list", "--format", "json").stdout)}
    assert not installed & TOP
    for command in ("", *COMMANDS):
        result = run(bare, "-m", "adc_edge", *command.split(), "--help")
        assert result.returncode == 0, result.stderr
        assert "Usage:" in result.stdout


@pytest.mark.slow
def test_every_module_imports_or_lacks_only_an_extra(bare: Path) -> None:
    code = f"""
import importlib, pkgutil, adc_edge
for module in pkgutil.walk_packages(adc_edge.__path__, "adc_edge."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        assert error.name and error.name.partition(".")[0] in {TOP!r}, (module.name, error)
        print(module.name)
"""
    result = run(bare, "-c", code)
    assert result.returncode == 0, result.stderr
    lacking = set(result.stdout.split())
    assert {
        "adc_edge.method.trunk",
        "adc_edge.export.graph",
        "adc_edge.cloud_trainer.head",
        "adc_edge.evaluation.report.views",
    } <= lacking
    calibrating = {f"adc_edge.calibration.int8.{m}" for m in ("graph", "quality", "compare", "calibrate")}  # on a host
    drawing = {"adc_edge.calibration.plan.plot"}
    assert {m for m in lacking if m.startswith("adc_edge.calibration")} == calibrating | drawing
    training = {f"adc_edge.edge_runtime.{m}" for m in ("trunk.trainer", "engines.torch")}
    assert {m for m in lacking if m.startswith("adc_edge.edge_runtime")} == training


@pytest.mark.slow
def test_a_device_in_it_trains_the_head(bare: Path, bundle_dir: Path, tmp_path: Path, command: Any) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 10
    images = (rng.random((400, 16, 16, 3)) * 60 + labels[:, None, None, None] * 19).astype(np.uint8)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=images[:50], y_test=labels[:50])
    cloud = tmp_path / "cloud"
    with command("trainer", "--bundle", bundle_dir, "--bind", "tcp://127.0.0.1:*", "--run", cloud, "--lr", "3e-3"):
        while not (cloud / "endpoint").exists():
            pass
        serve = (
            "-X", "importtime", "-m", "adc_edge", "serve", "--bundle", bundle_dir, "--trainer",
            (cloud / "endpoint").read_text(), "--data", f"npz:{tmp_path / 'd.npz'}", "--trunk", "frozen",
            "--epochs", "4", "--report", tmp_path / "run.json",
        )  # fmt: skip
        result = run(bare, *serve)
        assert result.returncode == 0, result.stderr[-2000:]
        nobody = ("--trainer", "tcp://127.0.0.1:9", "--wait", "0.1")
        digits = run(bare, "-m", "adc_edge", "serve", "--bundle", bundle_dir, "--trunk", "frozen", *nobody)
        training = run(bare, *serve[2:11])  # without --trunk frozen
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["steps"] == 100
    assert report["peak_memory_mb"] < 300
    assert report["loss"] < report["loss_first"]
    assert "1,437 train, 360 test" in digits.stdout  # they come with adc-edge
    assert "no trainer at" in digits.stderr
    assert training.returncode == 1
    assert "pip install 'adc-edge[train]'" in training.stderr
