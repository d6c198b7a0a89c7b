"""A study's runs: stored one by one, never repeated, never mixed with those of another study."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from adc_edge.errors import CheckpointError, SettingError
from adc_edge.evaluation.fleet.setting import StudyFleet
from adc_edge.evaluation.study.progress import StudyDisplay
from adc_edge.evaluation.study.records import Study
from adc_edge.evaluation.study.runner import read_runs, run_study
from adc_edge.evaluation.study.setting import parse_setting
from adc_edge.evaluation.study.split_model import make_split_model
from adc_edge.evaluation.study.training import train
from adc_edge.optimizer.settings import OptimizerSettings
from tests.conftest import TINY

STUDY = Study(
    "digits",
    "vit_tiny_patch16_224",
    model_args=TINY,
    split=2,
    batch_size=32,
    epochs=0.25,
    train_images=256,
    test_images=50,
)
SETTINGS = [parse_setting("none"), parse_setting("adc@0.3/int8")]
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("study")
    assert run_study(STUDY, SETTINGS, [0, 1], directory, 1, QUIET) == []
    return directory


def test_every_setting_runs_with_every_seed_and_equals_a_run_alone(finished: Path) -> None:
    study, runs = read_runs(finished)
    assert study == STUDY
    assert {(run.setting, run.seed) for run in runs} == {(str(s), seed) for s in SETTINGS for seed in (0, 1)}
    alone = train(STUDY, SETTINGS[1], seed=1)
    (same,) = [run for run in runs if (run.setting, run.seed) == ("adc@0.3/int8", 1)]
    assert same.curve[-1].loss == pytest.approx(alone.curve[-1].loss, rel=1e-5)


def test_missing_runs_are_made_and_stored_ones_are_not_repeated(finished: Path) -> None:
    files = sorted((finished / "runs").iterdir())
    before = {path.name: path.stat().st_mtime_ns for path in files[1:]}
    files[0].unlink()
    assert run_study(STUDY, SETTINGS, [0, 1], finished, 1, QUIET) == []
    assert files[0].exists()
    assert {path.name: path.stat().st_mtime_ns for path in files[1:]} == before


@pytest.mark.slow
def test_settings_added_later_run_two_at_a_time_and_report_their_progress(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[tuple[float, bool]] = []
    monkeypatch.setattr(StudyDisplay, "report", lambda _, *growth: shares.append(growth))
    assert run_study(STUDY, [parse_setting("int2"), parse_setting("int3")], [0], finished, 2, QUIET) == []
    assert {run.setting for run in read_runs(finished)[1]} == {"none", "adc@0.3/int8", "int2", "int3"}
    assert len([share for share, computed in shares if computed]) == 2 * 2  # steps of each
    assert sum(share for share, _ in shares) == pytest.approx(2.0)


def test_a_fleet_added_later_has_runs_of_its_own_and_a_study_without_fleets_says_nothing_of_them(
    finished: Path,
) -> None:
    assert "fleets" not in json.loads((finished / "study.json").read_text())
    fleets = [None, StudyFleet(2, mode="averaged", every=1)]
    before = {path.name: path.stat().st_mtime_ns for path in (finished / "runs").iterdir()}
    assert run_study(STUDY, SETTINGS[:1], [0], finished, 1, QUIET, fleets=fleets) == []
    after = {path.name: path.stat().st_mtime_ns for path in (finished / "runs").iterdir()}
    assert after.keys() - before.keys() == {"none.2-iid-averaged-every1.seed0.json"}
    assert {name: after[name] for name in before} == before
    assert [run.fleet for run in read_runs(finished)[1] if run.setting == "none"] == [None, None, fleets[1]]
    assert run_study(STUDY, SETTINGS, [0, 1], finished, 1, QUIET) == []  # as before there were fleets
    (finished / "runs" / "none.2-iid-averaged-every1.seed0.json").unlink()


def test_a_partition_that_does_not_fit_is_refused_before_the_first_run(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="9 devices and 256 training images"):
        run_study(STUDY, SETTINGS, [0], tmp_path, 1, QUIET, fleets=[None, StudyFleet(9)])
    assert not (tmp_path / "runs").exists()


def test_another_study_is_refused_by_what_differs(finished: Path) -> None:
    other = msgspec.structs.replace(STUDY, batch_size=16)
    with pytest.raises(SettingError, match="batch_size 32 there, 16 here"):
        run_study(other, SETTINGS, [0], finished, 1, QUIET)


def test_a_study_goes_on_with_the_crop_that_it_began_with(finished: Path) -> None:
    assert STUDY.crop_pct is None  # as in the studies of 0.6
    unsaid = msgspec.structs.replace(STUDY, crop_pct="model")  # no --crop-pct
    assert run_study(unsaid, SETTINGS, [0], finished, 1, QUIET) == []
    assert read_runs(finished)[0].crop_pct is None
    with pytest.raises(SettingError, match=r"crop_pct None there, 1\.0 here"):
        run_study(msgspec.structs.replace(STUDY, crop_pct=1.0), SETTINGS, [0], finished, 1, QUIET)


def test_the_crop_of_a_study_decides_its_pixels() -> None:
    models = (msgspec.structs.replace(STUDY, crop_pct=crop) for crop in (None, "model", 1.0))
    crops = [make_split_model(study, SETTINGS[0], 0, 10)[1].crop_pct for study in models]
    assert crops == [None, 0.9, 1.0]


def test_a_directory_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"study\.json"):
        read_runs(tmp_path)


def test_a_damaged_run_is_named(finished: Path) -> None:
    path = next((finished / "runs").glob("none*"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="delete it"):
        read_runs(finished)
    path.write_bytes(whole)


def test_a_run_that_diverges_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    study = msgspec.structs.replace(STUDY, optimizer=OptimizerSettings(name="sgd", lr=1e30))
    failures = run_study(study, SETTINGS, [0], tmp_path, 1, QUIET)
    assert [failure.run for failure in failures] == ["none seed 0", "adc@0.3/int8 seed 0"]
    assert not (tmp_path / "runs").exists()
    assert json.loads((tmp_path / "study.json").read_text())["seeds"] == [0]
