"""Devices with a real trainer in each mode."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from adc_edge.cloud_trainer.checkpoints import TrainerCheckpoints
from adc_edge.cloud_trainer.fleet.device_fleet import DeviceFleet
from adc_edge.cloud_trainer.fleet.settings import FleetSettings
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.errors import RefusedError
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.checkpoint import load_checkpoint
from adc_edge.storage.fleet_trunk import newest_fleet_trunk
from tests.edge_runtime.fleet.device import averages, same, serve, trunk
from tests.serving import serving

Starts = Callable[..., AbstractContextManager[str]]


@pytest.fixture
def trainer(bundle: Bundle, training: HeadTraining, tmp_path: Path) -> Starts:
    """To start one, whose rounds are kept; yields its address."""

    @contextmanager
    def start(settings: FleetSettings, **more: Any) -> Iterator[str]:
        sessions = SessionRegistry(tmp_path / "log")
        checkpoints = TrainerCheckpoints(training, sessions)
        fleet = DeviceFleet(settings, bundle, sessions, checkpoints.record, tmp_path)
        with serving(
            Server(bundle, training, "tcp://127.0.0.1:*", sessions, checkpoints, fleet=fleet, **more)
        ) as server:
            yield server.endpoint

    return start


@pytest.mark.parametrize(
    ("mode", "merge_passes"), [("averaged", "off"), ("averaged", "sum"), ("averaged", "each"), ("sequential", "off")]
)
def test_two_devices_end_with_the_fleets_trunk(
    mode: str, merge_passes: str, bundle: Bundle, trainer: Starts, tmp_path: Path
) -> None:
    runs = [tmp_path / "a", tmp_path / "b"]

    def work(seed: int) -> None:
        serve(bundle, endpoint, runs[seed], steps=5, seed=seed)

    settings = FleetSettings(mode, every=2, devices=2)  # type: ignore[arg-type]
    with trainer(settings, merge_passes=merge_passes) as endpoint:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    end = newest_fleet_trunk(tmp_path)
    assert end is not None
    assert sorted(end.learned.values()) == [5, 5]
    fleet = load_checkpoint(max((tmp_path / "rounds").glob("checkpoint-*"))).meta["fleet"]
    for run in runs:
        stands = load_checkpoint(max(run.glob("checkpoint-*"))).meta["fleet"]
        assert stands == {"averaged": 5, "round": end.round, "fleet": fleet, "number": 0, "ended": True}
    for run in runs:
        assert same(trunk(run), end.weights)
        assert [line["step"] for line in averages(run)] == [0, 2, 4, 5]
    if mode == "sequential":
        assert end.round == 6


def test_where_no_trunk_is_trained_a_device_that_trains_one_is_refused_by_name(
    bundle: Bundle, trainer: Starts, tmp_path: Path
) -> None:
    with trainer(FleetSettings("frozen")) as endpoint:
        with pytest.raises(RefusedError, match="--mode frozen") as refusal:
            serve(bundle, endpoint, tmp_path / "a", steps=1)
        assert "--trunk frozen" in refusal.value.remedy
        assert serve(bundle, endpoint, tmp_path / "b", steps=1, trunk="frozen")["complete"]


def test_a_frozen_trunk_is_refused_where_the_trunks_become_one(bundle: Bundle, trainer: Starts, tmp_path: Path) -> None:
    with trainer(FleetSettings("averaged")) as endpoint, pytest.raises(RefusedError, match="--mode averaged"):
        serve(bundle, endpoint, tmp_path / "a", steps=1, trunk="frozen")
