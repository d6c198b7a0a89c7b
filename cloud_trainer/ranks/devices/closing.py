"""The end of sessions on a rank: a Bye is answered once a checkpoint of all ranks has its session finished.

The device drops what it keeps when it has the answer. If a process dies before, all ranks come back to a checkpoint
without the end, and the device, whose answer has not come, says Hello and Bye again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from adc_edge.cloud_trainer.answers import Reply
from adc_edge.cloud_trainer.record.trainer_record import TrainerRecord
from adc_edge.cloud_trainer.scheduling.messages import QueuedMessage
from adc_edge.cloud_trainer.served_session import ServedSession
from adc_edge.wire.messages import ByeAck

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Ending:
    asked: QueuedMessage
    session: ServedSession
    was_finished: bool


class Closing:
    """The Byes of one rank that wait for a checkpoint.

    Args:
        record: of this rank's sessions.
        wish: asks for a checkpoint of all ranks in the next round.
    """

    def __init__(self, record: TrainerRecord, wish: Callable[[], None]) -> None:
        self._record, self._wish = record, wish
        self._endings: dict[int, _Ending] = {}
        self._durable: frozenset[int] = frozenset()

    def bye(self, asked: QueuedMessage, session: ServedSession) -> Reply | None:
        """End a session; all of its steps must be applied by the checkpoint that is wished for.

        Returns:
            The answer, if a checkpoint has the session finished; else None, and ``kept`` or ``failed`` tells later.
        """
        before = self._endings.pop(session.id, None)  # it came back, and has said Bye again
        if before is None or before.session is not session:
            self._record.evaluated(session)
            was_finished = session.record.finished
        else:
            was_finished = before.was_finished
        if session.record.finished and session.id in self._durable:
            return self._answer(session, was_finished)
        self._durable -= {session.id}  # of an earlier end: the session has gone on since
        self._endings[session.id] = _Ending(asked, session, was_finished)
        session.record.finished = True
        self._wish()
        return None

    def kept(self, finished: Collection[int]) -> list[tuple[QueuedMessage, Reply]]:
        """Note a checkpoint that all ranks have made or come back to; returns the answers to the Byes that it has.

        Args:
            finished: the sessions that it has as finished.
        """
        self._durable = frozenset(finished)
        answered = list[tuple[QueuedMessage, Reply]]()
        for number, ending in list(self._endings.items()):
            if not ending.session.record.finished:  # its device has come back with more steps
                del self._endings[number]
            elif number in self._durable:
                del self._endings[number]
                answered.append((ending.asked, self._answer(ending.session, ending.was_finished)))
        return answered

    def failed(self) -> list[QueuedMessage]:
        """Note that no checkpoint could be made; returns the Byes that are to be refused (``busy``)."""
        endings, self._endings = list(self._endings.values()), {}
        for ending in endings:
            ending.session.record.finished = ending.was_finished
        return [ending.asked for ending in endings]

    def waits_for(self, session: int) -> bool:
        """Return whether the Bye of a session waits for a checkpoint."""
        return session in self._endings

    def _answer(self, session: ServedSession, was_finished: bool) -> Reply:
        session.forget()
        self._record.done(session)
        if not was_finished:
            logger.info("device %r is done after %d steps", session.record.device, session.applied)
        return ByeAck(session.id), b""
