"""Ranks in one process, as far as they know sessions and devices: table, door and sessions."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec

from adc_edge.cloud_trainer.ranks.devices.door import Door
from adc_edge.cloud_trainer.ranks.devices.owners import Owners
from adc_edge.cloud_trainer.ranks.devices.placing import Placement
from adc_edge.cloud_trainer.record.presence import GuardedConnection
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.scheduling.messages import QueuedMessage
from adc_edge.errors import ProtocolError
from adc_edge.wire.framing import Assembler
from adc_edge.wire.headers import unpack_from_device
from adc_edge.wire.messages import VERSION, Hello, Moved

ROUTES = itertools.count()


def inbox() -> Assembler[Any]:
    return Assembler(unpack_from_device, lambda message: 0)


def hello_of(session: int, moves: bool = True, device: str = "camera") -> Hello:
    """The Hello of a new process of the device."""
    hello = Hello(VERSION, "", session, next(ROUTES), device, 0, 0, 0, steps=10)
    return msgspec.structs.replace(hello, moves=True) if moves else hello


class Rank:
    """The part of a rank that knows sessions and devices, with a door that opens sessions as the server does."""

    def __init__(self, rank: int, world: int, logs: Path, place: Placement, clock: Any) -> None:
        self.registry = SessionRegistry(logs)
        self.owners = Owners(rank, world, endpoint_of(rank), self.registry, place, clock)
        self.door = Door(self.owners)
        self.told: bytes | None = None  # in the round under way; None: it has heard that

    def ask(self, hello: Hello, key: str = "", strict: bool = True) -> tuple[QueuedMessage, str | Moved]:
        """A Hello on a connection of its own, and what becomes of it."""
        route = b"%d" % next(ROUTES)
        peer = self.registry.peer(route, 0, key, inbox)
        peer.connection = GuardedConnection()
        asked = QueuedMessage(route, peer, hello, memoryview(b""))
        return asked, self.answer(asked) if strict else self.try_to_answer(asked)

    def answer(self, asked: QueuedMessage) -> str | Moved:
        found = self.door.hello(asked)
        if found == "here":
            assert isinstance(asked.message, Hello)
            session = self.registry.find(asked.message, asked.peer.owner)
            session.resume(asked.message)
            self.registry.open(session, asked.route)
        return found

    def try_to_answer(self, asked: QueuedMessage) -> str | Moved:
        """Answer, or return "refused": an older device at another rank than its own, or a newer process has come."""
        assert isinstance(asked.message, Hello)
        try:
            return self.answer(asked)
        except ProtocolError as refused:
            if refused.code != "superseded" and (refused.code != "version" or asked.message.moves is True):
                raise
            return "refused"

    def sessions(self) -> set[int]:
        return {session.id for session in self.registry}


def endpoint_of(rank: int) -> str:
    return f"tcp://127.0.0.1:{5555 + rank}"


def rank_at(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2]) - 5555


def world_of(size: int, logs: Path, place: Placement = "load", clock: Any = lambda: 0.0) -> list[Rank]:
    return [Rank(rank, size, logs, place, clock) for rank in range(size)]


def one_round(ranks: list[Rank]) -> None:
    told = [rank.owners.tell() for rank in ranks]
    if any(told):
        for rank in ranks:
            rank.owners.hear(told)
