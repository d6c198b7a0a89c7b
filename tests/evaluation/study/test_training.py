"""One run: the same task for every method, and correct numbers."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from adc_edge.codec.precision import encoded_bytes
from adc_edge.data import augment
from adc_edge.data.loader import Loader
from adc_edge.data.sources import load_dataset
from adc_edge.errors import ProtocolError, SettingError
from adc_edge.evaluation.study.records import Study
from adc_edge.evaluation.study.samples import sampled
from adc_edge.evaluation.study.setting import parse_setting
from adc_edge.evaluation.study.training import train
from adc_edge.method.split import create_vit, preprocessing
from adc_edge.optimizer.settings import OptimizerSettings
from tests.conftest import TINY

STUDY = Study(
    "digits",
    "vit_tiny_patch16_224",
    model_args=TINY,
    crop_pct="model",
    split=2,
    batch_size=32,
    epochs=1.0,
    train_images=256,
    test_images=100,
    optimizer=OptimizerSettings(name="adam", lr=1e-3),
)


@pytest.mark.parametrize("trunk_lr", [None, 4e-4])
def test_uncompressed_split_learning_is_ordinary_training_of_the_whole_model(trunk_lr: float | None) -> None:
    """The reference: timm's own model, one optimizer, no cut; a rate of the trunk's own is that of its parameters."""
    study = STUDY if trunk_lr is None else msgspec.structs.replace(STUDY, trunk_lr=trunk_lr)
    run = train(study, parse_setting("none"), seed=3)
    torch.manual_seed(3)
    vit = create_vit(STUDY.model, TINY, 10)
    of_trunk = ("cls_token", "pos_embed", "patch_embed.", "blocks.0.", "blocks.1.")
    sides: tuple[list[torch.nn.Parameter], ...] = ([], [])
    for name, parameter in vit.named_parameters():
        sides[name.startswith(of_trunk)].append(parameter)
    groups: list[dict[str, Any]] = [{"params": sides[0]}, {"params": sides[1], "lr": trunk_lr or 1e-3}]
    optimizer = torch.optim.Adam(groups, lr=1e-3)
    data, how = sampled(load_dataset("digits"), STUDY), preprocessing(vit)
    loader = Loader(data.train, how, 32, 3, augment.parse_augmentation("flip"))
    losses = []
    for step in range(8):
        images, labels = loader.batch(step)
        loss = F.cross_entropy(vit(torch.from_numpy(images)), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    vit.eval()
    test = Loader(data.test, how, 100)
    images, labels = test.plain(np.arange(100))
    with torch.no_grad():
        accuracy = float((vit(torch.from_numpy(images)).argmax(1).numpy() == labels).mean())
    loader.close()
    test.close()
    assert run.curve[-1].loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert run.curve[-1].accuracy == pytest.approx(accuracy, abs=0.011)


def test_a_run_records_steps_bytes_and_accuracy_at_each_evaluation() -> None:
    run = train(study_with(evaluate_every=0.5), parse_setting("int8"), seed=0)
    assert [p.step for p in run.curve] == [4, 8]
    assert [p.epoch for p in run.curve] == [0.5, 1.0]
    body = encoded_bytes((32, 17, 32), "int8")
    for point in run.curve:
        assert point.bytes_down == pytest.approx(point.step * body, rel=0.02)
        assert point.bytes_up == pytest.approx(point.step * (body + 12 * 32), rel=0.02)
    assert run.share == pytest.approx(2 * body / (2 * 4 * 32 * 17 * 32), rel=0.02)
    assert run.steps_per_epoch == 8


def test_a_run_is_a_function_of_its_seed() -> None:
    first, again, other = (train(STUDY, parse_setting("adc@0.3/int8"), seed) for seed in (0, 0, 1))
    assert [p.loss for p in first.curve] == [p.loss for p in again.curve]
    assert [p.loss for p in first.curve] != [p.loss for p in other.curve]


def test_every_method_sees_the_same_images_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[float]] = {}
    batch = Loader.batch
    for text in ("none", "adc@0.3", "topk@0.1", "c3sl@0.25"):
        sums = seen[text] = []

        def spy(loader: Loader, step: int, sums: list[float] = sums) -> object:
            found = batch(loader, step)
            sums.append(float(found.images.sum()))
            return found

        monkeypatch.setattr(Loader, "batch", spy)
        train(STUDY, parse_setting(text), seed=0)
    assert len({tuple(sums) for sums in seen.values()}) == 1


def test_a_run_with_a_budget_goes_on_until_its_bytes_are_spent() -> None:
    study = study_with(budget=0.5, max_epochs=4.0, evaluate_every=4.0)
    spent, ended = train(study, parse_setting("int8"), seed=0), train(study, parse_setting("int2"), seed=0)
    last = spent.curve[-1]
    budget = 0.5 * 8 * spent.uncompressed_step_bytes
    assert budget <= last.bytes_up + last.bytes_down <= budget * 1.1
    assert last.step > 8
    assert ended.curve[-1].epoch == 4.0
    assert train(study, parse_setting("none"), seed=0).curve[-1].epoch == 1.0  # never shorter than its epochs


@pytest.mark.parametrize("wrong", [{"epochs": 0.0}, {"evaluate_every": -1.0}, {"max_epochs": 0.5}])
def test_a_study_of_no_length_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingError):
        study_with(**wrong).check()


def test_a_training_that_diverges_says_so() -> None:
    diverging = study_with(optimizer=OptimizerSettings(name="sgd", lr=1e30))
    with pytest.raises(ProtocolError, match="lower"):
        train(diverging, parse_setting("none"), seed=0)


@pytest.mark.parametrize("text", ["none", "adc@0.3", "adc-cls@0.3", "bottlenetpp@0.1", "none/int4"])
def test_bfloat16_computes_the_same_task(text: str) -> None:
    full, half = (
        train(study_with(compute=compute), parse_setting(text), seed=0).curve[-1] for compute in ("fp32", "bf16")
    )
    assert half.loss == pytest.approx(full.loss, rel=0.1)
    assert half.bytes_up == pytest.approx(full.bytes_up, rel=0.05)


def study_with(**changes: object) -> Study:
    return msgspec.structs.replace(STUDY, **changes)


def test_a_run_is_judged_at_the_studys_epochs_also_when_it_goes_on() -> None:
    run = train(study_with(budget=0.5, max_epochs=2.0, evaluate_every=0.75), parse_setting("int2"), seed=0)
    assert [p.step for p in run.curve] == [6, 8, 12, 16]
