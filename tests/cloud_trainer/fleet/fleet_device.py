"""A device that speaks the messages of a fleet over a real socket, and a trainer for it that can be started again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from safetensors.numpy import load_file

from adc_edge.arrays import Float32
from adc_edge.cloud_trainer.checkpoints import TrainerCheckpoints
from adc_edge.cloud_trainer.fleet.device_fleet import DeviceFleet
from adc_edge.cloud_trainer.fleet.settings import FleetSettings
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.codec.trunk_changes import added, changes_bytes, decode_changes, encode_changes, shapes_of
from adc_edge.storage.bundle import TRUNK, Bundle
from adc_edge.storage.run_dir import RunDir
from adc_edge.wire.channel import Channel
from adc_edge.wire.fleet_messages import TrunkAverage, TrunkDelta
from adc_edge.wire.messages import VERSION, Bye, ByeAck, FromTrainer, Hello, Welcome
from tests.serving import serving


@contextmanager
def trainer(bundle: Bundle, training: HeadTraining, run: Path | None, **terms: Any) -> Iterator[Server]:
    """A process of a trainer, as far as its state goes: what it keeps is in ``run``."""
    settings = FleetSettings(**{"mode": "averaged", "precision": "fp32", **terms})
    with closing(RunDir(run, {}, {})) as run_dir:
        sessions = SessionRegistry(run_dir.journal)
        checkpoints = TrainerCheckpoints(training, sessions, run_dir)
        checkpoints.resume()
        fleet = DeviceFleet(settings, bundle, sessions, checkpoints.record, run_dir.path)
        with serving(Server(bundle, training, "tcp://127.0.0.1:*", sessions, checkpoints, fleet=fleet)) as server:
            yield server


class FleetDevice:
    """One session. Its trunk is what it was told; its changes are told by the test."""

    def __init__(self, bundle: Bundle, server: Server, session: int, **hello: Any) -> None:
        self.bundle, self.session, self.base, self.step = bundle, session, 0, hello.pop("step", 0)
        self.trunk: Mapping[str, Float32] = load_file(bundle.path / TRUNK)
        self.name = hello.pop("name", f"orin-{session}")
        self.said = {"fleet": True, **hello}
        self.fleet: int | UnsetType = UNSET  # that the round is of
        self.connect(server)

    def connect(self, server: Server) -> None:
        """Open the session over a new connection."""
        self.server = server
        self.channel = Channel(server.endpoint, body_bytes=self._body_bytes)
        try:
            self.channel.open(30, self._hello)
        except BaseException:
            self.close()
            raise

    def _hello(self) -> None:
        said = VERSION, self.bundle.digest, self.session, self.session, self.name, self.step, None, 0
        self.channel.send(msgspec.structs.replace(Hello(*said), **self.said))
        welcome, _ = self.channel.receive(30_000)
        assert isinstance(welcome, Welcome)
        self.welcome = welcome

    @staticmethod
    def _body_bytes(message: FromTrainer) -> int:
        return message.body_bytes if isinstance(message, TrunkAverage) else 0

    def constant(self, value: float) -> dict[str, Float32]:
        """A change by the same value everywhere."""
        return {name: np.full(shape, value, np.float32) for name, shape in shapes_of(self.trunk).items()}

    def learn(self, step: int) -> None:
        """Have done the steps before ``step``, as far as the trainer counts them."""
        self.step = step
        record = self.server.sessions.records()[self.session]
        record.applied, record.finished = step, record.finished and record.applied == step
        record.images = 1000 * step

    def ask(self, **more: Any) -> None:
        """Send a question without a change."""
        self.learn(self.step)
        self.channel.send(TrunkDelta(self.session, self.step, self.base, 1, 0, 0, "fp32", fleet=self.fleet, **more))

    def contribute(self, step: int, change: Mapping[str, Float32], images: int = 10, last: bool = False) -> None:
        """Send a change."""
        self.learn(step)
        body = encode_changes(change, "fp32")
        ids = self.session, step, self.base, step, len(body)
        self.channel.send(TrunkDelta(*ids, images, "fp32", last, fleet=self.fleet), body)

    def receive(self, timeout_ms: float = 30_000) -> TrunkAverage:
        """Take the answer, and bring the trunk to the fleet's."""
        message, body = self.channel.receive(timeout_ms)
        assert isinstance(message, TrunkAverage)
        assert (message.session, message.step, message.base) == (self.session, self.step, self.base)
        shapes = shapes_of(self.trunk)
        size = changes_bytes(shapes, message.precision)
        if message.whole:
            self.trunk = decode_changes(body, shapes, "fp32")
        for start in range(0, 0 if message.whole else len(body), size):
            self.trunk = added(self.trunk, decode_changes(body[start : start + size], shapes, message.precision))
        self.base = message.round
        self.fleet = UNSET if self.welcome.fleet is UNSET else self.welcome.fleet.fleet
        return message

    def bye(self) -> None:
        """End the session."""
        self.channel.send(Bye(self.session))
        assert isinstance(self.channel.receive(30_000)[0], ByeAck)

    def close(self) -> None:
        """End the connection."""
        self.channel.close()


def equal(one: Mapping[str, Float32], other: Mapping[str, Float32]) -> bool:
    """Whether two trunks have the same bits."""
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
