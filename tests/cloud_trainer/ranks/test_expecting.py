"""When a rank expects a message of a device, on a clock that the test sets."""

from __future__ import annotations

from pathlib import Path

from adc_edge.cloud_trainer.ranks.expecting import Expecting
from adc_edge.cloud_trainer.served_session import ServedSession, SessionRecord


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def a_session() -> ServedSession:
    return ServedSession(1, SessionRecord("camera", "", 0), Path("/nonexistent"))


def after_steps(gaps_s: list[float]) -> tuple[Expecting, ServedSession, Clock]:
    """A session whose messages took these times after their answers; the last answer was sent now."""
    clock, session = Clock(), a_session()
    expecting = Expecting(clock)
    for gap_s in (0.0, *gaps_s):
        clock.now_s += gap_s
        expecting.arrived(session, None)
        clock.now_s += 0.03
        expecting.answered(session)
    return expecting, session, clock


def test_a_device_without_history_is_waited_for() -> None:
    clock = Clock()
    expecting, session = Expecting(clock), a_session()
    assert expecting.is_due(session, 0.02)
    expecting.answered(session)
    clock.now_s += 1000.0
    assert expecting.is_due(session, 0.02)


def test_a_device_is_waited_for_about_when_it_usually_comes() -> None:
    expecting, session, clock = after_steps([1.0, 1.0, 9.0, 1.0, 1.0])  # an evaluation among them
    answered_s, due = clock.now_s, []
    for passed_s in (0.0, 0.5, 0.97, 0.985, 1.0, 1.015, 1.03):
        clock.now_s = answered_s + passed_s
        due.append(expecting.is_due(session, 0.02))
    assert due == [False, False, False, True, True, True, False]


def test_a_long_wait_is_for_every_device() -> None:
    expecting, session, clock = after_steps([1.0, 5.0, 3.0])
    for _ in range(30):
        assert expecting.is_due(session, 30.0)
        clock.now_s += 1.0


def test_a_message_that_was_there_before_the_last_answer_is_one_that_comes_at_once() -> None:
    expecting, session, clock = after_steps([])
    expecting.arrived(session, clock.now_s - 2.0)
    expecting.answered(session)
    assert expecting.is_due(session, 0.02)
    clock.now_s += 0.5
    assert not expecting.is_due(session, 0.02)


def test_a_session_that_is_gone_is_forgotten() -> None:
    expecting, session, _ = after_steps([1.0])
    del session
    assert not expecting._habits
