"""A trunk that has learned is frozen (``serve --freeze-after``): the engine gets its last weights, and keeps them."""

from __future__ import annotations

import logging

from adc_edge.edge_runtime.frozen.length import RunLength
from adc_edge.edge_runtime.loop import DeviceLoop
from adc_edge.errors import RefusedError

logger = logging.getLogger(__name__)


class TrunkFreeze:
    """Has a loop train its trunk up to a step, and freezes it there.

    Everything is a function of the step, so a process that comes back on either side of it does the same.

    Args:
        loop: has the trunk; without one that learns nothing is done.
        length: of the run.
    """

    def __init__(self, loop: DeviceLoop, length: RunLength) -> None:
        self._loop, self._length = loop, length
        self._shim, self._refresher = loop.shim, loop.refresher

    def follow(self, step: int) -> bool:
        """Freeze the trunk if it does not learn in ``step``; return whether this call has."""
        loop = self._loop
        if self._shim is None or self._refresher is None or loop.shim is None or not self._length.is_final(step):
            return False
        self._shim.learns = False
        self._shim.drop()
        self._refresher.now()  # also where the engine's weights are older: --refresh-every
        loop.shim = loop.refresher = None
        if left := self._length.sent - step:
            sends = f", and sends {left} step{'s' * (left > 1)} more" if self._length.alone else ""
            frozen_from = self._length.frozen_from
            logger.info("the trunk is frozen from step %d on: this device needs no gradient%s", frozen_from, sends)
        return True

    def thaw(self) -> None:
        """Have the loop train again: the run goes back, perhaps to a step before the trunk was frozen."""
        if self._shim is not None:
            self._shim.learns = True
        self._loop.shim, self._loop.refresher = self._shim, self._refresher

    def check_trainer(self) -> None:
        """Raise RefusedError if the trainer brings trunks together: others' changes would go on in this one."""
        welcome = self._loop.session.welcome
        if self._length.frozen_from is not None and welcome is not None and welcome.fleet:
            raise RefusedError(
                "shape",
                f"a trunk that is frozen on the way (--freeze-after), and a trainer with --mode {welcome.fleet.mode}",
                "devices whose trunks are their own",
                "start the trainer with another --mode, or leave --freeze-after out",
            )
