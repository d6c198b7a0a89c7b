"""The length of the head's training: the steps of devices that are at work, the same after a restart."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from adc_edge.cloud_trainer.scheduling.length import HeadLength
from adc_edge.cloud_trainer.served_session import ServedSession, SessionRecord
from tests.serving import logged


def sessions(*records: SessionRecord) -> list[ServedSession]:
    return [ServedSession(number, record, Path("unused")) for number, record in enumerate(records)]


def length(steps: int, *records: SessionRecord) -> int:
    """The length as this process tells it, and another one with the sessions of its checkpoint."""
    kept = msgspec.json.decode(msgspec.json.encode(records), type=tuple[SessionRecord, ...])
    found, again = (HeadLength(sessions(*one)).at(steps) for one in (records, kept))
    assert found == again
    return found


def test_one_device_alone_has_the_length_of_its_run_whatever_it_has_done() -> None:
    for applied in (1, 50, 5000):
        assert length(applied, SessionRecord("orin", "", applied, planned=9000, head_step=applied)) == 9000


@pytest.mark.parametrize(("left", "counts_until"), [(100, 355), (900, 1155), (9000, 9998)])
def test_an_abandoned_session_counts_as_long_as_a_tenth_of_the_training_or_256_steps(
    left: int, counts_until: int
) -> None:
    abandoned = SessionRecord("orin", "", left, planned=2**31, head_step=left)
    for steps in (counts_until, counts_until + 1):
        new = SessionRecord("orin", "", steps - left, planned=20_000, head_step=steps)
        with_it = left + 20_000 + 2**31 - left
        assert length(steps, abandoned, new) == (with_it if steps == counts_until else left + 20_000)


def test_a_session_of_an_older_checkpoint_counts_as_before_and_one_that_has_finished_or_only_said_hello_does_not() -> (
    None
):
    old = msgspec.json.decode(b'{"device":"a","owner":"","applied":10,"planned":30}', type=SessionRecord)
    done, new = SessionRecord("b", "", 10, True, 99, head_step=20), SessionRecord("c", "", 0, planned=99)
    assert length(20, old, done, new) == 40


def test_the_length_is_told_when_it_changes_by_more_than_a_tenth() -> None:
    own = SessionRecord("own", "", 1, planned=100, head_step=1)
    other = SessionRecord("other", "", 1, planned=0, head_step=1)
    told, quiet = (HeadLength(sessions(own, other), tells=tells) for tells in (True, False))
    with logged() as lines:
        for planned in (11, 12, 101, 11):
            other.planned = planned
            for one in (told, quiet):
                one.at(2)
    assert lines == [
        "the head's cosine has 201 steps now, until now 111; device 'other' has most steps to come, 100",
        "the head's cosine has 111 steps now, until now 201; device 'own' has most steps to come, 99",
    ]
