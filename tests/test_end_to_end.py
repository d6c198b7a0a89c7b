"""Export, trainer, serve and merge between real processes on loopback."""

from __future__ import annotations

import json
import logging
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import timm
import torch
from rich.console import Console
from safetensors.torch import load_file

from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.data import sources as data
from adc_edge.data.loader import Loader
from adc_edge.edge_runtime.noise import NoiseSettings
from adc_edge.edge_runtime.runner import Serve
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.method import adc
from adc_edge.method.split import Head, create_vit, head_from_manifest, split_vit
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.journal import Journal

FIELDS = [
    "steps",
    "images",
    "bytes_up",
    "bytes_down",
    "accuracy",
    "loss",
    "seconds",
    "seconds_forward",
    "seconds_link",
    "seconds_cloud",
    "seconds_backward",
    "rtt_ms",
    "up_mbit_s",
    "down_mbit_s",
    "xi",
    "precision",
]
ONE_THREAD = ["--threads", "1"]


def endpoint_of(run: Path) -> str:
    deadline = time.monotonic() + 60
    while not (run / "endpoint").exists():
        assert time.monotonic() < deadline, "the trainer never listened"
        time.sleep(0.05)
    return (run / "endpoint").read_text()


@pytest.fixture
def trainer(bundle_dir: Path, tmp_path: Path, command: Any) -> Callable[..., Any]:
    """Start `adc-edge trainer` as a process: ``with trainer(run, *options) as (process, endpoint)``."""

    @contextmanager
    def start(run: Path, *options: str, bind: str = "tcp://127.0.0.1:*") -> Iterator[tuple[Any, str]]:
        (run / "endpoint").unlink(missing_ok=True)
        with command("trainer", "--bundle", bundle_dir, "--bind", bind, "--run", run, *ONE_THREAD, *options) as process:
            yield process, endpoint_of(run)

    return start


@pytest.fixture
def cloud(bundle: Bundle, tmp_path: Path) -> Callable[[OptimizerSettings], Any]:
    """Start a trainer's socket and head in a thread: ``with cloud(settings) as endpoint``."""

    @contextmanager
    def start(optimizer: OptimizerSettings) -> Iterator[str]:
        head = head_from_manifest(bundle.manifest)
        head.vit.load_state_dict(load_file(bundle.path / "head.safetensors"))
        server = Server(
            bundle,
            HeadTraining(head, optimizer),
            "tcp://127.0.0.1:*",
            SessionRegistry(tmp_path / f"log-{time.monotonic_ns()}"),
        )
        over = threading.Event()
        thread = threading.Thread(target=server.serve, args=(over.is_set,))
        thread.start()
        try:
            yield server.endpoint
        finally:
            over.set()
            thread.join()
            server.close()

    return start


def settings(bundle: Path, endpoint: str, **more: Any) -> ServeSettings:
    return ServeSettings(bundle, endpoint, **({"threads": 1, "evaluate_images": 64} | more))


def serve(chosen: ServeSettings) -> dict[str, Any]:
    return Serve(chosen, Console(quiet=True), stop=lambda: False).run()


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


def has_learned(run: Path) -> bool:
    """Whether the last third of the steps has a lower mean loss than the first: single batches differ by more."""
    values = losses(run)
    third = len(values) // 3
    return statistics.mean(values[-third:]) < statistics.mean(values[:third])


