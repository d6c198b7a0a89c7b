"""A session whose device sends each image once: its messages kept while they come, and its end without a farewell."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from adc_edge.arrays import Body
from adc_edge.cloud_trainer.store.session_store import WholeStore
from adc_edge.errors import ProtocolError
from adc_edge.wire.messages import Evaluate, Hello, Step

if TYPE_CHECKING:
    from adc_edge.cloud_trainer.registry import SessionRegistry
    from adc_edge.cloud_trainer.served_session import ServedSession

logger = logging.getLogger(__name__)


def store_step(session: ServedSession, message: Step, body: Body, save: Callable[[], None]) -> None:
    """Keep a micro-batch for the steps that are done without the device, if it will not send them.

    Before the first of them, ``save`` makes a checkpoint, if steps precede it that are not kept. The checkpoint before
    the trainer says that it has everything is another. So a trainer that comes back without its device finds one from
    which the kept steps go on, even if its newest is damaged.

    Raises:
        ProtocolError: code ``size``: the store is full.
        OSError: it cannot be written.
    """
    if session.store is None or not session.sends:
        return
    first, end = session.sends.first, session.sends.steps
    if first <= message.step < end:
        if first and (message.step, message.micro_batch) == (first, 0):
            save()
        count = session.micro_batches_of(message)
        session.store.keep_step(msgspec.structs.replace(message, micro_batches=count), body)


def store_evaluation(session: ServedSession, message: Evaluate, body: Body) -> None:
    """Keep a part of the evaluation after the last step that the device sends; raises as ``store_step``."""
    if session.store is not None and session.sends and message.step == session.sends.steps == session.applied:
        session.store.keep_evaluation(message, body)


def steps_stored(session: ServedSession, hello: Hello) -> int | UnsetType:
    """Return for how many of its steps a device is no longer needed: all that it sends, or none. UNSET: it has no wish.

    Raises:
        ProtocolError: code ``order``: its run is over and is to be longer, but what it sent is deleted.
    """
    if not hello.sends:
        return UNSET
    over = session.record.finished and session.applied >= hello.sends.steps
    if over and session.applied < hello.steps:
        raise ProtocolError(
            f"a run of {hello.steps} steps that was over at step {session.applied}: what the device sent is deleted",
            "the length that it had (--send-epochs)",
            "start both sides over with --fresh",
            "order",
        )
    return hello.sends.steps if over or session.goes_on_alone else 0


def check_not_alone(session: ServedSession, message: Step | Evaluate) -> None:
    """Raise ProtocolError, code ``order``, for a message whose step the trainer does itself, from its store."""
    if session.goes_on_alone:
        raise ProtocolError(
            f"a {type(message).__name__} of step {message.step}, which this trainer does alone: it has all messages",
            "nothing more of this device (--send-epochs)",
            "restart `adc-edge serve`; it then tells where the trainer stands",
            "order",
        )


def check_wish(sessions: SessionRegistry, hello: Hello) -> None:
    """Admit the wish to send each image once, or the return of a device that has sent all; raises ProtocolError."""
    known = next((session for session in sessions if session.id == hello.session), None)
    if hello.sends and known is not None and known.store is not None and known.store.begun is not None:
        known.store.begun.check(hello.sends)
    if known is None or not steps_stored(known, hello):
        sessions.stores.check(hello)


def tell_of_older(sessions: SessionRegistry, session: ServedSession) -> None:
    """Warn that a device begins while this trainer still does steps of what one of its name and key has sent."""
    mine = session.record.device, session.record.owner
    older = (one for one in sessions if (one.record.device, one.record.owner) == mine and one.goes_on_alone)
    left = sum(one.planned_steps - one.applied for one in older if one is not session)
    if left and not session.applied:
        text = "device %r begins, and %d steps of an older run of that name are done alone: the head learns from both"
        logger.warning(text, session.record.device, left)


def lengthen(session: ServedSession, planned: int) -> None:
    """Go on alone to another last step, from now on and after a restart.

    Raises:
        ProtocolError: code ``order``: the trainer has come further than that.
        OSError: it cannot be written.
    """
    if session.goes_on_alone and session.store is not None and session.planned_steps != planned:
        if planned < session.applied:
            raise ProtocolError(
                f"a run of {planned} steps, and the trainer has done {session.applied} of it alone",
                f"at least {session.applied} steps",
                "restart `adc-edge serve` with more --epochs or --steps",
                "order",
            )
        session.store.lengthen(planned)
        session.record.planned = planned


def part_from_device(session: ServedSession) -> bool:
    """Note on disk that the device has sent all that it sends, and that steps are left; False: none are.

    Raises:
        ProtocolError: code ``order``: a step is missing in the store.
        OSError: it cannot be written.
    """
    if session.store is None or not session.sends or session.applied >= session.planned_steps:
        return False
    about = session.record.device, session.record.owner, session.sends.steps, session.planned_steps
    whole = WholeStore(*about, session.sends.evaluate_every, first=session.sends.first or UNSET)
    session.store.complete(whole, session.micro_batches)
    return True
