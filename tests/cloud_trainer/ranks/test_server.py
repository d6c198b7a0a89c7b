"""Work of a rank between its rounds, and while it waits in one for other ranks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import UNSET

from adc_edge.cloud_trainer import registry
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.ranks import server
from adc_edge.cloud_trainer.scheduling.control import SessionControl, change_control
from adc_edge.planning.profile import TrainerShare
from adc_edge.storage.bundle import Bundle
from adc_edge.wire.class_names import pack_names
from adc_edge.wire.messages import Bye, ByeAck, ClassNames, FromTrainer, Refused
from tests.cloud_trainer.ranks.one_rank import OneRank
from tests.serving import logged
from tests.stub_device import Device

Eventually = Callable[[Callable[[], bool]], None]


def naming_device(bundle: Bundle, rank: OneRank, number: int = 1) -> Device:
    """A device that has said that it will tell class names, and has done one step."""
    device = Device(bundle, rank.server.endpoint, number)
    device.tells_names = True
    device.session.open(30)
    device.step(0)
    return device


def tell_names(device: Device, names: list[str], transfer: int = 77) -> None:
    body = pack_names(names)
    device.session.channel.send(ClassNames(device.number, transfer, len(body)), body)


def received(device: Device) -> FromTrainer:
    found = device.session.channel.receive(60_000)
    assert found is not None
    return found[0]


def test_class_names_that_come_during_a_round_are_answered_after_the_next(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Eventually
) -> None:
    with OneRank(bundle, training, tmp_path / "run") as rank:
        device = naming_device(bundle, rank)
        with rank.held():
            rank.wait_until_held()
            tell_names(device, ["cat", "dog"])
            eventually(lambda: bool(rank.server._naming))
        answer = received(device)
        device.session.close()
    assert not isinstance(answer, Refused)
    assert rank.server._classes.names == ["cat", "dog"]


def test_a_session_has_one_message_of_names_waiting_and_its_bytes_count(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Eventually
) -> None:
    with OneRank(bundle, training, tmp_path / "run") as rank:
        device = naming_device(bundle, rank)
        seen = list[int]()
        heard = rank.server._classes.must_wait
        rank.server._classes.must_wait = lambda message, *a: bool(seen.append(message.transfer)) or heard(message, *a)  # type: ignore[method-assign, func-returns-value]
        with rank.held():
            rank.wait_until_held()
            for number in range(50):
                tell_names(device, [f"{number} {name}" for name in "abc"], 100 + number)
            eventually(lambda: len(seen) == 50)
            assert len(rank.server._naming) == len(rank.server._classes._wishes) == 1
            size = len(pack_names([f"49 {name}" for name in "abc"]))
            eventually(lambda: rank.sessions.held_bytes() == size)
        received(device)
        device.session.close()
    assert rank.sessions.held_bytes() == 0
    assert rank.server._classes.names == ["49 a", "49 b", "49 c"]


def test_a_session_whose_bye_waits_for_its_checkpoint_gives_no_way_to_a_new_one(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "MAX_SESSIONS", 2)
    with OneRank(bundle, training, tmp_path / "run") as rank:
        devices = [Device(bundle, rank.server.endpoint, number) for number in (1, 2, 3)]
        for device in devices[:2]:
            device.session.open(30)
            device.step(0)
        with rank.held(lambda row: row.saves):
            devices[0].session.channel.send(Bye(1))
            rank.wait_until_held()
            with pytest.raises(Exception, match="one more session"):
                rank.sessions.find(devices[2].hello(), "")
        assert isinstance(received(devices[0]), ByeAck)
        for device in devices:
            device.session.close()


def test_orders_for_a_session_are_logged_where_it_is_served(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Eventually
) -> None:
    run = tmp_path / "run"
    with OneRank(bundle, training, run) as rank, logged() as lines:
        rank.server._door._owners.owner = lambda session: 1 if session == 9 else None  # type: ignore[method-assign, union-attr]
        for session in (8, 9):
            change_control(run, f"{session:016x}", lambda old: SessionControl(paused=True, priority=2.0))
        eventually(lambda: rank.sessions.waiting.fair.is_paused(9))
        eventually(lambda: len(lines) == 2)
    assert [line.split()[1] for line in lines] == [f"{8:016x}"] * 2


def test_a_rank_that_learns_alone_goes_on_until_it_has_its_steps(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_ALONE_S", 600.0)
    with OneRank(bundle, training, tmp_path / "run", sync=8, round_wait_s=60) as rank:
        device = Device(bundle, rank.server.endpoint)
        device.session.open(30)
        before = rank.exchange.rounds
        for step in range(24):
            device.step(step)
        device.settle()
        assert rank.exchange.rounds - before == 3
        device.session.close()
    assert training.steps == 24


def test_a_rank_that_learns_alone_keeps_others_waiting_for_a_limited_time(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_ALONE_S", 0.05)
    with OneRank(bundle, training, tmp_path / "run", sync=10_000, round_wait_s=60) as rank:
        device = Device(bundle, rank.server.endpoint)
        device.session.open(30)
        before, step, until_s = rank.exchange.rounds, 0, time.monotonic() + 60
        while rank.exchange.rounds < before + 3:
            assert time.monotonic() < until_s, "no round"
            device.step(step)
            step += 1
        assert rank.exchange.rounds - before < step
        device.session.close()


def test_a_hello_ends_the_time_alone(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_ALONE_S", 600.0)
    with OneRank(bundle, training, tmp_path / "run", sync=10_000, round_wait_s=600) as rank:
        first, second = (Device(bundle, rank.server.endpoint, number) for number in (1, 2))
        first.session.open(30)
        first.step(0)
        second.session.open(60)  # a round has to decide where it is served
        first.session.close_session()  # and this needs a checkpoint
        for device in (first, second):
            device.session.close()


def test_a_rank_does_not_wait_for_a_device_that_usually_comes_much_later(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Eventually
) -> None:
    with OneRank(bundle, training, tmp_path / "run", round_wait_s=0.2) as rank:
        device = Device(bundle, rank.server.endpoint)
        device.session.open(30)
        device.step(0)
        device.settle()
        assert rank.server._expects
        (session,) = rank.sessions
        habit = rank.server._expecting._habits[session]
        habit.gaps_s.extend([3600.0] * 5)
        assert not rank.server._expects
        habit.answered_s -= 3600.0
        eventually(lambda: not rank.server._expects)  # it is late, and not waited for any more
        device.session.close()


def test_the_wait_for_other_ranks_is_told_to_a_device_that_is_alone(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Eventually
) -> None:
    held_s = 0.5
    with OneRank(bundle, training, tmp_path / "run") as rank:
        device = Device(bundle, rank.server.endpoint)
        device.session.open(30)
        device.step(0)
        with rank.held():
            rank.wait_until_held()
            device.send(1, 0)
            eventually(lambda: rank.sessions.waiting.has_turn)
            time.sleep(held_s)  # the time that is to be told
        share = device.take()[0].share
        device.session.close()
    assert isinstance(share, TrainerShare)
    assert share.waited_s is not UNSET
    assert (share.devices, share.share) == (1, 1.0)
    assert share.waited_s >= 0.9 * held_s
