"""Rounds of a fleet under any order of messages, cuts, kills and restarts: no change is applied twice, none is lost."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from adc_edge.arrays import Float32, Weights
from adc_edge.cloud_trainer.fleet.barrier import Barrier
from adc_edge.cloud_trainer.fleet.common_trunk import CommonTrunk, Due, Member
from adc_edge.cloud_trainer.fleet.rounds import KEPT_ROUNDS, Rounds, SettledStep
from adc_edge.cloud_trainer.fleet.settings import FleetSettings
from adc_edge.cloud_trainer.fleet.turns import Turns
from adc_edge.codec.trunk_changes import added, changes_bytes, decode_changes, encode_changes, shapes_of
from adc_edge.wire.fleet_messages import TrunkAverage, TrunkDelta
from tests.serving import logged

BUNDLE: Mapping[str, Float32] = {"a": np.zeros(3, np.float32), "b": np.ones((2, 2), np.float32)}
LAST, DEVICES = 30, 3
ODD = 2, LAST // 2  # session and step whose change is far larger than all others


def change_of(session: int, step: int) -> dict[str, Float32]:
    """The change by a device's steps before ``step``: the same each time that they are done."""
    rng = np.random.default_rng([session, step])
    size = np.float32(100 if (session, step) == ODD else 1)
    return {name: size * rng.standard_normal(value.shape).astype(np.float32) for name, value in BUNDLE.items()}


def images_of(session: int, step: int) -> int:
    return 1 + (7 * session + step) % 50


class Ledger(Rounds):
    """Rounds that note what was counted, and can die at the worst instants."""

    def __init__(self, run: Path | None, counted: list[dict[int, SettledStep]], precision: Any) -> None:
        super().__init__(BUNDLE, precision, run)
        self.counted, self.full = counted, False
        self.left_out: set[tuple[int, int]] = set()

    def leave_out(self, session: int, step: int, why: str, last: bool, images: int) -> None:
        super().leave_out(session, step, why, last, images)
        self.left_out.add((session, step))

    def close(self, change: Weights, settled: Mapping[int, SettledStep]) -> int:
        if self.full:
            raise OSError("no room")
        size = super().close(change, settled)
        self.counted.append(dict(settled))
        return size


class FakeDevice:
    """A device as it must behave: it keeps its question until it is answered, and what it applied in a checkpoint."""

    def __init__(self, session: int, every: int) -> None:
        self.session, self.step, self.base, self.every = session, 0, 0, every
        self.trunk: Mapping[str, Float32] = BUNDLE
        self.connected = self.sent = self.finished = self.paused = False
        self.checkpoints: list[tuple[int, int, Mapping[str, Float32]]] = []
        self.inbox: list[Due] = []

    @property
    def at(self) -> tuple[int, int]:
        return self.session, self.step

    def question(self) -> tuple[TrunkDelta, bytes]:
        images = images_of(self.session, self.step) if self.step else 0
        body = encode_changes(change_of(self.session, self.step), "fp32") if images else b""
        ids = self.session, self.step, self.base, self.step + 1, len(body)
        return TrunkDelta(*ids, images, "fp32", self.step == LAST), body

    def fall_back(self) -> None:
        """Come back at the checkpoint before the newest, which is damaged."""
        self.step, self.base, self.trunk = self.checkpoints.pop()
        self.cut()

    def cut(self) -> None:
        self.connected = self.sent = False
        self.inbox.clear()

    def apply(self, answer: Due) -> None:
        """Bring the trunk to the fleet's, keep that, and do the next steps."""
        message, body = answer
        self.checkpoints.append((self.step, self.base, self.trunk))
        assert (message.step, message.base) == (self.step, self.base)
        shapes = shapes_of(BUNDLE)
        if message.whole:
            self.trunk = decode_changes(body, shapes, "fp32")
        else:
            size = changes_bytes(shapes, message.precision)
            assert len(body) == size * (message.round - message.base)
            for start in range(0, len(body), size):
                change = decode_changes(body[start : start + size], shapes, message.precision)
                self.trunk = added(self.trunk, change)
        self.base, self.sent = message.round, False
        self.finished = self.step == LAST
        self.step = min(self.step + self.every, LAST)


USUAL = ("ask", "ask", "pass_time", "pass_time", "receive", "receive")
FAULTS = (
    "cut",
    "connect",
    "fall_back",
    "wait",
    "pause",
    "go_alone",
    "kill_trainer",
    "kill_trainer_before_the_answers",
    "kill_trainer_and_its_newest_checkpoint",
    "turn_disk_full",
)
actions = st.tuples(st.sampled_from(4 * USUAL + FAULTS), st.integers(0, DEVICES - 1))


def keep_turn(file: Path, session: int | None) -> None:
    file.write_text("" if session is None else str(session))


