"""`serve --freeze-after`: a trunk learns, is frozen, and what it sends from then on is all that the trainer needs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console
from safetensors.numpy import load_file

from adc_edge.cli import main
from adc_edge.cloud_trainer.checkpoints import TrainerCheckpoints
from adc_edge.cloud_trainer.fleet.device_fleet import DeviceFleet
from adc_edge.cloud_trainer.fleet.settings import FleetSettings
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.data.sources import load_dataset
from adc_edge.edge_runtime.engines.onnxruntime import OnnxEngine
from adc_edge.edge_runtime.frozen.freezing import TrunkFreeze
from adc_edge.edge_runtime.frozen.length import RunLength
from adc_edge.edge_runtime.loop import DeviceLoop
from adc_edge.edge_runtime.runner import Serve
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.edge_runtime.trunk.refresher import Refresher
from adc_edge.edge_runtime.trunk.trainer import Shim
from adc_edge.errors import RefusedError
from adc_edge.evaluation.study.records import Study
from adc_edge.evaluation.study.setting import parse_setting
from adc_edge.evaluation.study.training import train
from adc_edge.export.merge import merge_runs
from adc_edge.method.split import head_from_manifest
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.storage.bundle import CLIENT, HEAD, MANIFEST, TRUNK, Bundle
from adc_edge.storage.checkpoint import checkpoint_name, load_checkpoint, save_checkpoint
from adc_edge.storage.halves import trunk_states
from tests.conftest import TINY
from tests.edge_runtime.frozen.trainers import waiting_trainer
from tests.serving import serving

OFTEN = (
    "--batch-size",
    "512",
    "--micro-batches",
    "1",
    "--epochs",
    "5",
    "--eval-images",
    "0",
    "--eval-precision",
    "fp32",
)
FROM, SENT, PLANNED = 2, 4, 10  # two steps an epoch


def command(bundle: Bundle, endpoint: str, run: Path, *more: str) -> tuple[int, str]:
    """Exit code and output of a device that trains for one epoch, and then sends another one with a frozen trunk."""
    late = ("--freeze-after", "1", "--send-epochs", "1", *OFTEN)
    arguments = ["--bundle", str(bundle.path), "--trainer", endpoint, "--run", str(run), *late, *more]
    result = CliRunner().invoke(main, ["serve", *arguments, "--report", f"{run}.json"])
    return result.exit_code, " ".join(result.output.split())


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["kind"] == kind]


def is_done(sessions: SessionRegistry) -> bool:
    return sessions.finished() == 1


def fresh_head(bundle: Bundle) -> HeadTraining:
    from safetensors.torch import load_file as load_tensors

    head = head_from_manifest(bundle.manifest)
    head.vit.load_state_dict(load_tensors(bundle.path / HEAD))
    return HeadTraining(head, OptimizerSettings(lr=1e-3))


def test_a_trunk_learns_for_an_epoch_and_the_merged_model_is_the_one_that_the_trainer_judged(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    device, trainer = tmp_path / "device", tmp_path / "trainer"
    with waiting_trainer(bundle, training, trainer) as (server, work):
        code, text = command(bundle, server.endpoint, device, "--augment", "flip")
        assert code == 0, text
        assert "trained here, on cpu, until step 2; then frozen" in text
        assert "the trunk is frozen from step 2 on: this device needs no gradient, and sends 2 steps more" in text
        assert "all is sent: the trainer does the other 6 steps, up to 10, alone" in text
        server.between = work
        eventually(lambda: server.sessions.finished() == 1)
    told = lines(device, "step")
    assert [line["gradient_precision"] for line in told] == ["fp32"] * FROM + [None] * (SENT - FROM)
    down = [line["bytes_down"] for line in told]
    assert max(down[FROM:]) < 2_000 < 100_000 < min(down[:FROM])
    kept = [line["body_bytes_up"] for line in lines(trainer, "step")]
    assert [size > 0 for size in kept] == [True] * SENT + [False] * (PLANNED - SENT)
    report = json.loads(Path(f"{device}.json").read_text())
    assert (report["frozen_from"], report["steps_alone"], report["complete"]) == (FROM, PLANNED - SENT, True)
    image = 4 * bundle.manifest.tokens * bundle.manifest.dim
    assert report["bytes_uncompressed_fp32"] == image * 512 * (2 * FROM + (SENT - FROM))

    learned, first = load_file(device / TRUNK), load_file(bundle.path / TRUNK)
    assert any(not np.array_equal(learned[name], first[name]) for name in first)
    shutil.copy(bundle.path / MANIFEST, trainer)
    merged = merge_runs(device, trainer, tmp_path / "model.safetensors", dataset=load_dataset("digits"))
    assert (merged.step, merged.frozen, [*merged.trunk.values()]) == (PLANNED, False, [FROM])
    judged = lines(trainer, "evaluation")[-1]
    assert (judged["step"], judged["images"]) == (PLANNED, 360)
    assert merged.score is not None
    assert merged.score.accuracy == pytest.approx(judged["accuracy"], abs=1.5 / 360)


@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("torch", marks=pytest.mark.slow)])
def test_what_is_kept_is_what_a_device_that_goes_on_sending_sends(
    engine: Any, bundle: Bundle, tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    """The same losses and the same trunk as where all epochs are sent, without gradients, in the same order."""
    losses, trunks = [], []
    for epochs in (0, 2):
        training, run = fresh_head(bundle), tmp_path / f"device-{epochs}"
        with waiting_trainer(bundle, training, tmp_path / f"trainer-{epochs}") as (server, work):
            settings = ServeSettings(
                bundle.path, server.endpoint, epochs=4, batch_size=512, augment="flip", freeze_after=1.0, threads=1,
                send_epochs=epochs, run=run, micro_batches=2, evaluate_images=16, engine=engine, refresh_every=3,
            )  # fmt: skip
            report = Serve(settings, Console(quiet=True), stop=lambda: False).run()
            assert report["steps"] == (6 if epochs else 8)
            server.between = work
            eventually(partial(is_done, server.sessions))
        assert training.steps == 8
        losses.append([line["loss"] for line in lines(run, "step")][:6])
        trunks.append({name: value.tobytes() for name, value in load_file(run / TRUNK).items()})
    assert losses[0] == losses[1]
    assert trunks[0] == trunks[1]


@pytest.mark.slow
def test_a_run_and_evaluate_send_the_same_bytes(bundle: Bundle, training: HeadTraining, tmp_path: Path) -> None:
    everything = ("--batch-ratio", "1", "--token-ratio", "1", "--precision", "int8")
    with waiting_trainer(bundle, training, tmp_path / "trainer") as (server, _):
        code, text = command(bundle, server.endpoint, tmp_path / "device", *everything)
        assert code == 0, text
    report = json.loads((tmp_path / "device.json").read_text())
    study = Study("digits", "vit_tiny_patch16_224", model_args=TINY, split=2, batch_size=512, epochs=5.0)
    last = train(study, parse_setting("adc@1x1/int8+freeze1"), seed=0).curve[-1]
    assert last.step == PLANNED
    assert (last.bytes_up, last.bytes_down) == pytest.approx((report["bytes_up"], report["bytes_down"]), rel=0.01)


def test_a_device_that_lost_its_frozen_trunk_is_told_so(bundle: Bundle, training: HeadTraining, tmp_path: Path) -> None:
    """The trainer has everything; the device comes back at a step before its trunk was frozen."""
    run = tmp_path / "device"
    with waiting_trainer(bundle, training, tmp_path / "trainer") as (server, _):
        assert command(bundle, server.endpoint, run, "--checkpoint-every", "1")[0] == 0
        assert trunk_states(run)[-1].final
        newest = [run / checkpoint_name(step) for step in (SENT - 1, SENT)]
        assert all(path.exists() for path in newest)
        newest[-1].write_bytes(b"damaged")
        assert command(bundle, server.endpoint, run)[0] == 0, "the older one has the frozen trunk too"
        newest[-1].unlink(missing_ok=True)
        kept = load_checkpoint(newest[0])
        newest[0].unlink()
        save_checkpoint(run, FROM - 1, kept.arrays, {"session": kept.meta["session"], "tally": kept.meta["tally"]})
        code, text = command(bundle, server.endpoint, run)
        assert code == 1
        assert f"newest checkpoint is of step {FROM - 1}; its trunk learned up to step {FROM}" in text
        assert "all is sent" not in text


@pytest.mark.parametrize("others", [("--freeze-after", "2"), ("--send-epochs", "2")])
def test_when_the_trunk_is_frozen_stays_as_the_run_began(
    others: tuple[str, str], bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    with waiting_trainer(bundle, training, tmp_path / "trainer") as (server, _):
        assert command(bundle, server.endpoint, tmp_path / "device")[0] == 0
        code, text = command(bundle, server.endpoint, tmp_path / "device", *others)
        assert code == 1
        assert f"{others[0][2:].replace('-', '_')} was 1" in text


@pytest.mark.parametrize(
    ("wish", "began", "now"),
    [
        (
            ("--freeze-after", "1", "--send-epochs", "1"),
            r"freezes its trunk at step 2 \(--freeze-after 1\) and sends 4 steps \(--send-epochs 1\)",
            "step 1 and 2 steps",
        ),
        (("--freeze-after", "1"), r"freezes its trunk at step 2 \(--freeze-after 1\)", "step 1"),
        (("--trunk", "frozen", "--send-epochs", "2"), r"sends 4 steps \(--send-epochs 2\)", "2 steps"),
    ],
)
def test_a_run_whose_data_have_fewer_images_than_at_its_start_is_refused_before_any_work(
    wish: tuple[str, ...], began: str, now: str, bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    """Steps are counted from the images; another step would be found by the trainer at the end of the run."""
    data, run = tmp_path / "data.npz", tmp_path / "device"
    images = np.random.default_rng(0).integers(0, 256, (140, 16, 16, 3), dtype=np.uint8)

    def arguments(endpoint: str) -> list[str]:
        given = ["--bundle", str(bundle.path), "--trainer", endpoint, "--run", str(run), "--data", f"npz:{data}"]
        return [*given, *wish, *OFTEN, "--batch-size", "64", "--eval-images", "8"]

    def keep(count: int) -> None:
        labels = np.arange(140, dtype=np.int64) % 10
        np.savez(data, x_train=images[:count], y_train=labels[:count], x_test=images[:20], y_test=labels[:20])

    with waiting_trainer(bundle, training, tmp_path / "trainer") as (server, _):
        keep(140)
        result = CliRunner().invoke(main, ["serve", *arguments(server.endpoint)])
        assert result.exit_code == 0, result.output
        kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        keep(120)
        result = CliRunner().invoke(main, ["serve", *arguments(server.endpoint)])
        text = " ".join(result.output.split())
        assert result.exit_code == 1
        assert re.search(rf"{began}, and with the data of now it would be {now} ", text), text
        assert "restore the images of npz:" in text
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == kept
        keep(140)
        assert CliRunner().invoke(main, ["serve", *arguments(server.endpoint)]).exit_code == 0


def test_a_trainer_that_keeps_nothing_takes_the_frozen_steps_one_by_one(
    bundle: Bundle, server: Server, tmp_path: Path
) -> None:
    settings = ServeSettings(
        bundle.path, server.endpoint, steps=5, batch_size=64, freeze_after=3 / 22, run=tmp_path / "run", threads=1,
        evaluate_images=16, micro_batches=1,
    )  # fmt: skip
    report = Serve(settings, Console(quiet=True), stop=lambda: False).run()
    assert (report["steps"], report["frozen_from"], report["complete"]) == (5, 3, True)
    assert [line["gradient_precision"] for line in lines(tmp_path / "run", "step")] == ["fp32"] * 3 + [None] * 2


def test_nothing_of_a_frozen_trunk_waits_for_a_gradient(bundle: Bundle) -> None:
    """PyTorch as the engine keeps a graph for each message while the trunk learns, and none afterwards."""
    shim = Shim(bundle.manifest.trunk, bundle.path / TRUNK, OptimizerSettings(lr=1e-2))
    images = np.random.default_rng(0).standard_normal((4, 3, 16, 16), np.float32)
    with OnnxEngine(bundle.path / CLIENT, bundle.manifest.trunk) as engine:
        refresher = Refresher(shim, every=4)
        refresher.follow(engine)
        loop: Any = DeviceLoop.__new__(DeviceLoop)
        loop.shim, loop.refresher = shim, refresher
        freeze = TrunkFreeze(loop, RunLength(10, 6, 1))
        assert not freeze.follow(0)
        old = engine.full_output(images)
        shim.compress(images, np.arange(2, dtype=np.int64), 5)
        shim.backward(np.ones((2, 6, bundle.manifest.dim), np.float32))
        shim.update(0, 10)
        assert np.array_equal(engine.full_output(images), old), "refreshed every four steps"
        assert freeze.follow(1)
        assert (loop.shim, loop.refresher, freeze.follow(2)) == (None, None, False)
        np.testing.assert_allclose(engine.full_output(images), shim.full_output(images), atol=1e-4)
        assert not np.allclose(engine.full_output(images), old, atol=1e-3)
        shim.compress(images, np.arange(2, dtype=np.int64), 5)
        assert shim.waiting == 0
        freeze.thaw()
        assert loop.shim is shim
        shim.compress(images, np.arange(2, dtype=np.int64), 5)
        assert shim.waiting == 1


def test_a_trainer_that_brings_trunks_together_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    training, sessions = fresh_head(bundle), SessionRegistry(tmp_path / "log")
    checkpoints = TrainerCheckpoints(training, sessions)
    fleet = DeviceFleet(FleetSettings(mode="averaged"), bundle, sessions, checkpoints.record)
    with serving(Server(bundle, training, "tcp://127.0.0.1:*", sessions, checkpoints, fleet=fleet)) as server:
        settings = ServeSettings(bundle.path, server.endpoint, steps=50, freeze_after=1.0, batch_size=64)
        with pytest.raises(RefusedError, match="--mode averaged"):
            Serve(settings, Console(quiet=True), stop=lambda: False).run()
