"""Checkpoints of a trainer: head, optimizer and the steps of every session, made when due and restored when needed."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from adc_edge.cloud_trainer.accumulator import StepAccumulator
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.record.trainer_record import TrainerRecord
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.served_session import ServedSession, SessionRecord
from adc_edge.errors import CheckpointError
from adc_edge.storage.checkpoint import KEPT, Checkpoint
from adc_edge.storage.halves import best_head_name, best_heads, label_weights
from adc_edge.storage.journal import LIMIT_BYTES
from adc_edge.storage.run_dir import RunDir

logger = logging.getLogger(__name__)


class TrainerCheckpoints:
    """Makes the checkpoints of one run, knows which steps they keep, and goes back to one.

    It also keeps the heads of the sessions' best evaluations.

    Args:
        training: the head and its optimizer.
        sessions: the sessions of all devices.
        run_dir: where the run is kept; None or a directory without a path: nothing is kept. Its ``record`` is, if
            others watch the run.
        every: steps between two checkpoints; 0: the number of steps asks for none.
    """

    def __init__(
        self, training: HeadTraining, sessions: SessionRegistry, run_dir: RunDir | None = None, every: int = 0
    ) -> None:
        self._training, self._sessions, self._every = training, sessions, every
        self._run_dir = run_dir if run_dir is not None and run_dir.path is not None else None
        # Steps and sessions of the checkpoints on disk; a damaged newest one would fall back on the older.
        self._kept: deque[tuple[int, dict[int, SessionRecord]]] = deque(maxlen=KEPT)
        self.due_seconds = 0.0  # that checkpoints took which were due: no session's own time
        self._unkept_bytes = 0  # of steps since the last checkpoint: devices keep them until the next
        self.record = TrainerRecord(run_dir, training.outputs)
        sessions.on_evict = self._forget  # or sessions without end would fill the disk

    @property
    def keep_heads(self) -> bool:
        """Whether ``keep_head`` can keep anything: the run is on disk."""
        return self._run_dir is not None

    @property
    def path(self) -> Path | None:
        """The run directory; None: nothing is kept."""
        return None if self._run_dir is None else self._run_dir.path

    def durable(self, session: int) -> int | None:
        """The steps of a session that no crash undoes: those of the older checkpoint; None: every crash undoes all."""
        if self._run_dir is None:
            return None
        older = self._kept[0][1].get(session) if len(self._kept) == KEPT else None
        return 0 if older is None else older.applied

    def count_steps(self, totals: Sequence[StepAccumulator]) -> None:
        """Count steps that were just applied and recorded, and make a checkpoint if one is due."""
        if self._run_dir is None:
            return
        self._unkept_bytes += sum(step.bytes_up for step in totals)
        due = self._every and self._training.steps % self._every < len(totals)
        if due or self._unkept_bytes > LIMIT_BYTES // KEPT:
            start = time.monotonic()
            try:
                self.save()
            except OSError as error:  # earlier checkpoints stay, and so do the devices' journals
                logger.warning("no checkpoint at step %d: %s; going on", self._training.steps, error)
            finally:
                self.due_seconds += time.monotonic() - start

    def save(self) -> None:
        """Make a checkpoint of now, unless there is one; raises OSError, and earlier ones stay."""
        if self._run_dir is None:
            return
        self._sessions.sync()
        step = self._training.steps
        records = msgspec.to_builtins(self._sessions.records(), str_keys=True)
        kept = step, msgspec.convert(records, dict[int, SessionRecord], strict=False)
        if self._kept and self._kept[-1] == kept:  # at the end, after the last device has closed its session
            return
        self._run_dir.checkpoint(step, self._training.arrays(), {"sessions": records})
        if self._kept and self._kept[-1][0] == step:
            self._kept.pop()  # overwritten: a checkpoint is named after its step
        self._kept.append(kept)
        self._unkept_bytes = 0

    def keep_head(self, session: ServedSession, step: int, held: int | None) -> str:
        """Keep the head of a session's ``step`` in a file of its own; returns why it cannot, or nothing.

        A session's other such files are deleted, except that of step ``held``: the device has the trunk to it.
        """
        if self._run_dir is None or self._run_dir.path is None:
            return "the trainer keeps nothing on disk"
        if step == session.applied:  # also if it is there: on CUDA a repeated step differs in its last bits
            weights = label_weights(self._training.safetensors(), self.learned(), self._training.steps)
            try:
                self._run_dir.keep(best_head_name(session.id, step), weights)
            except OSError as error:  # the training goes on, on either side
                logger.warning("the best head of device %r is not kept: %s", session.record.device, error)
                return f"the trainer cannot write its head: {error.strerror}"
        elif step not in best_heads(self._run_dir.path, session.id):
            return f"the trainer stands at step {session.applied}, and has not kept the head of step {step}"
        self._drop_heads(session.id, (step, held))
        logger.info("device %r: kept the head of step %d, its best evaluation", session.record.device, step)
        return ""

    def learned(self) -> dict[int, int]:
        """The steps of each session that the head has learned."""
        return {session.id: session.applied for session in self._sessions}

    def _forget(self, session: int) -> None:
        self._drop_heads(session)
        self.record.forget(session)

    def _drop_heads(self, session: int, but: Collection[int | None] = ()) -> None:
        if self._run_dir is None or self._run_dir.path is None:
            return
        for step, state in best_heads(self._run_dir.path, session).items():
            if step not in but:
                state.path.unlink(missing_ok=True)

    def resume(self) -> None:
        """Restore the newest whole checkpoint; without one, start at step 0.

        Raises:
            CheckpointError: there are checkpoints, and none can be used; or a session goes on without its device, and
                lacks steps of before its store. Nothing is changed then.
        """
        if self._run_dir is None:
            return
        checkpoint = self._run_dir.latest()
        if checkpoint is None:  # steps of a process that was killed before its first checkpoint are done again
            self._sessions.stores.check_reached(None)
            self._run_dir.rewind(0, lambda line: False)
            self._sessions.restore({})
        else:
            self._restore(self._run_dir, checkpoint)
            logger.info("resuming %s at step %d", self._run_dir.path, checkpoint.step)

    def go_back(self, session: int, step: int) -> bool:
        """Restore a checkpoint in which ``session`` stood at ``step`` or before it; False if there is none.

        False also if another device would lose steps.
        """
        others = any(s.id != session and not s.record.finished and s.applied for s in self._sessions)
        until = self._training.steps
        while self._run_dir is not None and not others:
            try:
                checkpoint = self._run_dir.latest(until)
            except CheckpointError:
                break
            if checkpoint is None:
                break
            stood = checkpoint.meta["sessions"].get(str(session))
            if stood is None or stood["applied"] <= step:
                logger.warning(
                    "the log of answers is damaged: going back to the checkpoint of step %d", checkpoint.step
                )
                self._restore(self._run_dir, checkpoint)
                return True
            until = checkpoint.step - 1
        return False

    def _restore(self, run_dir: RunDir, checkpoint: Checkpoint) -> None:
        try:
            records = msgspec.convert(checkpoint.meta["sessions"], dict[int, SessionRecord], strict=False)
        except (KeyError, msgspec.ValidationError) as error:
            raise CheckpointError(
                f"{run_dir.path}: {error}", "a trainer's checkpoint", "use another --run, or --fresh"
            ) from None
        self._sessions.stores.check_reached({number: record.applied for number, record in records.items()})
        self._training.restore(checkpoint.arrays, checkpoint.step)
        self._sessions.restore(self._served(checkpoint, records))
        known = {f"{number:016x}" for number in records}
        self.record.forget_evaluations()
        run_dir.rewind(checkpoint.step, lambda line: self.record.keeps(line, checkpoint.step, known))
        self._kept.clear()
        self._kept.append((checkpoint.step, msgspec.convert(msgspec.to_builtins(records), dict[int, SessionRecord])))

    def _served(self, checkpoint: Checkpoint, records: dict[int, SessionRecord]) -> dict[int, SessionRecord]:
        """The sessions of a checkpoint that this trainer serves: all of them."""
        return records