class FakeFleet:
    """Devices and a trainer whose messages and processes fail at any time."""

    def __init__(self, run: Path, mode: Any, precision: Any, wait_s: float, every: int) -> None:
        self.terms = FleetSettings(mode, every, wait_s, precision, guard=mode == "averaged", devices=DEVICES)
        self.run, self.now, self.every = run, 0.0, every
        self.counted: list[dict[int, SettledStep]] = []
        self.left_out: set[tuple[int, int]] = set()  # by a trainer that has been killed since
        self.devices = [FakeDevice(session, every) for session in range(DEVICES)]
        self.applied = dict.fromkeys(range(DEVICES), 0)  # steps of each that the head has learned
        self.rounds = Ledger(self.run, self.counted, self.terms.precision)
        self.kill_trainer()

    def kill_trainer(self, who: int = 0) -> None:
        """Start a new process: all connections and all memory are gone."""
        self.left_out |= self.rounds.left_out
        self.rounds = Ledger(self.run, self.counted, self.terms.precision)
        turn = self.run / "turn"
        holder = int(turn.read_text() or -1) if turn.exists() else -1
        scheme: Barrier | Turns = Barrier(self.terms.wait_s)
        if self.terms.mode == "sequential":
            scheme = Turns(self.terms.wait_s, None if holder < 0 else holder, lambda session: keep_turn(turn, session))
        returning = {d.session for d in self.devices if not d.finished} | self.rounds.going_on()
        self.trunk = CommonTrunk(self.terms, self.rounds, scheme, returning=returning)
        for device in self.devices:
            device.cut()

    def kill_trainer_before_the_answers(self, who: int) -> None:
        self.trunk.due(self.now, self.members())
        self.kill_trainer()

    def kill_trainer_and_its_newest_checkpoint(self, who: int) -> None:
        """The head is older: the devices that come back send it their steps again, before anything else."""
        self.applied = {session: max(0, steps - 2 * self.every) for session, steps in self.applied.items()}
        self.kill_trainer()

    def turn_disk_full(self, who: int) -> None:
        self.rounds.full = not self.rounds.full

    def members(self) -> dict[int, Member]:
        return {
            d.session: Member(d.connected and not d.paused, d.finished, self.applied[d.session]) for d in self.devices
        }

    def ask(self, who: int) -> None:
        device = self.devices[who]
        if device.finished or device.sent or device.paused:
            return
        self.connect(who)
        applied = self.applied[who]
        self.trunk.take(*device.question(), self.now, applied, 100 * applied)
        device.sent = True

    def pause(self, who: int) -> None:
        """A person pauses a device, or has it go on."""
        self.devices[who].paused = not self.devices[who].paused

    def go_alone(self, who: int) -> None:
        """The others are away for many rounds of one device."""
        self.kill_trainer()
        for _ in range(KEPT_ROUNDS + 1):
            self.ask(who)
            self.wait(who)
            self.pass_time(who)
            self.receive(who)

    def connect(self, who: int) -> None:
        device = self.devices[who]
        if not device.connected and not device.finished:
            device.connected = True
            self.applied[who] = max(self.applied[who], device.step)
            self.trunk.rejoin(device.session, device.step, device.step < LAST)

    def cut(self, who: int) -> None:
        self.devices[who].cut()

    def fall_back(self, who: int) -> None:
        device = self.devices[who]
        if device.checkpoints and not device.finished:
            device.fall_back()

    def wait(self, who: int) -> None:
        self.now += 29.0

    def pass_time(self, who: int) -> None:
        self.now += 1.0
        for answer in self.trunk.due(self.now, self.members()):
            device = self.devices[answer[0].session]
            if device.connected:  # or it is lost on the way
                assert device.sent, "an answer to a question of an earlier connection"
                device.inbox.append(answer)
        assert all(len(device.inbox) <= 1 for device in self.devices)

    def receive(self, who: int) -> None:
        device = self.devices[who]
        if device.inbox:
            self.check_left_out(device, device.inbox[0][0])
            device.apply(device.inbox.pop())
            self.applied[who] = max(self.applied[who], device.step)
            self.check_turns()
            if self.rounds.newest == device.base:
                self.check_equal(device)

    def finish(self) -> None:
        """Without further faults everybody comes to the end, with the same trunk."""
        self.rounds.full = False
        for device in self.devices:
            device.paused = False
        for _ in range(200):
            for who in range(DEVICES):
                self.ask(who)
            self.pass_time(0)
            for who in range(DEVICES):
                self.receive(who)
        assert all(device.finished for device in self.devices)
        for device in self.devices:
            assert device.base == self.rounds.newest
            self.check_equal(device)

    def check_turns(self) -> None:
        """Where no turn is ever lost, one device alone trains."""
        if self.terms.mode == "sequential" and self.terms.wait_s == math.inf:
            at_work = [d for d in self.devices if d.step > 0 and not d.finished and not self.rounds.is_settled(*d.at)]
            assert len(at_work) <= 1

    def check_equal(self, device: FakeDevice) -> None:
        for name, value in self.rounds.trunk.items():
            np.testing.assert_array_equal(value, device.trunk[name])

    def check_left_out(self, device: FakeDevice, answer: TrunkAverage) -> None:
        """A device is told that its change is in no round if that is so, and only then."""
        counted = {(session, one.step): one.why for settled in self.counted for session, one in settled.items()}
        settled = self.rounds.last_settled(device.session)
        newest = settled is not None and settled.step == device.step  # of an older one the reason is forgotten
        late = device.at in self.rounds.left_out or (device.at in self.left_out and device.at not in counted)
        expected = newest and (late or bool(counted.get(device.at)))
        assert bool(answer.left_out) == expected

    def check_ledger(self) -> None:
        """Every change was counted once or left out, and the trunk is the sum of the rounds' means."""
        late = self.left_out | self.rounds.left_out
        counted = [(session, one.step) for settled in self.counted for session, one in settled.items()]
        everything = [(session, step) for session in range(DEVICES) for step in range(self.every, LAST + 1, self.every)]
        assert len(set(counted)) == len(counted)
        assert sorted({*counted, *late}) == everything  # one may be left out, done again, and counted then
        assert len(self.counted) == self.rounds.newest
        for name, value in BUNDLE.items():
            total = value.astype(np.float64)
            for settled in self.counted:
                kept = [(session, one.step) for session, one in settled.items() if not one.why]
                weights = [images_of(*at) for at in kept]
                changes = [change_of(*at)[name] for at in kept]
                total = total + np.average(changes, axis=0, weights=weights)
            # int8: what rounding has left is in the residual, so errors of rounds do not add up
            exact = self.terms.precision == "fp32"
            np.testing.assert_allclose(self.rounds.trunk[name], total, atol=1e-4 if exact else 0.05)


