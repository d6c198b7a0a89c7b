"""The end of a session: answered once, and only when a checkpoint has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adc_edge.cloud_trainer.ranks.devices.closing import Closing
from adc_edge.cloud_trainer.record.presence import GuardedConnection
from adc_edge.cloud_trainer.record.trainer_record import TrainerRecord
from adc_edge.cloud_trainer.registry import Peer
from adc_edge.cloud_trainer.scheduling.messages import QueuedMessage
from adc_edge.cloud_trainer.served_session import ServedSession, SessionRecord
from adc_edge.storage.events import EVENTS_FILE
from adc_edge.storage.journal import JournalKey
from adc_edge.storage.json_lines import read_json_lines
from adc_edge.storage.run_dir import RunDir
from adc_edge.wire.framing import Assembler
from adc_edge.wire.headers import unpack_from_device
from adc_edge.wire.messages import VERSION, Bye, ByeAck, Gradient, Hello
from tests.serving import logged


def inbox() -> Assembler[Any]:
    return Assembler(unpack_from_device, lambda message: 0)


def bye_of(session: ServedSession) -> QueuedMessage:
    """A Bye on a connection of its own."""
    peer = Peer(0, "", inbox)
    peer.connection = GuardedConnection()
    peer.join_session(session)
    return QueuedMessage(b"route", peer, Bye(session.id), memoryview(b""))


class World:
    """One rank's sessions, and the wishes for a checkpoint that it has told."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.wishes = directory, 0
        self.closing = Closing(TrainerRecord(), self._wish)

    def _wish(self) -> None:
        self.wishes += 1

    def session(self, number: int = 7, applied: int = 3) -> ServedSession:
        """A session whose log has an answer."""
        session = ServedSession(number, SessionRecord("camera", "", applied), self.directory / f"{number:016x}")
        answer = Gradient(number, applied - 1, 0, 1, 2, "fp32", 0.5, 0.5, 0.1)
        session.keep(JournalKey(applied - 1), answer, b"xx")
        session.write()
        return session


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def log_of(world: World, number: int = 7) -> Path:
    return world.directory / f"{number:016x}"


def test_a_bye_is_answered_after_the_checkpoint_that_has_its_session_finished(world: World) -> None:
    session = world.session()
    asked = bye_of(session)
    with logged() as lines:
        assert world.closing.bye(asked, session) is None
        assert (world.wishes, session.record.finished, world.closing.waits_for(7)) == (1, True, True)
        assert log_of(world).is_dir()  # a kill now brings back a session that goes on
        assert world.closing.kept([]) == []  # that checkpoint was under way before
        assert world.closing.kept([7, 9]) == [(asked, (ByeAck(7), b""))]
        assert world.closing.kept([7, 9]) == []
    assert not world.closing.waits_for(7)
    assert not log_of(world).exists()
    assert lines == ["device 'camera' is done after 3 steps"]


def test_a_bye_that_is_sent_again_is_answered_once_to_the_newer_connection(world: World) -> None:
    session = world.session()
    first, second = bye_of(session), bye_of(session)
    with logged() as lines:
        assert world.closing.bye(first, session) is None
        assert world.closing.bye(second, session) is None
        assert world.closing.kept([7]) == [(second, (ByeAck(7), b""))]
    assert lines == ["device 'camera' is done after 3 steps"]


def test_a_bye_whose_answer_was_lost_is_answered_at_once(world: World) -> None:
    session = world.session()
    world.closing.bye(bye_of(session), session)
    world.closing.kept([7])
    with logged() as lines:
        assert world.closing.bye(bye_of(session), session) == (ByeAck(7), b"")
    assert world.wishes == 1
    assert not lines  # it was said before


def test_after_a_restart_the_checkpoint_tells_who_has_finished(tmp_path: Path) -> None:
    world = World(tmp_path)
    done, going = world.session(7), world.session(8)
    done.record.finished = True  # as the checkpoint has it
    world.closing.kept([7])
    assert world.closing.bye(bye_of(done), done) == (ByeAck(7), b"")
    assert world.closing.bye(bye_of(going), going) is None


def test_without_a_checkpoint_the_session_goes_on_and_the_device_is_told(world: World) -> None:
    session = world.session()
    first, second = bye_of(session), bye_of(session)
    world.closing.bye(first, session)
    world.closing.bye(second, session)
    assert world.closing.failed() == [second]
    assert not session.record.finished
    assert world.closing.kept([7]) == []
    assert log_of(world).is_dir()
    assert world.closing.bye(second, session) is None  # it tries again
    assert world.wishes == 3
    assert world.closing.kept([7]) == [(second, (ByeAck(7), b""))]


def test_a_device_that_comes_back_with_more_steps_is_not_ended(world: World) -> None:
    session = world.session()
    world.closing.bye(bye_of(session), session)
    session.resume(Hello(VERSION, "", 7, 1, "camera", 3, 0, 0, steps=9))
    assert world.closing.kept([]) == []
    assert not session.record.finished
    assert not world.closing.waits_for(7)
    assert log_of(world).is_dir()


def test_the_end_of_a_longer_run_needs_a_checkpoint_of_its_own(world: World) -> None:
    session = world.session()
    world.closing.bye(bye_of(session), session)
    world.closing.kept([7])
    session.resume(Hello(VERSION, "", 7, 1, "camera", 3, 0, 0, steps=9))
    again, sent_again = bye_of(session), bye_of(session)
    assert world.closing.bye(again, session) is None
    assert world.closing.bye(sent_again, session) is None  # the earlier end's checkpoint does not count
    assert world.closing.kept([7]) == [(sent_again, (ByeAck(7), b""))]


def test_the_end_is_an_event_of_the_run(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run", {}, {}, {})
    world = World(tmp_path)
    world.closing = Closing(TrainerRecord(run_dir), lambda: None)
    session = world.session()
    world.closing.bye(bye_of(session), session)
    assert [event["kind"] for event in read_json_lines(tmp_path / "run" / EVENTS_FILE)] == []
    world.closing.kept([7])
    assert [event["kind"] for event in read_json_lines(tmp_path / "run" / EVENTS_FILE)] == ["done"]
    run_dir.close()


@given(st.lists(st.sampled_from(["bye", "kept", "kept without it", "failed", "more steps"]), max_size=12))
def test_whatever_comes_no_bye_is_answered_twice_nor_without_a_checkpoint(happenings: list[str]) -> None:
    world = World(Path("/nonexistent"))  # nothing is written there: the device keeps no run
    session = ServedSession(7, SessionRecord("camera", "", 3), world.directory)
    open_byes = list[QueuedMessage]()
    for happening in happenings:
        answered = list[QueuedMessage]()
        if happening == "bye":
            asked = bye_of(session)
            open_byes.append(asked)
            if world.closing.bye(asked, session) is not None:
                answered = [asked]
        elif happening.startswith("kept"):
            finished = [7] if happening == "kept" and session.record.finished else []
            answered = [asked for asked, _ in world.closing.kept(finished)]
            assert not answered or finished
        elif happening == "failed":
            world.closing.failed()
        else:
            session.record.finished = False
        for asked in answered:
            assert session.record.finished
            open_byes.remove(asked)  # raises if it was answered before
    if world.closing.waits_for(7) and session.record.finished:
        assert len(world.closing.kept([7])) == 1
