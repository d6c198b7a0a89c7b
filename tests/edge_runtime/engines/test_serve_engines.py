"""`serve` with each engine and precision, against a real trainer: they train alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adc_edge.calibration.int8.calibrate import CalibrationSettings as CalibrationSettings
from adc_edge.calibration.int8.calibrate import calibrate_bundle
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.edge_runtime.engines import onnxruntime as onnx_engine
from adc_edge.edge_runtime.engines.providers import Opened, open_session
from adc_edge.edge_runtime.runner import Serve
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.errors import CheckpointError, EngineError, LinkError
from adc_edge.files import json_bytes
from adc_edge.method.ratio import Ratio
from adc_edge.method.split import head_from_manifest
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.storage.bundle import CLIENT, Bundle
from adc_edge.storage.decisions import Decision
from adc_edge.storage.run_dir import DECISIONS
from tests.edge_runtime.engines.tensorrt.fake_tensorrt import Machine, installed
from tests.serving import serving
from tests.wrong_graph import change_weight


def train(bundle: Bundle, log: Path, steps: int, **more: Any) -> list[float]:
    """Losses of a device with these settings, and a trainer that starts anew."""
    training = HeadTraining(head_from_manifest(bundle.manifest), OptimizerSettings("sgd", lr=1e-2))
    with serving(Server(bundle, training, "tcp://127.0.0.1:*", SessionRegistry(log))) as server:
        learning = OptimizerSettings("sgd", lr=1e-2)
        settings = ServeSettings(
            bundle.path, server.endpoint, steps=steps, run=log / "run", threads=1, evaluate_images=32,
            optimizer=learning, **more,
        )  # fmt: skip
        report = Serve(settings, Console(quiet=True), stop=lambda: False).run()
    assert report["steps"] == steps
    lines = [json.loads(line) for line in (log / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


def alike(losses: Callable[..., list[float]], cache: Path) -> list[float]:
    """Check that fp16 and TensorRT have the losses of fp32, and return these."""
    reference = losses("fp32")
    assert losses("fp16", compute="fp16") == pytest.approx(reference, abs=0.02)
    with installed(Machine()) as machine:
        assert losses("tensorrt", engine="tensorrt", engine_cache=cache) == pytest.approx(reference, abs=0.02)
    assert machine.gpu.memory == {}
    return reference


@pytest.mark.parametrize("trunk", ["train", "frozen"])
def test_every_engine_and_precision_trains_alike(trunk: str, half: Bundle, tmp_path: Path) -> None:
    import torch

    def losses(name: str, **more: Any) -> list[float]:
        torch.manual_seed(0)  # of the head's first weights
        return train(half, tmp_path / name, 5, trunk=trunk, **more)

    reference = alike(losses, tmp_path / "engines")
    if trunk == "frozen":
        calibrate_bundle(CalibrationSettings(half.path, "digits", images=16, eval_images=32, max_drop=100.0))
        assert losses("int8", compute="int8") == pytest.approx(reference, abs=0.05)
    assert len(list((tmp_path / "engines").glob("*.engine"))) == 1


def test_every_engine_gets_the_last_weights_of_a_trunk_that_is_frozen_on_the_way(half: Bundle, tmp_path: Path) -> None:
    """Two of 89 steps of an epoch; the engines would be refreshed after three."""
    import torch

    def losses(name: str, **more: Any) -> list[float]:
        torch.manual_seed(0)  # of the head's first weights
        return train(half, tmp_path / name, 5, freeze_after=2 / 89, refresh_every=3, **more)

    alike(losses, tmp_path / "engines")


def test_an_engine_is_built_for_the_largest_messages_of_recorded_decisions(half: Bundle, tmp_path: Path) -> None:
    run = tmp_path / "log" / "run"
    run.mkdir(parents=True)
    clusters, tokens = 16, half.manifest.tokens
    run.joinpath(DECISIONS).write_bytes(json_bytes([Decision(2, 1, 1, clusters, tokens, "int8", "int8", "before")]))
    with installed(Machine()):
        more = {"engine": "tensorrt", "engine_cache": tmp_path / "engines", "batch_size": 16, "micro_batches": 4}
        assert len(train(half, tmp_path / "log", 4, ratio=Ratio(xi=1.0), **more)) == 4


def test_a_run_stays_with_the_precision_that_it_began_with(half: Bundle, tmp_path: Path) -> None:
    train(half, tmp_path / "log", 1)
    with pytest.raises(CheckpointError, match="compute"):
        train(half, tmp_path / "log", 2, compute="fp16")


def elsewhere(model: Path) -> Callable[..., Opened]:
    """Simulate a CUDA provider that computes another graph."""
    return lambda path, provider, threads: Opened(
        open_session(str(model), "cpu", threads).session, "cuda", "for a test"
    )


def test_a_provider_that_computes_something_else_is_refused_before_training(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_weight(bundle.path / CLIENT, tmp_path / "wrong.onnx", "blocks.1.mlp.fc2.bias", lambda bias: bias + 0.1)
    monkeypatch.setattr(onnx_engine, "open_session", elsewhere(tmp_path / "wrong.onnx"))
    with pytest.raises(EngineError, match="the golden pair"):
        train(bundle, tmp_path / "log", 1, trunk="frozen")


def test_a_run_that_is_resumed_elsewhere_says_so(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ServeSettings(bundle.path, "tcp://127.0.0.1:9", run=tmp_path / "run", trunk="frozen", wait_s=0.1)
    texts = []
    for provider in ("cpu", "cpu", "cuda"):
        if provider == "cuda":
            monkeypatch.setattr(onnx_engine, "open_session", elsewhere(bundle.path / CLIENT))
        caplog.clear()
        with pytest.raises(LinkError):
            Serve(settings, Console(quiet=True), stop=lambda: False).run()
        texts.append(caplog.text)
    warning = "this run has computed with onnxruntime (cpu) so far, now onnxruntime (cuda)"
    assert [warning in text for text in texts] == [False, False, True]