def in_process(bundle: Bundle, steps: int, optimizer: OptimizerSettings, micro_batches: int = 1) -> list[float]:
    """The losses of the same training as one plain PyTorch loop, without a wire."""
    manifest = bundle.manifest
    vit = create_vit(manifest.model, manifest.model_args, manifest.classes)
    vit.load_state_dict(load_file(bundle.path / "trunk.safetensors") | load_file(bundle.path / "head.safetensors"))
    trunk, _ = split_vit(vit, manifest.split)
    head = Head(vit, manifest.split)
    learn = torch.optim.AdamW([*trunk.parameters(), *head.parameters()], lr=optimizer.lr, weight_decay=0.0)
    loader = Loader(data.load_dataset("digits").train, manifest.preprocessing, manifest.batch_size)
    size = manifest.batch_size // micro_batches
    shape = manifest.ratio.shape(size, manifest.tokens, manifest.prefix)
    result = []
    for step in range(steps):
        batch = loader.batch(step)
        learn.zero_grad()
        losses = []
        for number in range(micro_batches):
            rows = slice(number * size, (number + 1) * size)
            images, labels = torch.from_numpy(batch.images[rows]), torch.from_numpy(batch.labels[rows])
            with torch.no_grad():
                x = trunk.embed(images)
                for block in trunk.blocks[:-1]:
                    x = block(x)
                last = trunk.blocks[-1]
                q, k, _ = last.attn.all_three(last.norm1(x))  # type: ignore[operator, union-attr]
                scores = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)[:, :, 0].mean(1)
            init_rows = torch.from_numpy(loader.init_rows(step, shape.clusters, size, number))
            assignment, counts = adc.kmeans(scores, init_rows)
            used = [t for t in range(shape.clusters) if counts[t] > 0]
            z = trunk(images)
            one_hot = torch.nn.functional.one_hot(labels, manifest.classes).float()
            members = [assignment == t for t in used]
            merged = torch.stack([z[m].mean(0) for m in members])
            soft = torch.stack([one_hot[m].mean(0) for m in members])
            centroids = torch.stack([scores[m].mean(0) for m in members])
            tokens = adc.select_tokens(centroids, shape.kept - manifest.prefix, manifest.prefix)
            loss = torch.nn.functional.cross_entropy(head(adc.gather_tokens(merged, tokens)), soft)
            (loss / micro_batches).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.item())
        learn.step()
        result.append(sum(losses) / micro_batches)
    loader.close()
    return result


@pytest.mark.parametrize(
    ("micro_batches", "window"),
    [(1, 0), pytest.param(4, 0, marks=pytest.mark.slow), pytest.param(4, 2, marks=pytest.mark.slow)],
)
def test_training_equals_an_in_process_pytorch_loop(
    bundle_dir: Path, bundle: Bundle, tmp_path: Path, trainer: Any, micro_batches: int, window: int
) -> None:
    learning = OptimizerSettings(lr=1e-3)
    with trainer(tmp_path / "cloud", "--lr", "1e-3") as (_, endpoint):
        serve(
            settings(
                bundle_dir,
                endpoint,
                steps=20,
                engine="torch",
                optimizer=learning,
                run=tmp_path / "device",
                micro_batches=micro_batches,
                window=window,
            )
        )
    expected = in_process(bundle, 20, learning, micro_batches)
    np.testing.assert_allclose(losses(tmp_path / "device"), expected, atol=1e-5)


def test_both_engines_train_alike(bundle_dir: Path, tmp_path: Path, cloud: Any) -> None:
    for engine in ("onnxruntime", "torch"):
        with cloud(OptimizerSettings("sgd", lr=0.01)) as endpoint:
            serve(
                settings(
                    bundle_dir,
                    endpoint,
                    steps=10,
                    engine=engine,
                    drift_every=1,
                    optimizer=OptimizerSettings("sgd", lr=0.01),
                    run=tmp_path / engine,
                )
            )
    np.testing.assert_allclose(losses(tmp_path / "onnxruntime"), losses(tmp_path / "torch"), atol=1e-4)
    lines = [json.loads(line) for line in (tmp_path / "onnxruntime" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["drift"] < 1e-4 for line in lines if line["kind"] == "step")


@pytest.mark.slow
def test_the_commands_train_report_and_merge_into_a_timm_checkpoint(
    bundle_dir: Path, bundle: Bundle, tmp_path: Path, trainer: Any, command: Any, proxy_type: Any
) -> None:
    device, cloud, report_file = tmp_path / "device", tmp_path / "cloud", tmp_path / "run.json"
    options = ["--lr", "3e-3", "--devices", "1"]
    with trainer(cloud, *options) as (process, endpoint), proxy_type(endpoint) as proxy:
        with command(
            "serve", "--bundle", bundle_dir, "--trainer", proxy.endpoint, "--steps", "150", "--run", device,
            "--report", report_file, "--lr", "3e-3", "--eval-every", "75", "--eval-images", "0", "--precision", "fp16",
            "--eval-precision", "fp32", *ONE_THREAD,
        ) as edge:  # fmt: skip
            code, output = edge.finish()
        assert code == 0, output
        assert "did not acknowledge" not in output
        code, log = process.finish()
        assert code == 0, log
        assert "is done after 150 steps" in log
    report = json.loads(report_file.read_text())
    assert set(FIELDS) <= set(report)
    assert (report["steps"], report["images"], report["precision"]) == (150, 150 * 16, "fp16")
    assert has_learned(device)
    assert [each["step"] for each in report["evaluations"]] == [75, 150]
    assert report["accuracy"] == report["evaluations"][-1]["accuracy"]
    assert report["bytes_total_up"] == pytest.approx(proxy.up, rel=0.005)
    assert report["bytes_total_down"] == pytest.approx(proxy.down, rel=0.005)
    booked = report["xi"] * 150 * 16 * 17 * 32 * 2
    assert report["bytes_down"] == pytest.approx(booked, rel=0.1)  # small messages: headers weigh 10 %

    model = tmp_path / "model.safetensors"
    with command("merge", "--run-device", device, "--run-trainer", cloud, "-o", model) as merging:
        code, output = merging.finish()
    assert code == 0, output
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=10, **bundle.manifest.model_args)
    vit.load_state_dict(load_file(model), strict=True)
    test = Loader(data.load_dataset("digits").test, bundle.manifest.preprocessing, 16)
    with torch.no_grad():
        right = [
            (vit.eval()(torch.from_numpy(b.images)).argmax(1).numpy() == b.labels).sum()
            for b in map(test.plain, test.sample(0))
        ]
    test.close()
    assert sum(right) / 360 == pytest.approx(report["accuracy"], abs=1e-9)


