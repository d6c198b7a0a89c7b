"""DeiT-Tiny with real weights on real CIFAR-10 images, where a machine has them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from adc_edge.codec.precision import Precision, encoded_bytes
from adc_edge.wire.messages import TRIPLE_BYTES


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("options", "precisions", "xi", "steps", "least"),
    [
        pytest.param(["--ratio", "0.4", "--precision", "fp16"], ("fp16", "fp16"), 0.4, 60, 0.5, id="ADC in fp16"),
        pytest.param([], ("pca1", "pca0.25"), 1.0, 40, 0.6, id="the defaults"),
    ],
)
def test_deit_tiny_learns_cifar10_over_the_wire(
    options: list[str],
    precisions: tuple[Precision, Precision],
    xi: float,
    steps: int,
    least: float,
    shared_data: Path,
    tmp_path: Path,
    command: Any,
) -> None:
    bundle, report_file = tmp_path / "out", tmp_path / "run.json"
    with command(
        "export", "--model", "deit_tiny_patch16_224", "--weights", shared_data / "deit_tiny_patch16_224.safetensors",
        "--split", "6", "--num-classes", "10", "--img-size", "112", "--crop-pct", "1", *options,
        "--batch-size", "64", "-o", bundle,
    ) as export:  # fmt: skip
        code, output = export.finish()
        assert code == 0, output
    cloud = tmp_path / "cloud"
    with command(
        "trainer", "--bundle", bundle, "--bind", "tcp://127.0.0.1:*", "--run", cloud, "--lr", "1e-4", "--devices", "1",
        "--threads", "1",
    ) as trainer:  # fmt: skip
        while not (cloud / "endpoint").exists():
            assert trainer.process.poll() is None
            time.sleep(0.1)
        with command(
            "serve", "--bundle", bundle, "--trainer", (cloud / "endpoint").read_text(), "--data",
            f"npz:{shared_data / 'cifar10_subset.npz'}", "--report", report_file, "--lr", "1e-4", "--steps", str(steps),
            "--eval-every", "20", "--eval-images", "200", "--threads", "1",
        ) as edge:  # fmt: skip
            code, output = edge.finish(600)
            assert code == 0, output
    report = json.loads(report_file.read_text())
    accuracy = [evaluation["accuracy"] for evaluation in report["evaluations"]]
    assert report["loss"] < 0.8 * report["loss_first"]
    assert accuracy[-1] > least
    assert accuracy[-1] > accuracy[0]
    assert (report["precision"], report["gradient_precision"]) == precisions
    assert report["xi"] == pytest.approx(xi, rel=0.01)
    rows = round(report["xi"] * 64 * 50)
    for way, precision in zip(("up", "down"), precisions, strict=True):
        labels = TRIPLE_BYTES * 64 * (way == "up")  # no row has more than each image's own
        booked = report["steps"] * (encoded_bytes((rows, 192), precision) + labels)
        assert report[f"bytes_{way}"] == pytest.approx(booked, rel=0.02)
