"""A real trainer of a fleet that keeps the devices' changes as they came."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adc_edge.cloud_trainer.answers import Request
from adc_edge.cloud_trainer.checkpoints import TrainerCheckpoints
from adc_edge.cloud_trainer.fleet.device_fleet import DeviceFleet
from adc_edge.cloud_trainer.fleet.rounds import Rounds
from adc_edge.cloud_trainer.fleet.settings import FleetSettings
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.scheduling.messages import QueuedMessage
from adc_edge.cloud_trainer.server import Server
from adc_edge.storage.bundle import Bundle
from adc_edge.wire.fleet_messages import TrunkDelta


class RecordingTrainer(Server):
    """Averages the trunks of the devices that are connected.

    Args:
        settings: mode and terms.
        run: keeps the rounds; None: they are in memory.
    """

    def __init__(
        self,
        bundle: Bundle,
        training: HeadTraining,
        sessions: SessionRegistry,
        settings: FleetSettings,
        run: Path | None = None,
    ) -> None:
        checkpoints = TrainerCheckpoints(training, sessions)
        self.fleet = DeviceFleet(settings, bundle, sessions, checkpoints.record, run)
        super().__init__(bundle, training, "tcp://127.0.0.1:*", sessions, checkpoints, fleet=self.fleet)
        self.training = training
        self.deltas: list[tuple[TrunkDelta, bytes]] = []

    @property
    def rounds(self) -> Rounds:
        assert self.fleet._rounds is not None
        return self.fleet._rounds

    def wait_for(self, *sessions: int) -> None:
        """Wait, before the next round closes, for these sessions too."""
        assert self.fleet._trunk is not None
        self.fleet._trunk._returning = set(sessions)

    def go_on(self) -> None:
        """Make a round of another device's change."""
        rng = np.random.default_rng(self.rounds.newest)
        change = {n: 1e-3 * rng.standard_normal(shape).astype(np.float32) for n, shape in self.rounds.shapes.items()}
        self.rounds.close(change, {})

    def _answer(self, asked: QueuedMessage, request: Request) -> None:
        if isinstance(asked.message, TrunkDelta):
            self.deltas.append((asked.message, bytes(asked.body)))
        super()._answer(asked, request)