@pytest.mark.slow
def test_the_device_waits_for_a_trainer_that_was_stopped_and_the_run_goes_on(
    bundle_dir: Path, tmp_path: Path, trainer: Any, command: Any, eventually: Any
) -> None:
    metrics = tmp_path / "device" / "metrics.jsonl"
    with trainer(tmp_path / "cloud") as (cloud, endpoint):
        edge = command(
            "serve", "--bundle", bundle_dir, "--trainer", endpoint, "--steps", "40", "--run", tmp_path / "device",
            "--eval-images", "32", *ONE_THREAD,
        )  # fmt: skip
        eventually(lambda: metrics.exists() and metrics.read_text().count("\n") >= 5)
        cloud.process.send_signal(signal.SIGTERM)
        code, log = cloud.finish(30)
        assert code == 0, log
        done = len(losses(tmp_path / "device"))
    time.sleep(1)
    assert len(losses(tmp_path / "device")) <= done + 1  # it waits
    with edge, trainer(tmp_path / "cloud", bind=endpoint) as (cloud, _):
        code, output = edge.finish()
        assert code == 0, output
        assert "waiting for the trainer" in output
        assert "the trainer is back" in output
        cloud.process.send_signal(signal.SIGTERM)
        assert "resuming" in cloud.finish(30)[1]
    assert len(losses(tmp_path / "device")) == 40
    lines = map(json.loads, (tmp_path / "cloud" / "metrics.jsonl").read_text().splitlines())
    steps = [line["step"] for line in lines if line["kind"] == "step"]
    assert steps == list(range(40))  # none lost, none twice, over both processes of the trainer


def test_a_frozen_trunk_sends_and_receives_no_gradient_and_stays(bundle_dir: Path, tmp_path: Path, cloud: Any) -> None:
    with cloud(OptimizerSettings(lr=3e-3)) as endpoint:
        report = serve(settings(bundle_dir, endpoint, steps=60, trunk="frozen", run=tmp_path / "device"))
    assert has_learned(tmp_path / "device")
    assert report["bytes_down"] < 0.2 * report["bytes_up"]
    trunk, exported = (load_file(run / "trunk.safetensors") for run in (tmp_path / "device", bundle_dir))
    assert trunk.keys() == exported.keys()
    assert all(torch.equal(trunk[name], exported[name]) for name in exported)


def test_low_precision_sends_fewer_bytes_and_learns_alike(bundle_dir: Path, tmp_path: Path, cloud: Any) -> None:
    sent, loss = {}, {}
    for precision in ("fp32", "int8"):
        run = tmp_path / precision
        with cloud(OptimizerSettings("sgd", lr=0.05)) as endpoint:
            report = serve(
                settings(
                    bundle_dir,
                    endpoint,
                    steps=40,
                    precision=precision,
                    optimizer=OptimizerSettings("sgd", lr=0.05),
                    run=run,
                )
            )
        sent[precision] = report["bytes_up"] + report["bytes_down"]
        loss[precision] = losses(run)
    assert sent["int8"] < 0.35 * sent["fp32"]
    assert loss["int8"][0] == pytest.approx(loss["fp32"][0], rel=0.01)
    assert loss["int8"] == pytest.approx(loss["fp32"], rel=0.1)
    assert loss["int8"] != loss["fp32"]


