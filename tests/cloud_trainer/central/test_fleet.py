"""Two devices whose trunks become one, judged by their trainer, and merged from the trainer's run alone."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adc_edge.cloud_trainer.runner import Trainer
from adc_edge.cloud_trainer.settings import TrainerSettings
from adc_edge.data.sources import load_dataset
from adc_edge.export.merge import merge_runs
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.run_dir import METRICS
from tests.edge_runtime.fleet.device import serve


@pytest.mark.parametrize("mode", ["averaged", "sequential"])
def test_the_trainer_judges_the_fleets_trunk_and_the_merged_model_gets_the_same_right(
    mode: Any, bundle: Bundle, tmp_path: Path, eventually: Any
) -> None:
    run = tmp_path / "cloud"
    settings = TrainerSettings(
        bundle.path,
        "tcp://127.0.0.1:*",
        run=run,
        device="cpu",
        devices=2,
        threads=1,
        mode=mode,
        average_every=2,
        data="digits",
        evaluate_every=4,
        evaluate_images=0,
    )
    trainer = threading.Thread(target=lambda: Trainer(settings, Console(quiet=True), stop=lambda: False).run())
    trainer.start()
    eventually((run / "endpoint").exists)
    endpoint = (run / "endpoint").read_text()

    def work(seed: int) -> None:
        serve(bundle, endpoint, tmp_path / f"device-{seed}", steps=4, seed=seed)

    devices = [threading.Thread(target=work, args=(seed,)) for seed in (0, 1)]
    for thread in devices:
        thread.start()
    for thread in (*devices, trainer):
        thread.join(120)
        assert not thread.is_alive()
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    central = [line for line in lines if line.get("source") == "central"]
    merged = merge_runs(None, run, tmp_path / "model.safetensors", dataset=load_dataset("digits"))
    assert central[-1]["head_step"] == merged.step == 8
    assert central[-1]["round"] == merged.round
    assert sorted(merged.trunk.values()) == [4, 4]
    assert merged.trunk == merged.head
    assert merged.score is not None
    assert central[-1]["images"] == merged.score.images == 360
    assert central[-1]["accuracy"] * 360 == pytest.approx(merged.score.right, abs=1)  # batches of other sizes may tie
