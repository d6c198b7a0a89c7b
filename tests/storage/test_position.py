"""Positions in a training: order, and the one that follows."""

from __future__ import annotations

from adc_edge.storage.journal import JournalKey
from adc_edge.storage.position import Position, micro_batches_by_step


def test_a_step_has_the_micro_batches_of_the_last_change_before_it() -> None:
    count = micro_batches_by_step([(0, 1), (5, 4), (9, 2)])
    assert [count(step) for step in (0, 4, 5, 8, 9, 99)] == [1, 1, 4, 4, 2, 2]


def test_positions_follow_each_other_through_the_micro_batches_of_a_step_to_the_next() -> None:
    assert [Position(3).next(1), Position(3).next(2), Position(3, 1).next(2)] == [(4, 0), (3, 1), (4, 0)]
    assert Position(2, 5) < Position(3) < Position(3, 1)


def test_a_position_makes_a_journal_key() -> None:
    assert JournalKey(*Position(42, 1)).file_name == "00000042-1"
