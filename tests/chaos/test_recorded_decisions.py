"""Ratio, precision and micro-batches change in a run, and kills change nothing: recorded decisions are repeated."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from adc_edge.files import json_bytes
from adc_edge.storage.decisions import Decision
from adc_edge.storage.run_dir import DECISIONS
from tests.chaos.run import Run, compare
from tests.chaos.zygote import Child, Zygote

pytestmark = pytest.mark.slow
STEPS = 60
RECORD = [
    Decision(10, 1, 1, 10, 11, "int8", "int8", "the link became slower"),
    Decision(20, 4, 2, 3, 9, "pca4", "pca4", "and slower"),
    Decision(30, 2, 2, 8, 6, "pca1", "pca0.25", "and slower"),
    Decision(45, 1, 1, 10, 11, "fp32", "fp16", "and fast again"),
]


def run_with_record(zygote: Zygote, bundle_dir: Path, where: Path, port: int) -> Run:
    """A run whose decisions are recorded already, as those of a process that was killed are."""
    run = Run(zygote, bundle_dir, where, port, STEPS)
    run.device_dir.mkdir()
    (run.device_dir / DECISIONS).write_bytes(json_bytes(RECORD))
    return run


def kill(*children: Child) -> None:
    for child in children:
        child.signal(signal.SIGKILL)
        child.wait(10)


def test_recorded_decisions_hold_through_kills_of_both_sides_bit_for_bit(
    zygote: Zygote, bundle_dir: Path, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    quiet = run_with_record(zygote, bundle_dir, tmp_path / "undisturbed", free_port())
    expected = quiet.undisturbed()
    lines = [json.loads(line) for line in (quiet.device_dir / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["precision"]) for line in lines if line["kind"] == "plan"] == [
        (decision.step, decision.precision) for decision in RECORD
    ]
    up = {line["step"]: line["bytes_up"] for line in lines if line["kind"] == "step"}
    assert up[35] < up[25] < up[15] < up[5]

    run = run_with_record(zygote, bundle_dir, tmp_path / "run", free_port())
    trainer, device = run.trainer(), run.device(run.endpoint)
    run.reach(11)
    kill(device)
    device = run.device(run.endpoint)
    run.reach(22)
    kill(trainer)
    trainer = run.trainer()
    run.reach(33)
    kill(device, trainer)
    trainer, device = run.trainer(), run.device(run.endpoint)
    run.reach(47)
    kill(trainer, device)
    trainer, device = run.trainer(), run.device(run.endpoint)
    assert device.wait(100) == 0, run.logs()
    assert trainer.wait(20) == 0, run.logs()
    compare(expected, run.outcome())
