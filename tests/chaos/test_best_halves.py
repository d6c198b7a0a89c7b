"""`serve --keep-best`: either side is killed around the request; both keep the halves of the same best evaluation."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as load_tensors

from adc_edge.data.loader import Loader
from adc_edge.data.sources import load_dataset
from adc_edge.export.merge import merge_runs
from adc_edge.method.split import create_vit
from adc_edge.storage.bundle import Manifest
from tests.chaos.run import Run, compare
from tests.chaos.zygote import Zygote

pytestmark = pytest.mark.slow
STEPS = 48
EVERY = ("--eval-every", "6", "--eval-images", "0", "--eval-precision", "fp32")
ASKED, KEPT = "adc_edge.edge_runtime.loop:DeviceLoop.keep_head", "adc_edge.edge_runtime.trunk.best:BestHalves.keep"
TRAINER_KEEPS = "adc_edge.cloud_trainer.checkpoints:TrainerCheckpoints.keep_head"


def judge(manifest: Manifest, weights: Path) -> float:
    """The accuracy of a merged model on the test images of the digits, by timm and PyTorch alone."""
    vit = create_vit(manifest.model, manifest.model_args, manifest.classes).eval()
    vit.load_state_dict(load_tensors(weights), strict=True)
    loader = Loader(load_dataset("digits").test, manifest.preprocessing, 60)
    correct = images = 0
    for indices in loader.sample(0):
        batch = loader.plain(indices)
        with torch.no_grad():
            found = vit(torch.from_numpy(batch.images)).argmax(dim=1).numpy()
        correct, images = correct + int((found == batch.labels).sum()), images + len(batch.labels)
    loader.close()
    return correct / images


def merged_as_reported(run: Run) -> int:
    """Merge the best halves that are on disk now, judge the model, and return its step."""
    output = run.where / "best.safetensors"
    merged = merge_runs(run.device_dir, run.trainer_dir, output, best=True)
    assert judge(merged.manifest, output) == pytest.approx(merged.accuracy, abs=1.1 / 360)  # a tie may break otherwise
    return merged.step


MORE = (*EVERY, "--keep-best", "--lr", "3e-3")


@pytest.fixture(scope="module")
def expected(
    zygote: Zygote, bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> Run:
    """A run that came to its end undisturbed."""
    run = Run(zygote, bundle_dir, tmp_path_factory.mktemp("undisturbed"), free_port(), STEPS, more=MORE)
    run.undisturbed()
    return run


@pytest.fixture
def run(zygote: Zygote, bundle_dir: Path, tmp_path: Path, free_port: Callable[[], int]) -> Run:
    """The same, to be disturbed."""
    return Run(zygote, bundle_dir, tmp_path / "run", free_port(), STEPS, more=MORE)


@pytest.mark.parametrize(
    ("side", "instant"),
    [
        ("device", f"{ASKED}:before:2"),
        ("device", f"{ASKED}:after:2"),  # the trainer has kept its half, the device has not
        ("device", f"{KEPT}:after:2"),  # both have, and the run does not count it yet
        ("trainer", f"{TRAINER_KEEPS}:before:2"),
        ("trainer", f"{TRAINER_KEEPS}:after:2"),  # kept, and the device is not told
        ("both", f"{ASKED}:after:2"),
        ("both", f"{KEPT}:after:2"),
    ],
)
def test_a_kill_around_the_request_changes_neither_the_best_halves_nor_the_run(
    expected: Run, run: Run, side: str, instant: str
) -> None:
    trainer = run.trainer(dies=instant if side == "trainer" else "")
    device = run.device(run.endpoint, dies=instant if side != "trainer" else "")
    dead = trainer if side == "trainer" else device
    assert dead.wait(60) == -signal.SIGKILL
    if side == "both":
        trainer.signal(signal.SIGKILL)
        trainer.wait(10)
    merged_as_reported(run)  # at that instant too both sides have halves of one step
    if side != "device":
        trainer = run.trainer()
    if side != "trainer":
        device = run.device(run.endpoint)
    assert device.wait(60) == 0, run.logs()
    assert trainer.wait(20) == 0, run.logs()
    compare(expected.outcome(), run.outcome())
    assert "best step" in expected.outcome()
    assert merged_as_reported(run) == json.loads((run.where / "report.json").read_text())["best"]["step"]
    assert "is not kept" not in run.logs()


def test_a_damaged_checkpoint_after_the_best_evaluation_leaves_a_pair_of_one_step(run: Run) -> None:
    trainer, device = run.trainer(), run.device(run.endpoint)
    run.reach(30)
    device.signal(signal.SIGKILL)
    device.wait(10)
    newest = max(run.device_dir.glob("checkpoint-*"))
    newest.write_bytes(newest.read_bytes()[:-1])
    merged_as_reported(run)
    assert run.device(run.endpoint).wait(60) == 0, run.logs()
    assert trainer.wait(20) == 0, run.logs()
    merged_as_reported(run)


def test_a_run_that_stops_without_gain_stops_at_the_same_step_after_kills(
    zygote: Zygote, bundle_dir: Path, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    more = (*EVERY, "--keep-best", "--stop-after", "1", "--eval-every", "3")
    expected = Run(zygote, bundle_dir, tmp_path / "undisturbed", free_port(), 400, more=more)
    outcome = expected.undisturbed()
    run = Run(zygote, bundle_dir, tmp_path / "run", free_port(), 400, more=more)
    trainer = run.trainer()
    for call in (1, 2):
        assert run.device(run.endpoint, dies=f"{ASKED}:after:1").wait(60) in (0, -signal.SIGKILL), call
    assert run.device(run.endpoint).wait(60) == 0, run.logs()
    assert trainer.wait(20) == 0, run.logs()
    compare(outcome, run.outcome())
    report = json.loads((run.where / "report.json").read_text())
    assert report["complete"]
    assert report["stopped"] == json.loads((expected.where / "report.json").read_text())["stopped"]
    assert report["stopped"]["step"] < 400
