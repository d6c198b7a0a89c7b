"""Who stands where: a step is due once, answered again if asked, and a device that comes back is told apart."""

from __future__ import annotations

import pytest

from adc_edge.cloud_trainer import sessions as module
from adc_edge.cloud_trainer.sessions import Session, Sessions
from adc_edge.errors import ProtocolError
from adc_edge.framing import Assembler
from adc_edge.protocol import Gradient, Hello, unpack_from_device


def hello(session: int = 1, next_step: int = 0) -> Hello:
    return Hello(1, "digest", session, "orin", next_step)


def answer(step: int) -> tuple[Gradient, bytes]:
    return Gradient(1, step, 0, 1, 0, "fp32", 0.0, 0.0, 0.0), b""


def connect(sessions: Sessions, route: bytes, said: Hello) -> tuple[Session, str | None]:
    sessions.peer(route, lambda: Assembler(unpack_from_device, lambda message: 0))
    return sessions.open(said, route)


def test_each_step_is_due_once_and_the_last_one_is_answered_again() -> None:
    session, _ = connect(Sessions(), b"a", hello())
    assert session.due(0)
    session.answered(*answer(0))
    assert not session.due(0)
    assert session.due(1)
    for wrong in (2, 7):
        with pytest.raises(ProtocolError):
            session.due(wrong)
    session.answered(*answer(1))
    with pytest.raises(ProtocolError):
        session.due(0)


def test_a_device_that_lacks_the_last_answer_resumes_without_a_warning() -> None:
    sessions = Sessions()
    session, _ = connect(sessions, b"a", hello())
    session.answered(*answer(0))
    same, warning = connect(sessions, b"b", hello(next_step=0))
    assert same is session
    assert warning is None
    assert not session.due(0)


def test_the_newest_connection_speaks_for_the_session_and_the_old_one_no_longer_does() -> None:
    sessions = Sessions()
    session, _ = connect(sessions, b"a", hello())
    connect(sessions, b"b", hello())
    assert sessions.peers[b"a"].session is None
    assert sessions.peers[b"b"].session is session
    assert session.route == b"b"


@pytest.mark.parametrize("stood", [3, 9])
def test_a_device_that_stands_elsewhere_goes_on_from_there_with_a_warning(stood: int) -> None:
    sessions = Sessions()
    session, _ = connect(sessions, b"a", hello(next_step=5))
    session.answered(*answer(5))
    _, warning = connect(sessions, b"b", hello(next_step=stood))
    assert warning is not None
    assert "step 6 here" in warning
    assert str(stood) in warning
    assert session.due(stood)


def test_a_trainer_back_from_a_checkpoint_knows_where_each_device_stood() -> None:
    sessions = Sessions({1: 40, 2: 7})
    assert connect(sessions, b"a", hello(1, 40))[1] is None
    warning = connect(sessions, b"b", hello(2, 9))[1]
    assert warning is not None
    assert "checkpoint stood at step 7" in warning
    assert connect(sessions, b"c", hello(3, 0))[1] is None
    assert sessions.applied() == {"1": 40, "2": 9, "3": 0}


def test_sessions_and_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SESSIONS", 3)
    monkeypatch.setattr(module, "MAX_PEERS", 3)
    sessions = Sessions()
    for number in range(10):
        connect(sessions, bytes([number]), hello(number))
    assert len(sessions.peers) == 3
    assert set(sessions.applied()) == {"7", "8", "9"}


def test_a_goodbye_frees_the_session() -> None:
    sessions = Sessions()
    session, _ = connect(sessions, b"a", hello())
    sessions.close(session)
    assert sessions.applied() == {}
    assert sessions.peers[b"a"].session is None
