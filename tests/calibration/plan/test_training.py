"""A whole training as `adc-edge plan` shows it: bytes and time of each way to make it, and of the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from adc_edge.calibration.plan.make import Made, make_plan
from adc_edge.calibration.plan.training import training_lines
from adc_edge.calibration.plan.whole import planned_training, settings_to_measure, ways
from adc_edge.evaluation.study.setting import parse_setting
from adc_edge.planning.candidates import Task, unknown_profile
from adc_edge.planning.plan_file import PlanFile, PlannedTraining, read_plan
from adc_edge.planning.step_model import LinkRates
from adc_edge.storage.bundle import Bundle
from tests.calibration.plan.test_command import ACCURACIES, plan, planned, refused
from tests.calibration.plan.test_command import link as link
from tests.calibration.plan.test_command import profile as profile
from tests.planning.inputs import written_study

LATE = ["--freeze-after", "3", "--send-epochs", "2"]
COARSE = "--freeze-after 2 --send-epochs 2 --precision pca0.5,pca0.5,pca1 --gradient-precision pca0.125".split()
FROZEN = ["--trunk", "frozen", "--send-epochs", "1"]
IMAGES = 1437  # of digits, in 89 batches of 16


@pytest.fixture
def study(tmp_path: Path, bundle: Bundle) -> Path:
    """A study of `evaluate` in which pca1 loses nothing."""
    return written_study(tmp_path / "study", bundle.manifest, ACCURACIES)


def training_of(found: PlanFile) -> PlannedTraining:
    assert isinstance(found.training, PlannedTraining)
    return found.training


def test_a_trunk_that_freezes_sends_less_and_each_way_has_its_bytes_and_its_time(
    tmp_path: Path, bundle_dir: Path, link: Path, profile: Path, study: Path
) -> None:
    found = planned(tmp_path, bundle_dir, link, "--profile", profile, "--study", study, "--data", "digits")
    told, step = training_of(found), found.chosen
    assert (told.epochs, told.steps_per_epoch) == (10, IMAGES // 16)
    assert [way.options for way in told.ways] == [[], LATE, COARSE, FROZEN]
    assert [way.epochs_alone for way in told.ways] == [0, 5, 6, 9]
    chosen, late, coarse, frozen = told.ways
    assert chosen.bytes_up_an_image == pytest.approx(10 * step.bytes_up / 16)
    assert chosen.bytes_down_an_image == pytest.approx(10 * step.bytes_down / 16)
    assert chosen.seconds == pytest.approx(10 * 89 * step.seconds)
    assert chosen.seconds_alone is None
    assert late.bytes_up_an_image == pytest.approx(5 * step.bytes_up / 16, rel=0.02)  # without a wish for gradients
    assert 0.3 * chosen.bytes_down_an_image < late.bytes_down_an_image < 0.5 * chosen.bytes_down_an_image
    assert step.precision == "pca1"
    assert coarse.bytes_up_an_image == pytest.approx((2 / 2 + 2) * step.bytes_up / 16, rel=0.1)  # two epochs in a half
    assert coarse.bytes_down_an_image < 0.7 * late.bytes_down_an_image
    assert frozen.bytes_up_an_image == pytest.approx(chosen.bytes_up_an_image / 10, rel=0.02)
    assert frozen.bytes_down_an_image < late.bytes_down_an_image / 3
    seconds = [way.seconds for way in (frozen, coarse, late, chosen) if way.seconds is not None]
    assert len(seconds) == 4
    assert seconds == sorted(seconds)
    assert late.seconds_alone is not None
    assert frozen.seconds_alone == pytest.approx(late.seconds_alone * 9 / 5)
    assert coarse.seconds_alone == pytest.approx(late.seconds_alone * 6 / 5), "its last epochs are in pca1 too"
    assert {"JPEG q90", "JPEG q75"} <= set(told.pictures)
    assert 200 < told.pictures["JPEG q75"] < told.pictures["JPEG q90"] < 2000


def test_the_screen_says_it_in_words_and_names_what_measures_the_accuracy(
    bundle_dir: Path, link: Path, study: Path
) -> None:
    output = plan(bundle_dir, link, "--study", study, "--data", "digits", "--min-accuracy", -1).output
    words = " ".join(output.split())
    assert "A whole training: 10 epochs of 1,424 images on this link" in words
    assert "the images, once: JPEG q75" in words
    assert "is not predicted; it may lose much to the chosen setting" in words
    named = [word for before, word in zip(words.split(), words.split()[1:], strict=False) if before == "--setting"]
    assert len(named) == 4
    settings = [parse_setting(word.strip("`")) for word in named]
    assert [(one.freeze, one.passes) for one in settings] == [(None, 1), (3.0, 2), (2.0, 2), (0.0, 1)]
    assert settings[2].by_epoch.texts == ("pca0.5,pca0.5,pca1", "pca0.125")
    assert "by the link alone" in words
    late, _ = [line.split() for line in output.splitlines() if line.strip().startswith("--freeze-after")]
    (chosen,) = [line.split() for line in output.splitlines() if line.strip().startswith("as chosen")]
    assert float(late[4]) < 0.5 * float(chosen[2])


@pytest.mark.parametrize(
    ("epochs", "offered"),
    [(6, [[], LATE, COARSE, FROZEN]), (5, [[], COARSE, FROZEN]), (4, [[], FROZEN]), (1, [[]])],
)
def test_only_what_leaves_epochs_for_the_trainer_is_offered(
    tmp_path: Path, bundle_dir: Path, link: Path, epochs: int, offered: list[list[str]]
) -> None:
    found = training_of(planned(tmp_path, bundle_dir, link, "--epochs", epochs))
    assert [way.options for way in found.ways] == offered
    assert found.epochs == epochs


def test_without_a_number_of_images_bytes_are_those_of_an_image(tmp_path: Path, bundle_dir: Path, link: Path) -> None:
    found = training_of(planned(tmp_path, bundle_dir, link))
    assert (found.steps_per_epoch, found.pictures, found.ways[0].seconds) == (None, {}, None)
    output = plan(bundle_dir, link).output
    assert "--images N or --data SRC tells all bytes and the time" in " ".join(output.split())
    assert "kB an image" in output
    counted = training_of(planned(tmp_path, bundle_dir, link, "--images", 1600))
    assert (counted.steps_per_epoch, counted.pictures) == (100, {})
    assert "at least one batch" in refused(bundle_dir, link, "--images", 3)


def test_with_a_number_of_images_the_data_may_be_on_the_device_alone(
    tmp_path: Path, bundle_dir: Path, link: Path
) -> None:
    """They are measured where they can be read; the printed command names them in either case."""
    absent = f"folder:{tmp_path / 'on_the_device'}"
    assert "on_the_device" in refused(bundle_dir, link, "--data", absent)
    assert f"--data {absent}" in plan(bundle_dir, link, "--data", absent, "--images", 1600, columns=400).output
    for source in (absent, "flowers_of_the_device:make"):
        found = training_of(planned(tmp_path, bundle_dir, link, "--data", source, "--images", 1600))
        assert (found.steps_per_epoch, found.pictures) == (100, {})
    here = training_of(planned(tmp_path, bundle_dir, link, "--data", "digits", "--images", 1600))
    assert here.steps_per_epoch == 100
    assert "JPEG q75" in here.pictures


def test_a_plan_of_an_earlier_version_has_no_training_and_is_read(tmp_path: Path, bundle_dir: Path, link: Path) -> None:
    found = planned(tmp_path, bundle_dir, link)
    old = msgspec.structs.replace(found, training=msgspec.UNSET)
    (tmp_path / "old.json").write_bytes(msgspec.json.encode(old))
    assert b'"training":' not in (tmp_path / "old.json").read_bytes()
    assert read_plan(tmp_path / "old.json") == old


def made(bundle: Bundle, **plan: Any) -> Made:
    """A plan whose chosen setting has these settings of a step."""
    manifest = bundle.manifest
    task = Task(manifest, 16, LinkRates(40.0, 5.0, 20.0), unknown_profile(manifest), [], [])
    found = make_plan(task, [], False)
    candidate = found.choice.candidate
    step = candidate.plan._replace(precision="pca1", gradient_precision="pca0.25", freeze_first=0)
    return found._replace(choice=found.choice._replace(candidate=candidate._replace(plan=step._replace(**plan))))


def test_a_chosen_setting_whose_trunk_is_frozen_can_send_its_images_once(bundle: Bundle) -> None:
    frozen = made(bundle, gradient_precision=None)
    assert [(way.options, way.alone) for way in ways(frozen, 10)] == [((), 0), (("--send-epochs", "1"), 9)]
    sent, once = planned_training(frozen, 10, 7, {}).ways
    assert once.bytes_up_an_image == pytest.approx(sent.bytes_up_an_image / 10)
    assert once.seconds is not None
    assert sent.seconds == pytest.approx(10 * once.seconds)
    assert list(settings_to_measure(frozen, 10)) == []
    told = dict(training_lines(planned_training(frozen, 10, 7, {}), frozen))
    assert list(told) == ["training"]  # both ways have the accuracy of the chosen setting
    trains = made(bundle)
    assert list(dict(training_lines(planned_training(trains, 10, 7, {}), trains))) == ["training", "note"]


def test_what_evaluate_cannot_measure_is_not_named(bundle: Bundle) -> None:
    """It has no trunk whose first blocks alone are frozen."""
    assert list(settings_to_measure(made(bundle, freeze_first=1), 10)) == []
    assert len(list(settings_to_measure(made(bundle), 10))) == 4


@pytest.mark.parametrize("columns", [60, 80])
def test_the_table_fits_a_narrow_terminal(bundle_dir: Path, link: Path, profile: Path, columns: int) -> None:
    output = plan(bundle_dir, link, "--profile", profile, "--data", "digits", columns=columns).output
    shown = output[output.index("A whole training") :].partition("\nnext:")[0].splitlines()
    assert max(map(len, shown)) <= columns
    assert "…" not in output
