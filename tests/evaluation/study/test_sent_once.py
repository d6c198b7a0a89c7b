"""A frozen trunk sends each image once; after that the head learns from what the trainer keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from adc_edge.codec.precision import encoded_bytes
from adc_edge.data.loader import Loader
from adc_edge.errors import SettingError
from adc_edge.evaluation.fleet.setting import StudyFleet, check_methods
from adc_edge.evaluation.study.records import Run, Study
from adc_edge.evaluation.study.resuming import Unfinished
from adc_edge.evaluation.study.sent_once import FrozenPhase, StoredActivations
from adc_edge.evaluation.study.setting import parse_setting
from adc_edge.evaluation.study.split_model import make_split_model
from adc_edge.evaluation.study.training import train
from tests.evaluation.study.carrying import counted_as_carried
from tests.evaluation.study.test_training import STUDY

IMAGES, BATCH, TOKENS, CHANNELS = 256, 32, 17, 32


def study_with(**changes: Any) -> Study:
    return msgspec.structs.replace(STUDY, **changes)


def bytes_at(run: Run) -> list[tuple[int, int]]:
    return [(point.bytes_up, point.bytes_down) for point in run.curve]


def test_after_the_freeze_each_image_is_sent_once_and_then_nothing_travels() -> None:
    run = train(study_with(epochs=4.0), parse_setting("int8+freeze1"), seed=0)
    (up, down), (up_sent, down_sent), *later = bytes_at(run)
    body = encoded_bytes((IMAGES, TOKENS, CHANNELS), "int8")
    assert up_sent - up == pytest.approx(body + 12 * IMAGES, rel=0.02)
    assert down_sent - down <= 0.02 * body  # answers without a gradient
    assert later == [(up_sent, down_sent)] * 2
    assert [point.step for point in run.curve] == [8, 16, 24, 32]
    assert run.curve[-1].loss < run.curve[1].loss < run.curve[0].loss


def test_until_the_freeze_a_run_is_that_of_a_trunk_that_never_freezes() -> None:
    study = study_with(epochs=2.0)
    frozen, free = (train(study, parse_setting(text), seed=1) for text in ("int8+freeze1", "int8"))
    assert frozen.curve[0].loss == free.curve[0].loss
    assert bytes_at(frozen)[0] == bytes_at(free)[0]
    assert frozen.curve[1].loss != free.curve[1].loss


def test_a_frozen_trunk_keeps_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def keeping(*arguments: Any) -> Any:
        made.append(make_split_model(*arguments))
        return made[-1]

    monkeypatch.setattr("adc_edge.evaluation.study.training.make_split_model", keeping)
    train(study_with(epochs=2.0), parse_setting("none+freeze0"), seed=0)
    fresh, _ = make_split_model(STUDY, parse_setting("none"), 0, 10)
    parts, _ = made[0]
    trained, new = parts.trunk.state_dict(), fresh.trunk.state_dict()
    assert all(torch.equal(trained[name], new[name]) for name in new)
    assert not torch.equal(parts.head.vit.head.weight, fresh.head.vit.head.weight)


def test_counted_bytes_of_a_frozen_run_are_those_that_the_kernel_carries() -> None:
    setting, study = parse_setting("none/pca2:pca1+freeze0.5"), study_with(epochs=2.0)
    counted_as_carried(study, setting)


class Stopped(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize(("share", "mix"), [(0.3, 0.0), (0.6, 0.0), (0.9, 0.0), (0.9, 1.0)])
def test_a_frozen_run_that_was_cut_short_goes_on_bit_for_bit_and_counts_no_byte_twice(
    share: float, mix: float, tmp_path: Path
) -> None:
    study = study_with(epochs=3.0, evaluate_every=0.25, store_mix=mix)
    setting = parse_setting("adc@0.5/int8+freeze1")

    def stopping(done: float) -> None:
        if done >= share:
            raise Stopped

    whole = train(study, setting, 3)
    with pytest.raises(Stopped):
        train(study, setting, 3, progress=stopping, unfinished=Unfinished(tmp_path, study, setting, 3))
    resumed = train(study, setting, 3, unfinished=Unfinished(tmp_path, study, setting, 3))
    assert bytes_at(resumed) == bytes_at(whole)
    assert [point.loss for point in resumed.curve] == [point.loss for point in whole.curve]


@pytest.mark.parametrize("epochs", ["0", "0.5", "1"])
def test_a_pass_has_every_image_once_wherever_it_begins(epochs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[torch.Tensor] = []
    monkeypatch.setattr(FrozenPhase, "keep", lambda phase, rows, soft: kept.append(rows))
    with pytest.raises(IndexError):  # the head has nothing to go on from
        train(study_with(epochs=3.0), parse_setting(f"none+freeze{epochs}"), seed=0)
    assert len(torch.unique(torch.cat(kept).flatten(1), dim=0)) == IMAGES


def test_what_is_stored_is_augmented_once_the_trainer_is_alone() -> None:
    setting, studies = parse_setting("int8+freeze1"), [study_with(epochs=3.0), study_with(epochs=3.0, store_mix=1.0)]
    plain, mixed = (train(study, setting, 0).curve for study in studies)
    assert [point.loss for point in mixed[:2]] == [point.loss for point in plain[:2]]
    assert mixed[2].loss > plain[2].loss  # of labels that are not of one class
    assert mixed[2].bytes_up == plain[2].bytes_up


def test_a_trunk_that_would_never_freeze_is_refused() -> None:
    with pytest.raises(SettingError, match="raise --epochs"):
        check_methods([parse_setting("int8+freeze9")], [None], epochs=9.0)


def test_several_passes_send_as_many_augmented_views(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    batch = Loader.batch

    def spy(loader: Loader, step: int) -> Any:
        found = batch(loader, step)
        seen.append(float(found.images[..., :4].sum()))  # a flip changes it
        return found

    monkeypatch.setattr(Loader, "batch", spy)
    run = train(study_with(epochs=4.0), parse_setting("int8+freeze0x2"), seed=0)
    (up, _), (up_twice, _), *later = bytes_at(run)
    assert up_twice == pytest.approx(2 * up, rel=0.01)
    assert [sent for sent, _ in later] == [up_twice] * 2
    assert len(seen) == len(set(seen)) == 16
    ordinary, seen[:] = list(seen), []
    train(study_with(epochs=2.0), parse_setting("int8"), seed=0)
    assert seen == ordinary


def test_an_epoch_of_the_store_has_every_row_once() -> None:
    store = StoredActivations(8, seed=5)
    rows = torch.arange(64.0)[:, None, None].expand(-1, 3, 2)
    store.add(rows[:40], torch.eye(64)[:40])
    store.add(rows[40:], torch.eye(64)[40:])
    batches = [store.batch(step) for step in range(8)]
    whole = torch.cat([found for found, _ in batches])
    labels = torch.cat([soft for _, soft in batches]).argmax(dim=1)
    assert sorted(labels.tolist()) == list(range(64))
    assert torch.equal(whole[:, 0, 0], labels.float())
    assert not torch.equal(labels, torch.cat([store.batch(step)[1] for step in range(8, 16)]).argmax(dim=1))
    few = StoredActivations(8, seed=5)
    few.add(rows[:3], torch.eye(64)[:3])
    assert len(few.batch(0)[0]) == len(few.batch(7)[0]) == 3


@pytest.mark.parametrize(
    "text",
    [
        "int8+freeze",
        "int8+freeze-1",
        "int8+freezeinf",
        "topk@0.1+freeze1",
        "none+freezex",
        "none+freeze1x0",
        "none+freeze1xx",
    ],
)
def test_a_freeze_that_makes_no_sense_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SettingError, match="for example"):
        parse_setting(text)


def test_a_fleet_of_devices_does_not_freeze() -> None:
    with pytest.raises(SettingError, match="one device"):
        check_methods([parse_setting("int8+freeze1")], [StudyFleet(2)])
