"""A trainer that brings trunks together in the simplest way: an average of so many devices, all in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from safetensors.numpy import load_file

from adc_edge.cloud_trainer.answers import Request
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import Peer, SessionRegistry
from adc_edge.cloud_trainer.scheduling.messages import QueuedMessage
from adc_edge.cloud_trainer.server import Server
from adc_edge.codec.trunk_changes import added, decode_changes, encode_changes, shapes_of
from adc_edge.defaults import FleetPrecision
from adc_edge.storage.bundle import TRUNK, Bundle
from adc_edge.wire.fleet_messages import FleetTerms, TrunkAverage, TrunkDelta
from adc_edge.wire.framing import to_frames
from adc_edge.wire.messages import Hello, Welcome


class StubTrainer(Server):
    """A real trainer's socket that also answers changes of the trunk.

    Args:
        devices: whose changes make a round.
        every: steps between two changes; None: as a trainer of 0.10, which says nothing of a fleet.
    """

    def __init__(
        self,
        bundle: Bundle,
        training: HeadTraining,
        sessions: SessionRegistry,
        devices: int = 1,
        every: int | None = 4,
        precision: FleetPrecision = "int8",
    ) -> None:
        super().__init__(bundle, training, "tcp://127.0.0.1:*", sessions)
        self.training = training
        self.devices, self.every, self.precision = devices, every, precision
        self.trunk = load_file(bundle.path / TRUNK)
        self.shapes = shapes_of(self.trunk)
        self.rounds: list[bytes] = []
        self.deltas: list[tuple[TrunkDelta, bytes]] = []  # as they came
        self.open: dict[int, tuple[TrunkDelta, dict[str, Any]]] = {}  # contributions of the open round
        self.counted: dict[int, int] = {}  # newest step of each session that is in a round
        self.held: list[tuple[bytes, Peer, TrunkDelta]] = []
        self.answer_as: Callable[[TrunkAverage, bytes], tuple[TrunkAverage, bytes]] = lambda answer, body: (
            answer,
            body,
        )
        self.hello: Hello | None = None
        others = self._arriving.body_bytes
        self._arriving.body_bytes = lambda message: (  # type: ignore[method-assign]
            message.body_bytes if isinstance(message, TrunkDelta) else others(message)
        )
        welcome = self._answers._open_session
        self._answers._open_session = lambda context, hello: self._with_terms(hello, welcome(context, hello))  # type: ignore[method-assign]

    def _with_terms(self, hello: Hello, welcome: Welcome) -> Welcome:
        self.hello = hello
        if self.every is None:
            return welcome
        terms = FleetTerms("averaged", self.every, self.precision, len(self.rounds))
        return msgspec.structs.replace(welcome, fleet=terms)

    def _answer(self, asked: QueuedMessage, request: Request) -> None:
        route, peer, message, body = asked.route, asked.peer, asked.message, asked.body
        if not isinstance(message, TrunkDelta):
            super()._answer(asked, request)
            return
        self.deltas.append((message, bytes(body)))
        if not message.images or self.counted.get(message.session, -1) >= message.step:
            self._reply(route, peer, message)
            return
        self.open[message.session] = message, decode_changes(body, self.shapes, message.precision)
        self.held.append((route, peer, message))
        if len(self.open) == self.devices:
            self._close_round()

    def _close_round(self) -> None:
        images = sum(message.images for message, _ in self.open.values())
        mean = {
            name: np.float32(1 / images) * sum(message.images * change[name] for message, change in self.open.values())
            for name in self.shapes
        }
        self.rounds.append(encode_changes(mean, self.precision))
        self.trunk = added(self.trunk, decode_changes(self.rounds[-1], self.shapes, self.precision))
        self.counted |= {session: message.step for session, (message, _) in self.open.items()}
        self.open.clear()
        held, self.held = self.held, []
        for route, peer, message in held:
            self._reply(route, peer, message)

    def _reply(self, route: bytes, peer: Peer, message: TrunkDelta) -> None:
        body, told = b"".join(self.rounds[message.base :]), (message.session, message.step, message.transfer)
        answer = TrunkAverage(*told, len(body), message.base, len(self.rounds), self.precision, devices=self.devices)
        whole = encode_changes(self.trunk, "fp32")
        if len(body) > len(whole):
            answer, body = msgspec.structs.replace(answer, whole=True, body_bytes=len(whole)), whole
        self._replies.send(route, peer, to_frames(*self.answer_as(answer, body)))
