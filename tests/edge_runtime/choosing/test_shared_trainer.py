"""`serve --plan auto` at a trainer that begins to work for another device: that is no slow link."""

from __future__ import annotations

import json
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from adc_edge.cloud_trainer.server import Server
from adc_edge.data.sources import load_dataset
from adc_edge.edge_runtime.classes.labels import DeviceClasses
from adc_edge.edge_runtime.runner import Serve
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.storage.bundle import Bundle
from tests.stub_device import training_beside

JOINS, STEPS = 10, 30


def test_the_settings_stay_when_a_second_device_joins_on_a_fast_link(
    bundle: Bundle, server: Server, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = ServeSettings(
        bundle.path, server.endpoint, run=run, threads=1, steps=STEPS, evaluate_images=16, plan="auto", micro_batches=1
    )
    classes = DeviceClasses(load_dataset("digits"), bundle.manifest)
    others: list[Any] = []
    with ExitStack() as stack:

        def stop() -> bool:
            if getattr(serve, "state", None) is not None and serve.state.step >= JOINS and not others:
                others.append(stack.enter_context(training_beside(bundle, server.endpoint, 1000, classes)))
            return False

        serve = Serve(settings, Console(quiet=True), stop=stop)
        report = serve.run()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    late = [line for line in lines if line["kind"] == "step" and line["step"] >= STEPS - 10]
    assert report["changes"] == 0, [line for line in lines if line["kind"] == "plan"]
    assert report["seconds_cloud_wait"] > 0
    waited, link = (statistics.median(line[f"seconds_{name}"] for line in late) for name in ("cloud_wait", "link"))
    assert link < waited
    assert all(0 < line["trainer_share"] < 1 for line in late)
