"""A short run of a real device, and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.numpy import load_file

from adc_edge.arrays import Weights
from adc_edge.edge_runtime.runner import Serve
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.storage.bundle import Bundle


def serve(
    bundle: Bundle, endpoint: str, run: Path | None, stop: Callable[[], bool] = lambda: False, **more: Any
) -> dict[str, Any]:
    given: dict[str, Any] = {"threads": 1, "evaluate_images": 16, "steps": 10, "optimizer": OptimizerSettings(lr=1e-3)}
    given |= {"checkpoint_every": 3, "micro_batches": 1} | more
    return Serve(ServeSettings(bundle.path, endpoint, run=run, **given), Console(quiet=True), stop=stop).run()


def lines_of(run: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of a kind in metrics.jsonl."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def done(run: Path, steps: int) -> Callable[[], bool]:
    """Tells when the device itself has done its first ``steps`` steps.

    A trainer counts a step before its answer arrives. A device that is asked to stop meanwhile drops that step.
    """
    metrics = run / "metrics.jsonl"
    return lambda: metrics.exists() and len({line["step"] for line in lines_of(run, "step")}) >= steps


def averages(run: Path) -> list[dict[str, Any]]:
    return lines_of(run, "average")


def trunk(run: Path) -> Weights:
    return load_file(run / "trunk.safetensors")


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)
