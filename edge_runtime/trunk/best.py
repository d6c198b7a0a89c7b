"""The two halves of a run's best evaluation, which ``--keep-best`` keeps: first the trainer's, then the device's."""

from __future__ import annotations

import logging

from safetensors.numpy import save

from adc_edge.edge_runtime.loop import DeviceLoop
from adc_edge.edge_runtime.state import RunState
from adc_edge.edge_runtime.tally import Evaluation
from adc_edge.errors import SettingError
from adc_edge.storage.halves import BEST_TRUNK, best_trunk, label_weights
from adc_edge.storage.run_dir import RunDir

logger = logging.getLogger(__name__)


class BestHalves:
    """Keeps the halves of an evaluation, so that both sides always have those of one step.

    The trainer writes its half and deletes all but this one and the one before. Only then is the device's half
    replaced. So whenever a process is killed, the trainer has the half to the device's. Doing it again is harmless.

    Args:
        loop: speaks with the trainer, and has the trunk.
        state: position of the run.
        run_dir: keeps the device's half.
    """

    def __init__(self, loop: DeviceLoop, state: RunState, run_dir: RunDir) -> None:
        self._loop, self._state, self._run_dir = loop, state, run_dir

    def check_trainer(self) -> None:
        """Raise SettingError if the trainer cannot keep its half."""
        welcome = self._loop.session.welcome
        assert welcome is not None
        if welcome.keeps_heads is True:
            return
        if welcome.durable is None:
            received, remedy = "a trainer without --run: it keeps nothing on disk", "start it with --run DIR"
        else:
            received, remedy = f"a trainer of version {welcome.trainer}, which keeps no best head", "update it"
        raise SettingError(
            f"--keep-best with {received}", "a trainer that keeps its half", f"{remedy}, or leave --keep-best out"
        )

    def keep(self, evaluation: Evaluation) -> bool:
        """Keep both halves of ``evaluation``; False, and a warning, if one side cannot: then the pair before stays.

        Raises:
            Stopped, Behind, LinkError, RefusedError, ProtocolError: see DeviceSession.
        """
        fault = self._ask(evaluation.step)
        if not fault:
            try:
                self._run_dir.keep(BEST_TRUNK, self._labelled(evaluation))
            except OSError as error:
                fault = f"{error.filename}: {error.strerror}"
        if fault:
            logger.warning("the best evaluation so far, of step %d, is not kept: %s", evaluation.step, fault)
        return not fault

    def _ask(self, step: int) -> str:
        welcome = self._loop.session.welcome
        if welcome is None or welcome.keeps_heads is not True:  # another one than at the start
            return "the trainer is now one that keeps no best head"
        return self._loop.keep_head(step, self._held())

    def _held(self) -> int | None:
        """The step of the half that this device keeps, which the trainer must not delete yet."""
        state = best_trunk(self._run_dir.path) if self._run_dir.path is not None else None
        return None if state is None else state.learned.get(self._state.session)

    def _labelled(self, evaluation: Evaluation) -> bytes:
        refresher, step = self._loop.refresher, evaluation.step
        weights = {} if refresher is None else dict(refresher.engine_weights())  # frozen: those of trunk.safetensors
        return label_weights(save(weights), {self._state.session: step}, step, refresher is None, evaluation.accuracy)
