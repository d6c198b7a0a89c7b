"""Recovery of a session, as pure functions: where trainer and device stand -> what the device sends.

A trainer that came back older gets what it lacks from the device's journal. A request that it answered before is
fetched from its log. A message that it holds in part continues from there.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from adc_edge.codec.precision import Precision, dct_bits
from adc_edge.errors import RefusedError
from adc_edge.storage.position import MicroBatches, Position
from adc_edge.wire.fleet_messages import TrunkDelta
from adc_edge.wire.message import Message
from adc_edge.wire.messages import Evaluate, Fetch, Hello, Step, Welcome

Continued = Step | Evaluate | TrunkDelta  # requests that go on where they broke off
Partial = tuple[int, int]  # transfer and received bytes of an unfinished message; 0, 0: there is none


class Behind(Exception):
    """The trainer stands at step ``applied``, and the journal does not hold what it lacks.

    The device must return to a checkpoint of a step up to ``applied``, or give up.
    """

    def __init__(self, applied: int) -> None:
        super().__init__(applied)
        self.applied = applied


def check_follows(hello: Hello, welcome: Welcome) -> None:
    """Raise RefusedError if the number of micro-batches changes in this run, and the trainer would not notice."""
    if hello.changes and welcome.follows is not True:
        raise RefusedError(
            "version",
            f"a trainer of version {welcome.trainer}, where this run has changed its micro-batches",
            "version 0.9 or later",
            "upgrade the trainer",
        )


def knows_transforms(welcome: Welcome | None) -> bool:
    """Return whether the trainer of a Welcome knows the precisions dct2 ... dct0.0625."""
    return welcome is not None and welcome.transforms is True


def check_knows(precisions: Iterable[Precision | None], welcome: Welcome | None) -> None:
    """Raise RefusedError if the trainer of this Welcome does not know one of the precisions; None is no precision."""
    if welcome is None or knows_transforms(welcome):
        return
    for precision in precisions:
        if precision is not None and dct_bits(precision):
            raise RefusedError(
                "version",
                f"a trainer of version {welcome.trainer}, which does not know {precision}",
                "version 0.15 or later",
                f"upgrade the trainer, or choose pca{dct_bits(precision):g} instead of {precision}",
            )


def device_position(oldest_request: Message | None, next_step: int) -> Position:
    """The first position that the device has no gradient for.

    Args:
        oldest_request: the first request without an answer; None if there is none.
        next_step: the first step that is not complete.
    """
    if isinstance(oldest_request, Step):
        return Position(oldest_request.step, oldest_request.micro_batch)
    return Position(next_step)


def positions_to_replay(
    trainer: Position, device: Position, oldest: int, micro_batches: MicroBatches
) -> list[Position]:
    """The positions that the device has gradients for and the trainer has lost, in order.

    Args:
        trainer: the first position that the trainer has not learned.
        device: the first position that the device has no gradient for.
        oldest: the first step from which on the journal is complete.
        micro_batches: gives their number in a step.

    Raises:
        Behind: the journal does not reach back to ``trainer``.
    """
    if trainer < device and oldest > trainer.step:
        raise Behind(trainer.step)
    lost = []
    while trainer < device:
        lost.append(trainer)
        trainer = trainer.next(micro_batches(trainer.step))
    return lost


def is_answered(message: Message, trainer: Position) -> bool:
    """Whether a trainer that stands at ``trainer`` has answered ``message`` before."""
    if isinstance(message, Step):
        return (message.step, message.micro_batch) < trainer
    return isinstance(message, Evaluate) and message.step < trainer.step


def fetch_answer(message: Step | Evaluate, unfinished: Partial) -> Fetch:
    """The request for the answer that the trainer gave to ``message``, from where ``unfinished``, our copy, ends."""
    transfer, received_bytes = unfinished
    offset = received_bytes if transfer == message.transfer else 0
    if isinstance(message, Evaluate):
        return Fetch(message.session, message.step, message.part, message.transfer, offset=offset)
    step, durable = message.step, message.durable
    return Fetch(message.session, step, None, message.transfer, message.micro_batch, durable, offset)


def missing_part(message: Continued, held: Partial) -> Continued:
    """The message from where ``held``, the trainer's copy of its last one, ends; all of it if that was another."""
    transfer, received_bytes = held
    if not received_bytes or transfer != message.transfer:
        return message
    return msgspec.structs.replace(message, offset=received_bytes)