@pytest.mark.slow
def test_each_way_has_its_own_precision(bundle_dir: Path, tmp_path: Path, cloud: Any) -> None:
    with cloud(OptimizerSettings("sgd", lr=0.05)) as endpoint:
        more = {"precision": "bf16", "gradient_precision": "int4", "optimizer": OptimizerSettings("sgd", lr=0.05)}
        report = serve(settings(bundle_dir, endpoint, steps=40, run=tmp_path / "low", **more))
    with cloud(OptimizerSettings("sgd", lr=0.05)) as endpoint:
        more["precision"] = more["gradient_precision"] = "fp32"
        serve(settings(bundle_dir, endpoint, steps=40, run=tmp_path / "fp32", **more))
    assert (report["precision"], report["gradient_precision"]) == ("bf16", "int4")
    values = report["xi"] * 40 * 16 * 17 * 32
    assert report["bytes_up"] == pytest.approx(values * 2, rel=0.2)
    assert report["bytes_down"] == pytest.approx(values * (0.5 + 2 / 32), rel=0.6)  # headers weigh 250 bytes a step
    assert losses(tmp_path / "low") == pytest.approx(losses(tmp_path / "fp32"), rel=0.1)


@pytest.mark.slow
def test_principal_components_train_alike_at_a_fraction_of_the_bytes(
    bundle_dir: Path, tmp_path: Path, cloud: Any
) -> None:
    sent, loss = {}, {}
    for precision in ("fp32", "pca1", "dct1"):
        with cloud(OptimizerSettings("sgd", lr=0.05)) as endpoint:
            how = {"precision": precision, "optimizer": OptimizerSettings("sgd", lr=0.05), "run": tmp_path / precision}
            report = serve(settings(bundle_dir, endpoint, steps=40, evaluate_precision=precision, **how))
        assert (report["precision"], report["gradient_precision"]) == (precision, precision)
        sent[precision] = report["bytes_up"] + report["bytes_down"]
        loss[precision] = losses(tmp_path / precision)
    for precision in ("pca1", "dct1"):
        assert sent[precision] < 0.15 * sent["fp32"]
        assert loss[precision] == pytest.approx(loss["fp32"], rel=0.3)
        assert np.mean(loss[precision]) == pytest.approx(np.mean(loss["fp32"]), rel=0.05)
        assert loss[precision] != loss["fp32"]


def test_evaluations_of_few_tokens_are_sent_in_int8_and_others_in_pca4(
    bundle_dir: Path, tmp_path: Path, cloud: Any
) -> None:
    found = []
    for images in (8, 0):  # 17 tokens each, of 32 channels
        with cloud(OptimizerSettings()) as endpoint:
            report = serve(settings(bundle_dir, endpoint, steps=1, evaluate_images=images))
        found.append((report["evaluations"][-1]["images"], report["evaluations"][-1]["precision"]))
    assert found[0] == (8, "int8")
    assert found[1] == (360, "pca4")


def test_the_drift_of_an_engine_refreshed_every_third_step_is_reported(
    bundle_dir: Path, tmp_path: Path, cloud: Any
) -> None:
    drift = {}
    for every in (1, 3):
        with cloud(OptimizerSettings("sgd", lr=0.05)) as endpoint:
            how = OptimizerSettings("sgd", lr=0.05)
            more = {"refresh_every": every, "optimizer": how, "drift_every": 1, "run": tmp_path / str(every)}
            drift[every] = serve(settings(bundle_dir, endpoint, steps=9, **more))["drift"]
    assert drift[1] < 1e-4
    assert drift[3] > 10 * drift[1]
    assert losses(tmp_path / "3")[:3] != losses(tmp_path / "1")[:3]
    assert losses(tmp_path / "3")[0] == losses(tmp_path / "1")[0]


