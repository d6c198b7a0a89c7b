"""Trainers of a fleet, served by a thread: a stub, and a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from safetensors.torch import load_file

from adc_edge.cloud_trainer.fleet.settings import FleetSettings
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.method.split import head_from_manifest
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.storage.bundle import HEAD, Bundle
from tests.edge_runtime.fleet.recording_trainer import RecordingTrainer
from tests.edge_runtime.fleet.stub_trainer import StubTrainer
from tests.serving import serving

StartsTrainer = Callable[..., AbstractContextManager[StubTrainer]]
StartsRealTrainer = Callable[..., AbstractContextManager[RecordingTrainer]]


@pytest.fixture(scope="package")
def fleet_trainer(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> StartsTrainer:
    """To start one, with the options of StubTrainer."""

    @contextmanager
    def start(**more: Any) -> Iterator[StubTrainer]:
        log: Path = tmp_path_factory.mktemp("log")
        with serving(StubTrainer(bundle, new_training(bundle), SessionRegistry(log), **more)) as server:
            yield cast(StubTrainer, server)

    return start


def new_training(bundle: Bundle) -> HeadTraining:
    """The bundle's head, which has learned nothing yet."""
    head = head_from_manifest(bundle.manifest)
    head.vit.load_state_dict(load_file(bundle.path / HEAD))
    return HeadTraining(head, OptimizerSettings(lr=1e-3))


@pytest.fixture(scope="package")
def real_trainer(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> StartsRealTrainer:
    """To start one with the options of FleetSettings; ``beside`` one that it takes head and sessions over from."""

    @contextmanager
    def start(beside: RecordingTrainer | None = None, **terms: Any) -> Iterator[RecordingTrainer]:
        training = new_training(bundle) if beside is None else beside.training
        sessions = SessionRegistry(tmp_path_factory.mktemp("log")) if beside is None else beside.sessions
        settings = FleetSettings(**{"mode": "averaged", "every": 4, **terms})
        with serving(RecordingTrainer(bundle, training, sessions, settings)) as server:
            yield cast(RecordingTrainer, server)

    return start
