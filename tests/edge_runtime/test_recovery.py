"""Recovery decisions: from any pair of positions device and trainer meet, or the device is told to go back."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec import UNSET

from adc_edge.codec.precision import Precision
from adc_edge.edge_runtime.recovery import (
    Behind,
    check_knows,
    device_position,
    fetch_answer,
    is_answered,
    missing_part,
    positions_to_replay,
)
from adc_edge.errors import RefusedError
from adc_edge.storage.position import MicroBatches, Position, micro_batches_by_step
from adc_edge.wire.messages import Bye, Evaluate, Fetch, Step, Welcome

STEPS = st.integers(0, 6)
CUTS = st.lists(st.tuples(STEPS, st.integers(1, 4)), min_size=1).map(lambda cuts: micro_batches_by_step(sorted(cuts)))
PARTIALS = st.tuples(st.integers(0, 3), st.integers(0, 100))


def step(at: Position) -> Step:
    return Step(1, at.step, at.micro_batch, 2, 100, 8, 4, 7, 5, "fp32", "fp32", durable=3)


def evaluation(at: int) -> Evaluate:
    return Evaluate(1, at, 1, 2, 100, 8, "fp16")


@st.composite
def positions(draw: st.DrawFn, micro_batches: MicroBatches) -> Position:
    step = draw(STEPS)
    return Position(step, draw(st.integers(0, micro_batches(step) - 1)))


class Trainer:
    """A trainer's protocol without a head: it learns the position that is due, and answers what it has learned."""

    def __init__(self, at: Position, micro_batches: MicroBatches) -> None:
        self.at, self.micro_batches = at, micro_batches

    def learn(self, at: Position) -> None:
        assert at == self.at, "out of order"
        self.at = at.next(self.micro_batches(at.step))

    def answer(self, message: Step | Evaluate | Fetch) -> None:
        if isinstance(message, Step):
            self.learn(Position(message.step, message.micro_batch))
        elif isinstance(message, Fetch):
            assert Position(message.step, message.micro_batch) < self.at, "fetched before it was answered"


@given(st.data(), CUTS, STEPS)
def test_from_any_pair_of_positions_the_two_sides_meet_or_the_device_must_go_back(
    data: st.DataObject, micro_batches: MicroBatches, oldest: int
) -> None:
    device, trainer = data.draw(positions(micro_batches)), Trainer(data.draw(positions(micro_batches)), micro_batches)
    stood, in_flight = trainer.at, data.draw(st.integers(0, micro_batches(device.step) - device.micro_batch))
    assume(oldest <= device.step)
    pending = [step(Position(device.step, device.micro_batch + more)) for more in range(in_flight)]
    if stood < device and oldest > stood.step:  # the journal does not reach back so far
        with pytest.raises(Behind) as behind:
            positions_to_replay(stood, device, oldest, micro_batches)
        assert behind.value.applied == stood.step
        return
    for position in positions_to_replay(stood, device, oldest, micro_batches):
        assert position.step >= oldest
        trainer.learn(position)
    assert trainer.at == max(stood, device)
    for message in pending:
        trainer.answer(fetch_answer(message, (0, 0)) if is_answered(message, trainer.at) else message)
    if in_flight:
        last = Position(pending[-1].step, pending[-1].micro_batch).next(micro_batches(device.step))
        assert trainer.at == max(stood, last)


@given(st.data(), CUTS, STEPS)
def test_a_device_that_went_back_as_told_meets_the_trainer(
    data: st.DataObject, micro_batches: MicroBatches, oldest: int
) -> None:
    device, trainer = data.draw(positions(micro_batches)), data.draw(positions(micro_batches))
    try:
        positions_to_replay(trainer, device, oldest, micro_batches)
    except Behind as behind:
        checkpoint = Position(data.draw(st.integers(0, behind.applied)))
        assert not positions_to_replay(trainer, checkpoint, checkpoint.step, micro_batches)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [(step(Position(4, 2)), Position(4, 2)), (evaluation(5), Position(5)), (Bye(1), Position(5)), (None, Position(5))],
)
def test_the_device_stands_at_its_oldest_step_in_flight_or_at_the_next_step(
    request_: Step | Evaluate | Bye | None, expected: Position
) -> None:
    assert device_position(request_, next_step=5) == expected


def test_an_evaluation_is_answered_once_the_step_that_follows_it_is_applied() -> None:
    assert not is_answered(evaluation(4), Position(4, 1))
    assert is_answered(evaluation(4), Position(5))
    assert not is_answered(Bye(1), Position(5))


@given(PARTIALS)
def test_an_answer_is_fetched_from_where_the_copy_of_it_ends(partial: tuple[int, int]) -> None:
    offset = partial[1] if partial[0] == 2 else 0
    assert fetch_answer(step(Position(4, 2)), partial) == Fetch(1, 4, None, 2, 2, 3, offset)
    assert fetch_answer(evaluation(4), partial) == Fetch(1, 4, 1, 2, offset=offset)


@given(PARTIALS)
def test_a_message_continues_from_where_the_trainers_copy_ends(partial: tuple[int, int]) -> None:
    for message in (step(Position(4, 2)), evaluation(4)):
        offset = partial[1] if partial[0] == 2 else 0
        assert missing_part(message, partial) == msgspec.structs.replace(message, offset=offset)


KNOWS, KNOWS_NOT = (Welcome(1, 0, 0, 0, None, 5, 0, 0, "0.14.0", transforms=known) for known in (True, UNSET))


@pytest.mark.parametrize("sent", [("dct1", "pca0.25"), ("pca1", "dct1"), ("dct1", None)])
def test_a_trainer_that_does_not_know_dct_gets_none_and_the_user_is_told(sent: Sequence[Precision | None]) -> None:
    with pytest.raises(RefusedError, match=r"(?s)version 0\.14\.0, which does not know dct1\n.*choose pca1 instead"):
        check_knows(sent, KNOWS_NOT)
    check_knows(sent, KNOWS)
    check_knows(sent, None)  # before the first Welcome nothing but a Hello is sent
    check_knows(("pca1", "int8", None), KNOWS_NOT)
