"""The length of the head's training over all devices, for its cosine.

It is a function of the checkpoint and the steps since then alone, so that it is the same after a restart. Who is
connected just now is not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from adc_edge.cloud_trainer.served_session import ServedSession, SessionRecord

_LEAST_STEPS = 256  # at least one of each session, if all are equally fast

logger = logging.getLogger(__name__)


class HeadLength:
    """Tells the length, and logs it when it changes by more than a tenth.

    Args:
        sessions: all sessions.
        tells: whether it is logged.
    """

    def __init__(self, sessions: Iterable[ServedSession], tells: bool = False) -> None:
        self._sessions, self._tells, self._told = sessions, tells, 0

    def at(self, steps: int) -> int:
        """Return the length once the head has learned ``steps``: these, and those that its devices have yet to do.

        A session counts while one of the last tenth of these steps, or of the last 256, was its own. A finished one
        has none to come.
        """
        at_work = self._at_work(steps)
        return self.tell(steps + sum(map(_to_come, at_work)), at_work)

    def to_come(self, steps: int) -> int:
        """Return the steps that the devices of these sessions have yet to do, once the head has learned ``steps``."""
        return sum(map(_to_come, self._at_work(steps)))

    def tell(self, length: int, at_work: Sequence[SessionRecord] = ()) -> int:
        """Log a length that differs from the last one, with the session that has most to come, and return it."""
        if self._tells and abs(length - self._told) > self._told / 10:
            if self._told:
                most = max(at_work, key=_to_come, default=None)
                who = "" if most is None else f"; device {most.device!r} has most steps to come, {_to_come(most)}"
                logger.info("the head's cosine has %d steps now, until now %d%s", length, self._told, who)
            self._told = length
        return length

    def _at_work(self, steps: int) -> list[SessionRecord]:
        return [one.record for one in self._sessions if _is_at_work(one.record, steps)]


def _is_at_work(record: SessionRecord, steps: int) -> bool:
    if record.finished or not record.applied:
        return False
    return record.head_step is None or record.head_step > steps - max(_LEAST_STEPS, steps // 10)


def _to_come(record: SessionRecord) -> int:
    return max(0, record.planned - record.applied)
