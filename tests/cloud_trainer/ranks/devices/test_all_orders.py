"""One rank for each session, whatever devices do and in whichever order ranks hear of it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from adc_edge.cloud_trainer.ranks.devices.owners import UNOPENED_S
from adc_edge.cloud_trainer.ranks.devices.placing import Placement
from adc_edge.cloud_trainer.served_session import ServedSession, SessionRecord
from adc_edge.wire.messages import Hello, Moved
from tests.cloud_trainer.ranks.devices.doors import Rank, hello_of, one_round, rank_at, world_of

KEYS = ["", "", "", "A" * 40, "A" * 40, "B" * 40]  # of the devices below
DEVICES = len(KEYS)


class Doors(RuleBasedStateMachine):
    """Devices say Hello at any rank and at any time of a round; ranks hear rounds in any order, and may restart."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.now = 0.0
        self.saved: tuple[Any, dict[int, SessionRecord]] = (None, {})
        self.round: list[bytes] | None = None
        self.heard: set[int] = set()

    @initialize(size=st.integers(1, 4), place=st.sampled_from(["load", "key", "name"]))
    def start(self, size: int, place: Placement) -> None:
        self.place = place
        self.ranks = world_of(size, Path(self.directory.name), place, lambda: self.now)

    def teardown(self) -> None:
        try:
            if hasattr(self, "ranks"):
                self.settle()
        finally:
            self.directory.cleanup()

    @rule(device=st.integers(0, DEVICES - 1), rank=st.integers(0, 3), moves=st.booleans())
    def say_hello(self, device: int, rank: int, moves: bool) -> None:
        door = self.ranks[rank % len(self.ranks)]
        self.follow(door, hello_of(device, moves, f"camera {device}"), KEYS[device])

    def follow(self, door: Rank, hello: Hello, key: str) -> str:
        """Say Hello and follow moves, as a device does; returns how that has ended."""
        for _ in range(4):
            found = door.ask(hello, key, strict=False)[1]
            if not isinstance(found, Moved):
                return found
            door = self.ranks[rank_at(found.endpoint)]
        raise AssertionError("moved four times")

    @precondition(lambda self: self.round is None)
    @rule()
    def begin_round(self) -> None:
        told = [rank.owners.tell() for rank in self.ranks]
        if any(told):
            self.round, self.heard = told, set()

    @precondition(lambda self: self.round is not None)
    @rule(rank=st.integers(0, 3))
    def hear_round(self, rank: int) -> None:
        self.hear(rank % len(self.ranks))

    def hear(self, rank: int) -> None:
        if self.round is None or rank in self.heard:
            return
        self.heard.add(rank)
        here = self.ranks[rank]
        here.owners.hear(self.round)
        if len(self.heard) == len(self.ranks):
            self.round = None
        for asked in here.door.decided():
            assert isinstance(asked.message, Hello)
            found = here.try_to_answer(asked)
            assert found != "wait"
            if isinstance(found, Moved):
                self.follow(self.ranks[rank_at(found.endpoint)], asked.message, asked.peer.owner)

    @rule(rank=st.integers(0, 3), computed=st.integers(0, 1000))
    def work(self, rank: int, computed: int) -> None:
        spent = [computed if at == rank else 10 for at in range(len(self.ranks))]
        for one in self.ranks:
            one.owners.worked(spent, 1000)

    @rule(rank=st.integers(0, 3), finishes=st.booleans())
    def end_a_session(self, rank: int, finishes: bool) -> None:
        registry = self.ranks[rank % len(self.ranks)].registry
        first = next(iter(registry), None)
        if isinstance(first, ServedSession):
            if finishes:
                first.record.finished = True
            else:
                registry._evict(first)

    @rule(seconds=st.sampled_from([1.0, 2 * UNOPENED_S]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.round is None)
    @rule()
    def checkpoint(self) -> None:
        records = {n: record for rank in self.ranks for n, record in rank.registry.records().items()}
        self.saved = (
            self.ranks[0].owners.kept(),
            msgspec.convert(msgspec.to_builtins(records), dict[int, SessionRecord]),
        )

    @rule(size=st.integers(1, 4))
    def restart(self, size: int) -> None:
        kept, records = self.saved
        self.round = None
        self.ranks = world_of(size, Path(self.directory.name), self.place, lambda: self.now)
        for rank in self.ranks:
            fresh = msgspec.convert(msgspec.to_builtins(records), dict[int, SessionRecord])
            rank.owners.restore(kept, fresh)
            mine = {n: record for n, record in fresh.items() if rank.owners.owner(n) == rank.owners.rank}
            rank.registry.restore(mine)

    @invariant()
    def no_session_is_served_twice(self) -> None:
        if hasattr(self, "ranks"):
            served = [number for rank in self.ranks for number in rank.sessions()]
            assert len(served) == len(set(served))

    @invariant()
    def tables_are_alike_between_rounds_and_keys_together(self) -> None:
        if not hasattr(self, "ranks") or self.round is not None:
            return
        first = self.ranks[0].owners.kept()
        assert all(rank.owners.kept() == first for rank in self.ranks)
        for key in set(KEYS) - {""}:
            owners = {self.ranks[0].owners.owner(n) for n in range(DEVICES) if KEYS[n] == key} - {None}
            assert len(owners) <= 1

    def settle(self) -> None:
        """Every device that says Hello is served after two rounds at the latest."""
        for _ in range(4):
            for rank in range(len(self.ranks)):
                self.hear(rank)
            self.begin_round()
        for rank in range(len(self.ranks)):
            self.hear(rank)
        for device in range(DEVICES):
            ways = [self.follow(self.ranks[0], hello_of(device, device=f"camera {device}"), KEYS[device])]
            for _ in range(2):
                one_round(self.ranks)
                for door in self.ranks:
                    ways += [str(door.try_to_answer(asked)) for asked in door.door.decided()]
                ways.append(self.follow(self.ranks[-1], hello_of(device, device=f"camera {device}"), KEYS[device]))
                self.no_session_is_served_twice()
            assert ways[-1] == "here"


TestDoors = Doors.TestCase
TestDoors.settings = settings(
    max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
