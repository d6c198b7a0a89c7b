"""A trainer judges trunk and head on its own test images, between messages; no bit of the training depends on it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import timm
import torch
from rich.console import Console
from safetensors.numpy import load_file

from adc_edge.cloud_trainer.accumulator import StepAccumulator
from adc_edge.cloud_trainer.central.evaluator import SLICE_S, CentralEvaluator, CentralPlace, last_place
from adc_edge.cloud_trainer.central.images import CentralImages
from adc_edge.cloud_trainer.classes import HeadClasses
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.record.trainer_record import TrainerRecord
from adc_edge.cloud_trainer.runner import Trainer
from adc_edge.cloud_trainer.settings import TrainerSettings
from adc_edge.data.loader import Loader
from adc_edge.data.sources import ArraySplit, Dataset, load_dataset
from adc_edge.edge_runtime.runner import Serve
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.errors import DataError, SettingError
from adc_edge.method.trunk import Trunk
from adc_edge.storage.bundle import TRUNK, Bundle, Manifest
from adc_edge.storage.fleet_trunk import FleetTrunk
from adc_edge.storage.run_dir import METRICS, RunDir
from tests.serving import logged

NAMES = [str(digit) for digit in range(10)]


class Central:
    """An evaluator on the digits, the lines that it writes, and a trunk that a test may move."""

    def __init__(self, bundle: Bundle, training: HeadTraining, run: Path, images: int = 40, **more: Any) -> None:
        self.bundle, self.training, self.run = bundle, training, run
        self.run_dir = RunDir(run, {}, {})
        self.classes = HeadClasses(bundle.manifest, self.run_dir)
        self.trunk = FleetTrunk(0, load_file(bundle.path / TRUNK), {})
        self.idle = False
        dataset = more.pop("dataset", None) or load_dataset("digits")
        self.evaluator = CentralEvaluator(
            training,
            CentralImages(dataset, bundle.manifest, self.classes, images),
            lambda: self.trunk,
            Trunk(bundle.manifest.trunk),
            TrainerRecord(self.run_dir),
            idle=lambda: self.idle,
            **more,
        )

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            rng = np.random.default_rng(self.training.steps)
            soft, step = np.full((4, 10), 0.1, np.float32), StepAccumulator(1)
            soft[0] = np.eye(10, dtype=np.float32)[self.training.steps % 10]
            activations = torch.from_numpy(rng.standard_normal((4, 7, 32)).astype(np.float32))
            self.training.learn(activations, soft, True, step)
            self.training.update(step, 0)

    def work(self) -> None:
        while self.evaluator.work(False):
            pass

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run / METRICS).read_text().splitlines()]


@pytest.fixture
def central(bundle: Bundle, training: HeadTraining, tmp_path: Path) -> Iterator[Central]:
    found = Central(bundle, training, tmp_path / "run", every=5)
    found.classes.learn(NAMES, False, "orin")
    with closing(found.run_dir):
        yield found


def whole_model(central: Central, labels: Any) -> float:
    """The accuracy of the same halves as one timm model."""
    manifest, test = central.bundle.manifest, load_dataset("digits").test
    vit = timm.create_model(manifest.model, num_classes=manifest.classes, **manifest.model_args).eval()
    halves = {name: torch.from_numpy(value) for name, value in central.trunk.weights.items()}
    vit.load_state_dict(halves | central.training.head.vit.state_dict(), strict=True)
    loader = Loader(test, manifest.preprocessing, 360)
    (chosen,) = loader.sample(40)
    batch = loader.plain(chosen)
    loader.close()
    with torch.no_grad():
        found = vit(torch.from_numpy(batch.images)).argmax(1).numpy()
    return float((found == labels[batch.labels]).mean())


def test_it_tells_what_the_joined_timm_model_gets_right_at_every_kth_step(central: Central) -> None:
    central.work()
    assert central.lines == []
    central.step(5)
    expected = whole_model(central, np.arange(10))
    central.work()
    central.step(4)
    central.work()
    (line,) = central.lines
    assert (line["kind"], line["source"], line["step"], line["head_step"], line["round"]) == (
        "evaluation",
        "central",
        5,
        5,
        0,
    )
    assert (line["images"], line["accuracy"]) == (40, pytest.approx(expected))
    event = json.loads((central.run / "events.jsonl").read_text().splitlines()[-1])
    assert (event["kind"], event["head_step"], event["accuracy"]) == ("centralevaluation", 5, line["accuracy"])


def test_classes_are_the_heads_by_name_whatever_their_order(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    central = Central(bundle, training, tmp_path / "run", every=5)
    order = NAMES[3:] + NAMES[:3]
    central.classes.learn(order, False, "orin")
    central.step(5)
    expected = whole_model(central, np.array([order.index(name) for name in NAMES]))
    central.work()
    assert central.lines[0]["accuracy"] == pytest.approx(expected)
    central.run_dir.close()


def test_copies_are_judged_while_the_head_learns_on(central: Central, bundle: Bundle) -> None:
    central.step(5)
    expected = whole_model(central, np.arange(10))
    central.evaluator._size = 3
    assert central.evaluator.work(False)
    central.trunk = FleetTrunk(1, {name: np.zeros_like(value) for name, value in central.trunk.weights.items()}, {})
    central.step(4)
    with torch.no_grad():
        for parameter in central.training.head.parameters():
            parameter.zero_()
    central.work()
    assert central.lines[0]["accuracy"] == pytest.approx(expected)


def test_no_bit_of_the_training_depends_on_it(bundle: Bundle, training: HeadTraining, tmp_path: Path) -> None:
    central = Central(bundle, training, tmp_path / "run", every=3)
    alone = Central(bundle, training.fixed_copy(), tmp_path / "alone")
    alone.training.optimizer = type(training.optimizer)(alone.training.head, training.optimizer.settings)
    alone.training.parameters = [p for p in alone.training.head.parameters() if p.requires_grad]
    alone.training._forward = alone.training.head
    for _ in range(8):
        central.step()
        central.work()
        alone.step()
    assert len(central.lines) == 2
    pairs = zip(central.training.arrays().items(), alone.training.arrays().items(), strict=True)
    assert all(a == b and np.array_equal(x, y) for (a, x), (b, y) in pairs)
    for one in (central, alone):
        one.run_dir.close()


def test_images_of_classes_that_no_device_has_had_are_left_out_and_named(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    central = Central(bundle, training, tmp_path / "run", images=0, every=1)
    central.classes.learn(["7", "3"], False, "orin")
    with logged() as lines:
        for _ in range(2):
            central.step()
            central.work()
        central.classes.learn(NAMES, False, "orin")
        central.step()
        central.work()
    labels = load_dataset("digits").test.labels
    known = int(np.isin(labels, (3, 7)).sum())
    assert [line["images"] for line in central.lines] == [known, known, 360]
    left_out = [line for line in lines if "leaves out" in line]
    assert left_out == [
        "central evaluation leaves out classes that the head lacks: 0, 1, 2, 4, 5 and 3 more; it has 7, 3",
    ]
    central.run_dir.close()


def test_a_source_without_any_class_of_the_head_waits_for_one_that_has_some(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    central = Central(bundle, training, tmp_path / "run", every=1)
    central.classes.learn(["cat", "dog"], False, "orin")
    with logged() as lines:
        for _ in range(2):
            central.step()
            central.work()
    assert lines == [
        "central evaluation leaves out classes that the head lacks: 0, 1, 2, 3, 4 and 5 more; it has cat, dog"
    ]
    assert central.lines == []
    central.classes.learn(["7"], False, "orin")
    central.step()
    central.work()
    assert [line["head_step"] for line in central.lines] == [3]
    central.run_dir.close()


def test_data_without_names_for_a_head_with_names_end_the_evaluation_and_not_the_training(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    central = Central(bundle, training, tmp_path / "run", every=1, dataset=load_dataset("digits")._replace(named=False))
    central.classes.learn(["cat", "dog"], False, "orin")
    with logged() as lines:
        for _ in range(2):
            central.step()
            central.work()
    (line,) = lines
    assert line.startswith("no central evaluation any more: labels from 0 to 9 without class names; add an array")
    central.run_dir.close()


def test_a_bundle_with_all_its_names_refuses_a_source_with_others_at_once(bundle: Bundle) -> None:
    named: Manifest = msgspec.structs.replace(bundle.manifest, class_names=[f"c{n}" for n in range(10)])
    with pytest.raises(DataError, match="10 classes that the head lacks: 0, 1, 2"):
        CentralImages(load_dataset("digits"), named, HeadClasses(named))


def test_broken_test_images_are_left_out(bundle: Bundle, training: HeadTraining, tmp_path: Path) -> None:
    class Broken(ArraySplit):
        def image(self, index: int) -> Any:
            if index == 1:
                raise OSError("cut off")
            return super().image(index)

    test = Broken(np.zeros((9, 8, 8), np.uint8), np.arange(9, dtype=np.int64))
    central = Central(bundle, training, tmp_path / "run", every=1, dataset=Dataset(test, test, NAMES))
    central.classes.learn(NAMES, False, "orin")
    central.evaluator._size = 2
    central.step()
    central.work()
    (line,) = central.lines
    assert line["images"] == 8
    assert line["accuracy"] in (0.0, 1 / 8)  # all images are equal, and one class at most is right
    central.run_dir.close()


def test_a_trunk_that_learns_is_judged_right_after_a_round(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    central = Central(bundle, training, tmp_path / "run", every=5, moving=True)
    central.classes.learn(NAMES, False, "orin")
    central.step(7)
    central.work()
    assert central.lines == []
    central.trunk = central.trunk._replace(round=1)
    central.work()
    central.step(3)  # due again, and the trunk is still that of round 1
    central.work()
    central.trunk = central.trunk._replace(round=2)
    central.step(2)
    central.work()
    assert [(line["head_step"], line["round"]) for line in central.lines] == [(7, 1), (12, 2)]
    central.step()
    central.idle = True  # the devices are done: the end is judged whatever K is
    central.work()
    central.work()
    assert [line["head_step"] for line in central.lines] == [7, 12, 13]
    central.run_dir.close()


def test_a_round_before_the_kth_step_is_not_judged_with_the_head_after_it(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    central = Central(bundle, training, tmp_path / "run", every=5, moving=True)
    central.classes.learn(NAMES, False, "orin")
    central.step(4)
    central.trunk = central.trunk._replace(round=1)
    central.work()
    central.step(2)
    central.work()
    assert central.lines == []
    central.trunk = central.trunk._replace(round=2)
    central.work()
    assert [(line["head_step"], line["round"]) for line in central.lines] == [(6, 2)]
    central.run_dir.close()


def test_devices_that_wait_go_first(central: Central) -> None:
    central.evaluator._size = 1
    central.step(5)
    assert central.evaluator.work(True)
    central.evaluator._pace(1.0)  # as if that slice had taken a second
    assert central.evaluator._size <= max(1, 64 * SLICE_S)
    assert not central.evaluator.work(True)
    assert central.evaluator._not_before > time.monotonic() + 3
    central.evaluator.finish(lambda: True)
    assert central.lines == []
    central.work()
    assert len(central.lines) == 1


def test_a_run_that_goes_on_repeats_no_evaluation_and_one_that_goes_back_does(central: Central) -> None:
    central.step(5)
    central.work()
    data = (central.run / METRICS).read_bytes()
    assert last_place(data + b'{"kind": "evaluation", "source": "central", "head_st') == CentralPlace(5, 0)
    central.evaluator._last = last_place(data)
    central.work()
    assert len(central.lines) == 1
    central.training.steps = 3  # an older checkpoint
    central.work()
    central.step(2)
    central.work()
    assert [line["head_step"] for line in central.lines] == [5, 5]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"data": "digits"}, "--data digits in parallel mode"),
        ({"evaluate_every": 10, "mode": "frozen"}, "--eval-every 10 without test images"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_the_run(bundle: Bundle, more: Any, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        TrainerSettings(bundle.path, "tcp://127.0.0.1:*", **more).check()


def test_a_trainer_evaluates_while_a_device_trains_and_once_more_when_it_is_done(
    bundle: Bundle, tmp_path: Path, eventually: Any
) -> None:
    run = tmp_path / "run"
    settings = TrainerSettings(
        bundle.path,
        "tcp://127.0.0.1:*",
        run=run,
        device="cpu",
        devices=1,
        threads=1,
        mode="frozen",
        data="digits",
        evaluate_every=3,
        evaluate_images=50,
    )
    thread = threading.Thread(target=lambda: Trainer(settings, Console(quiet=True), stop=lambda: False).run())
    thread.start()
    eventually((run / "endpoint").exists)
    options = ServeSettings(
        bundle.path, (run / "endpoint").read_text(), "digits", steps=4, trunk="frozen", threads=1, evaluate_images=20
    )
    Serve(options, Console(quiet=True), stop=lambda: False).run()
    thread.join(60)
    assert not thread.is_alive()
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    found = [line for line in lines if line.get("source") == "central"]
    assert found[-1]["head_step"] == 4  # step 3 too, unless the device was done before it was the trainer's turn
    assert {line["images"] for line in found} == {50}
    (own,) = (line for line in lines if line["kind"] == "evaluation" and "session" in line)
    assert own["images"] == 20