def test_frozen_first_blocks_stay_and_the_others_learn(bundle_dir: Path, tmp_path: Path, cloud: Any) -> None:
    with cloud(OptimizerSettings(lr=1e-3)) as endpoint:
        serve(settings(bundle_dir, endpoint, steps=6, freeze_first=1, drift_every=1, run=tmp_path / "device"))
    before, after = (load_file(d / "trunk.safetensors") for d in (bundle_dir, tmp_path / "device"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("blocks.1.")}


def test_engine_auto_measures_once_logs_its_choice_and_keeps_it(
    bundle_dir: Path, tmp_path: Path, cloud: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "adc_edge")
    device = tmp_path / "device"
    with cloud(OptimizerSettings(lr=1e-3)) as endpoint:
        more = {"engine": "auto", "run": device, "micro_batches": 2}
        first = Serve(settings(bundle_dir, endpoint, steps=3, **more), Console(width=200), stop=lambda: False)
        report = first.run()
        assert report["steps"] == 3
        said = caplog.text
        caplog.clear()
        chosen = (device / "engine").read_text()
        assert chosen in ("onnxruntime", "torch")
        (line,) = [line for line in said.splitlines() if "engine   " in line]
        assert f"engine   {chosen} on cpu (auto: " in line
        assert "ms a step, " in line
        sent = [json.loads(line)["bytes_up"] for line in (device / "metrics.jsonl").read_text().splitlines()][:3]
        # Three messages as large as those of a step, besides empty ones, which are no part of any step.
        assert 3 < report["bytes_probe_up"] / (max(sent) / 2) < 4
        assert sum(sent) == report["bytes_up"]
        assert report["bytes_total_up"] == sum(report[f"bytes_{kind}up"] for kind in ("", "evaluation_", "probe_"))
        resumed = serve(settings(bundle_dir, endpoint, steps=3, **more))
        assert resumed["bytes_probe_up"] == report["bytes_probe_up"]
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "engine").write_text("torch")
    more["run"] = kept
    with cloud(OptimizerSettings(lr=1e-3)) as endpoint:
        again = Serve(settings(bundle_dir, endpoint, steps=3, **more), Console(width=200), stop=lambda: False)
        again.run()
        said = caplog.text
    assert "engine   torch on cpu (auto: chosen when this run began)" in said
    assert "ms a step, " not in said


def test_without_run_directories_no_journal_is_written(bundle_dir: Path, cloud: Any) -> None:
    written: list[Any] = []
    with (
        cloud(OptimizerSettings(lr=1e-3)) as endpoint,
        patch.object(Journal, "append", side_effect=lambda *entry: written.append(entry)),
    ):
        assert serve(settings(bundle_dir, endpoint, steps=3, micro_batches=2))["steps"] == 3
    assert not written


def test_a_batch_that_cannot_be_divided_so_is_refused(bundle_dir: Path, command: Any) -> None:
    for options, words in (
        (["--micro-batches", "3"], "3 of a batch of 16"),
        (["--micro-batches", "16"], "a batch of 1 image"),
        (["--freeze-first", "2"], "--freeze-first 2 of 2 blocks"),
    ):
        with command("serve", "--bundle", bundle_dir, "--trainer", "tcp://127.0.0.1:9", *options) as edge:
            code, output = edge.finish()
        assert code in (1, 2)
        assert words in output


def test_a_noisy_channel_changes_the_training_in_the_same_way_each_time(
    bundle_dir: Path, tmp_path: Path, cloud: Any
) -> None:
    channels = {
        "clean": NoiseSettings(),
        "noisy": NoiseSettings(snr_up_db=10.0, snr_down_db=20.0),
        "again": NoiseSettings(snr_up_db=10.0, snr_down_db=20.0),
        "flips": NoiseSettings(bit_error_rate=1e-4),
    }
    found = {}
    for name, noise in channels.items():
        with cloud(OptimizerSettings("sgd", lr=0.01)) as endpoint:
            run, how = tmp_path / name, OptimizerSettings("sgd", lr=0.01)
            more = {"steps": 8, "precision": "int8", "noise": noise, "optimizer": how, "run": run}
            serve(settings(bundle_dir, endpoint, **more))
        found[name] = losses(run)
    assert found["noisy"] == found["again"]
    assert found["noisy"] != found["clean"]
    assert found["flips"] != found["clean"]
    assert found["noisy"] == pytest.approx(found["clean"], rel=0.5)
    assert found["noisy"][0] != found["clean"][0]  # the activations of the first step already


def test_a_run_directory_of_another_run_is_refused(bundle_dir: Path, tmp_path: Path, cloud: Any, command: Any) -> None:
    with cloud(OptimizerSettings()) as endpoint:
        serve(settings(bundle_dir, endpoint, steps=2, run=tmp_path / "device"))
        with command(
            "serve", "--bundle", bundle_dir, "--trainer", endpoint, "--seed", "9", "--run", tmp_path / "device"
        ) as edge:
            code, output = edge.finish()
    assert code == 1
    assert "seed was 0, is 9" in output


def test_broken_images_are_skipped_and_counted(bundle_dir: Path, tmp_path: Path, cloud: Any) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in "01":
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for index in range(12):
                Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)).save(folder / f"{index}.png")
        (tmp_path / "photos" / split / "0" / "broken.png").write_bytes(b"\x89PNG but no more")
    with cloud(OptimizerSettings()) as endpoint:
        report = serve(settings(bundle_dir, endpoint, data=f"folder:{tmp_path / 'photos'}", epochs=2))
    assert report["broken_images"] == 2
    assert report["first_broken_image"] == "0/broken.png: no image"
    assert report["steps"] == 2
    assert report["evaluations"][-1]["images"] == 24
