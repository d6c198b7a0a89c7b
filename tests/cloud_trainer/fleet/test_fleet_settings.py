"""Options of a fleet: those that mean nothing are refused, and a run goes on in the mode in which it began."""

from __future__ import annotations

import json
import logging
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adc_edge.cloud_trainer.fleet.settings import FleetSettings
from adc_edge.cloud_trainer.runner import Trainer, TrainerSettings
from adc_edge.errors import CheckpointError, SettingError
from adc_edge.storage.run_dir import RunDir
from adc_edge.storage.run_settings import SETTINGS


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ({"mode": "parallel", "every": 5}, "--average-every with --mode parallel"),
        ({"mode": "frozen", "precision": "fp32"}, "--average-precision with --mode frozen"),
        ({"mode": "sequential", "robust": "median"}, "--robust with --mode sequential"),
        ({"mode": "sequential", "guard": False}, "--guard with --mode sequential"),
        ({"mode": "parallel", "wait_s": 5.0}, "--average-wait with --mode parallel"),
    ],
)
def test_an_option_that_means_nothing_in_the_mode_is_refused(given: dict[str, Any], refused: str) -> None:
    with pytest.raises(SettingError) as error:
        FleetSettings(**given).check()
    assert error.value.received == refused


def test_options_of_their_mode_are_taken() -> None:
    FleetSettings("averaged", 5, 2.0, "fp16", "median", False, 3).check()
    FleetSettings("sequential", 5, 2.0, "fp16").check()


def begun(settings: TrainerSettings, run: Path) -> None:
    """A run with these settings that has done a step."""
    with closing(RunDir(run, settings.fixed(settings.check()), {})) as run_dir:
        run_dir.metric(kind="step", head_step=1)


def test_a_run_goes_on_in_the_mode_in_which_it_began(bundle_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    own: dict[str, Any] = {"bundle": bundle_dir, "bind": "tcp://127.0.0.1:*", "run": run}
    averaged = TrainerSettings(**own, mode="averaged")
    begun(averaged, run)
    TrainerSettings(**own, mode="averaged", average_wait=5.0).check()
    with pytest.raises(CheckpointError) as error:
        TrainerSettings(**own, mode="averaged", average_every=20).check()
    was, now = (f"averaged, every {k} steps, changes in int8, robust none, guard on" for k in (10, 20))
    assert error.value.received == f"{run} holds another run: mode was {was!r}, is {now!r}"
    with pytest.raises(CheckpointError, match=f"mode was '{was}', is 'parallel'"):
        TrainerSettings(**own).check()


def test_a_run_of_0_10_is_one_in_parallel(bundle_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    own: dict[str, Any] = {"bundle": bundle_dir, "bind": "tcp://127.0.0.1:*", "run": run}
    begun(TrainerSettings(**own), run)
    kept = json.loads((run / SETTINGS).read_text())
    del kept["fixed"]["mode"]
    (run / SETTINGS).write_text(json.dumps(kept))
    TrainerSettings(**own).check()
    with pytest.raises(CheckpointError, match="mode was 'parallel', is 'frozen'"):
        TrainerSettings(**own, mode="frozen").check()


def test_a_trainer_logs_its_mode(bundle_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = TrainerSettings(bundle_dir, "tcp://127.0.0.1:*", run=tmp_path / "run", device="cpu", mode="sequential")
    with caplog.at_level(logging.INFO, "adc_edge"):
        Trainer(settings, Console(), stop=lambda: True).run()
    fleet = "fleet    sequential, every 10 steps, changes in int8; round 0"
    assert fleet in [record.getMessage() for record in caplog.records]