@pytest.mark.parametrize(
    ("mode", "precision", "wait_s", "every"),
    [
        ("averaged", "int8", 30.0, 15),
        ("averaged", "fp32", 30.0, 3),
        ("sequential", "int8", 30.0, 10),
        ("sequential", "fp32", math.inf, 10),
    ],
)
def test_any_order_of_messages_cuts_kills_and_restarts_counts_every_change_once(
    mode: str, precision: str, wait_s: float, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a process is killed here, not a machine

    @settings(
        max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), database=None, phases=(Phase.generate,)
    )  # no shrinking: minutes
    @given(st.lists(actions, min_size=60, max_size=120))
    def check(happened: list[tuple[str, int]]) -> None:
        with tempfile.TemporaryDirectory() as run:
            fleet = FakeFleet(Path(run), mode, precision, wait_s, every)
            for what, who in happened:
                getattr(fleet, what)(who)
            fleet.finish()
            fleet.check_ledger()

    check()


def question(session: int, step: int, base: int, images: int = 0) -> tuple[TrunkDelta, bytes]:
    body = encode_changes(change_of(session, step), "fp32") if images else b""
    return TrunkDelta(session, step, base, step + 1, len(body), images, "fp32"), body


def test_a_device_that_keeps_the_turn_without_a_step_is_named_once() -> None:
    name = "orin-{}".format
    trunk = CommonTrunk(FleetSettings("sequential", wait_s=30), Rounds(BUNDLE, "fp32"), Turns(30), name=name)
    members = {1: Member(True, False, 0), 2: Member(True, False, 0)}
    with logged() as lines:
        trunk.take(*question(1, 0, 0), 0, 0, 0)
        assert [answer.session for answer, _ in trunk.due(0, members)] == [1]
        trunk.due(100, members)  # nobody waits for it
        trunk.take(*question(2, 0, 0), 100, 0, 0)
        members[1] = Member(True, False, 1)
        for now_s in (110, 120, 139):
            trunk.due(now_s, members)
        assert not lines
        for now_s in (140, 150, 200):
            trunk.due(now_s, members)
        members[1] = Member(True, False, 2)
        for now_s in (201, 300):
            trunk.due(now_s, members)
    text = "device 'orin-1' has the turn and has done no step for 30 s; others wait for it (docs/fleet.md)"
    assert lines == [text]


def test_a_change_that_is_left_out_takes_the_place_of_an_earlier_one_and_stays_settled() -> None:
    rounds = Rounds(BUNDLE, "fp32")
    for number in range(KEPT_ROUNDS + 1):
        rounds.close(change_of(0, number), {})
    trunk = CommonTrunk(FleetSettings("averaged"), rounds, Barrier(30))
    members = {1: Member(True, False, 20), 2: Member(True, False, 20)}
    trunk.take(*question(1, 10, rounds.newest, 5), 0, 20, 100)
    trunk.rejoin(1, 20, True)
    trunk.take(*question(1, 20, 0, 5), 0, 20, 100)  # it has come back with an older trunk
    ((answer, _),) = trunk.due(0, members)
    assert answer.left_out.startswith("it changes the trunk of round 0, 9 rounds ago")
    trunk.take(*question(2, 10, rounds.newest, 5), 1, 20, 100)
    trunk.due(40, members)
    settled = rounds.last_settled(1)
    assert (rounds.newest, rounds.devices) == (KEPT_ROUNDS + 2, 1)
    assert settled is not None
    assert settled.step == 20
    rounds.close(change_of(0, 0), {1: SettledStep(15, rounds.newest + 1)})
    assert rounds.is_settled(1, 20)
