"""The end of a device's run: the trainer's word that it has everything, and what is left for it to do alone."""

from __future__ import annotations

import logging

from adc_edge.edge_runtime.frozen.length import RunLength
from adc_edge.edge_runtime.session import DeviceSession
from adc_edge.edge_runtime.state import RunState
from adc_edge.errors import CheckpointError

logger = logging.getLogger(__name__)


class Parting:
    """Knows whether the trainer has acknowledged the end.

    Args:
        state: position of the run.
        session: with the trainer.
        length: of the run.
    """

    def __init__(self, state: RunState, session: DeviceSession, length: RunLength) -> None:
        self._state, self._session, self._length = state, session, length
        self.acknowledged = False

    def note(self) -> None:
        """Note that the trainer has acknowledged the end, and say what is left for it to do alone."""
        self.acknowledged = True
        if self._length.alone:
            self._state.parted = self._length.planned
        self._length.announce(self._session.trainer.step)

    def was_before(self) -> bool:
        """Whether the trainer has acknowledged the end to a process before this one; it does not answer now."""
        if self._length.alone and self._state.parted == self._length.planned:
            self.acknowledged = True
            logger.info("the trainer has acknowledged all that this device sends, and does not answer now")
        return self.acknowledged

    def is_needed_no_more(self) -> bool:
        """Whether the trainer has all that this device sends, wherever it stands itself (``--send-epochs``).

        Raises:
            CheckpointError: the trainer has, and this device came back with a trunk that was not frozen yet.
        """
        welcome, state, length = self._session.welcome, self._state, self._length
        if welcome is None or welcome.stored != length.sent:
            return False
        if length.frozen_from is not None and not length.is_final(state.step):
            raise CheckpointError(
                f"this device's newest checkpoint is of step {state.step}; its trunk learned up to step "
                f"{length.frozen_from}, and the trainer has all that followed",
                f"a checkpoint of step {length.frozen_from} or later",
                "restore it, or start both sides over with --fresh",
            )
        logger.info("the trainer has all that this device sends, and stands at step %d", welcome.applied)
        state.step = length.sent
        self.note()
        return True
