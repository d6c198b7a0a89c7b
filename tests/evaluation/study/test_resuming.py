"""A run that was cut short goes on from its last evaluation, and gives the numbers of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from adc_edge.evaluation.study.records import Run, Study
from adc_edge.evaluation.study.resuming import Unfinished
from adc_edge.evaluation.study.runner import read_runs, run_study
from adc_edge.evaluation.study.setting import parse_setting
from adc_edge.evaluation.study.training import train
from adc_edge.optimizer.settings import OptimizerSettings
from tests.conftest import TINY

STUDY = Study(
    "digits",
    "vit_tiny_patch16_224",
    model_args={**TINY, "drop_rate": 0.3},  # it draws from torch's own generator
    split=2,
    batch_size=32,
    epochs=1.0,
    evaluate_every=0.25,
    train_images=256,
    test_images=50,
    optimizer=OptimizerSettings(name="adam", lr=1e-3),
)
QUIET = Console(quiet=True)


class Killed(BaseException):
    """Stands for the end of the process within a step."""


def killed_at(share: float) -> Any:
    def progress(done: float) -> None:
        if done >= share:
            raise Killed

    return progress


def numbers(run: Run) -> Any:
    """Everything of a run but its seconds."""
    points = [{**msgspec.to_builtins(point), "seconds": 0} for point in run.curve]
    return {**msgspec.to_builtins(run), "curve": points}


@pytest.mark.parametrize(
    ("setting", "optimizer"),
    [
        ("none", "adam"),
        ("adc@0.3/int8", "sgd"),
        pytest.param("bottlenetpp@0.25", "adamw", marks=pytest.mark.slow),
        pytest.param("randtopk@0.2", "adam", marks=pytest.mark.slow),
        ("aqsgd-direct/int2:int4", "adam"),
        ("lowrank-ef@0.1/int8", "adam"),
        pytest.param("aqsgd/int3", "sgd", marks=pytest.mark.slow),
        pytest.param("tah@0.05", "adam", marks=pytest.mark.slow),
        pytest.param("fedlite@0.05/fp16:pca0.25", "adam", marks=pytest.mark.slow),
        pytest.param("tsflora@0.3/int4", "adam", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_cut_short_twice_equals_an_undisturbed_one_bit_for_bit(
    setting: str, optimizer: Any, tmp_path: Path
) -> None:
    study = msgspec.structs.replace(STUDY, optimizer=OptimizerSettings(name=optimizer, lr=1e-3, momentum=0.9))
    if setting.startswith("aqsgd"):  # images come again, and the memory counts
        study = msgspec.structs.replace(study, epochs=4.0, evaluate_every=1.0, train_images=64)
    method = parse_setting(setting)
    whole = train(study, method, 3)
    for share in (3 / 8, 7 / 8):
        with pytest.raises(Killed):
            train(study, method, 3, progress=killed_at(share), unfinished=Unfinished(tmp_path, study, method, 3))
    shares: list[float] = []
    resumed = train(study, method, 3, progress=shares.append, unfinished=Unfinished(tmp_path, study, method, 3))
    assert shares == [6 / 8, 7 / 8, 1.0]
    assert numbers(resumed) == numbers(whole)
    assert [point.seconds for point in resumed.curve] == sorted(point.seconds for point in resumed.curve)


def cut_short(directory: Path, share: float = 5 / 8) -> None:
    method = parse_setting("none")
    kept = Unfinished(directory, STUDY, method, 3)
    with pytest.raises(Killed):
        train(STUDY, method, 3, progress=killed_at(share), unfinished=kept)


def first_share(directory: Path, study: Study = STUDY, setting: str = "none", seed: int = 3) -> float:
    """The share of a run that is done when it starts."""
    shares: list[float] = []

    def stop(share: float) -> None:
        shares.append(share)
        raise Killed

    method = parse_setting(setting)
    with pytest.raises(Killed):
        train(study, method, seed, progress=stop, unfinished=Unfinished(directory, study, method, seed))
    return shares[0]


def test_a_torn_checkpoint_costs_one_evaluation_and_two_the_whole_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cut_short(tmp_path)
    older, newer = sorted(tmp_path.iterdir())
    newer.write_bytes(newer.read_bytes()[:1000])
    assert first_share(tmp_path) == 2 / 8
    older.write_bytes(b"")
    assert first_share(tmp_path) == 0.0
    assert "the run starts again" in caplog.text


@pytest.mark.parametrize(
    "other",
    [{"seed": 4}, {"setting": "int8"}, {"study": msgspec.structs.replace(STUDY, batch_size=16)}],
    ids=lambda other: next(iter(other)),
)
def test_what_another_run_has_kept_is_not_used_and_does_not_push_out_a_checkpoint(
    other: dict[str, Any], tmp_path: Path
) -> None:
    cut_short(tmp_path, 7 / 8)
    method = parse_setting(other.get("setting", "none"))
    assert not Unfinished(tmp_path, other.get("study", STUDY), method, other.get("seed", 3)).kept()
    assert first_share(tmp_path, **other) == 0.0
    cut_short(tmp_path, 3 / 8)
    assert first_share(tmp_path) == 2 / 8


def test_a_full_disk_is_told_and_the_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no directory can be made here")
    method = parse_setting("none")
    run = train(STUDY, method, 3, unfinished=Unfinished(tmp_path / "file" / "run", STUDY, method, 3))
    assert len(run.curve) == 4
    assert "the run goes on" in caplog.text


KILLED = """
import os, signal, sys
from pathlib import Path
from rich.console import Console
from adc_edge.evaluation.study.steps import StudySteps
from adc_edge.evaluation.study.runner import run_study
from adc_edge.evaluation.study.setting import parse_setting
from tests.evaluation.study.test_resuming import STUDY
import torch
torch.set_num_threads(1)
make = StudySteps.make
def killing(steps, step, wire, planned):
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return make(steps, step, wire, planned)
StudySteps.make = killing
run_study(STUDY, [parse_setting("none")], [0], Path(sys.argv[1]), 1, Console(quiet=True))
"""


@pytest.mark.slow
def test_a_study_whose_process_was_killed_goes_on_and_leaves_nothing_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = Path(__file__).parents[3]
    words = [sys.executable, "-c", KILLED, str(tmp_path / "study")]
    done = subprocess.run(words, cwd=place, env={**os.environ, "PYTHONPATH": str(place)}, timeout=200, check=False)
    assert done.returncode == -signal.SIGKILL
    kept = tmp_path / "study" / "unfinished" / "none.seed0"
    assert [path.name for path in sorted(kept.iterdir())] == [f"checkpoint-{step:08d}.safetensors" for step in (2, 4)]
    with caplog.at_level("INFO", "adc_edge"):
        assert run_study(STUDY, [parse_setting("none")], [0], tmp_path / "study", 1, QUIET) == []
    assert "1 of the others goes on from the last evaluation" in caplog.text
    (run,) = read_runs(tmp_path / "study")[1]
    assert numbers(run) == numbers(train(STUDY, parse_setting("none"), 0))
    assert sorted(path.name for path in (tmp_path / "study").iterdir()) == ["runs", "study.json"]


def test_a_checkpoint_of_a_run_that_is_stored_is_deleted(tmp_path: Path) -> None:
    assert run_study(STUDY, [parse_setting("none")], [0], tmp_path, 1, QUIET) == []
    cut_short(tmp_path / "unfinished" / "none.seed0")
    assert run_study(STUDY, [parse_setting("none")], [0], tmp_path, 1, QUIET) == []
    assert not (tmp_path / "unfinished").exists()


def test_a_run_of_an_older_version_is_read(tmp_path: Path) -> None:
    assert run_study(STUDY, [parse_setting("none")], [0], tmp_path, 1, QUIET) == []
    path = tmp_path / "runs" / "none.seed0.json"
    values = json.loads(path.read_text())
    assert values["guess"]["images"] == 50
    del values["guess"]
    path.write_text(json.dumps(values))
    assert read_runs(tmp_path)[1][0].guess is None
