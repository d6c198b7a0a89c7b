"""Steps and evaluations of sessions whose devices have sent everything, done between messages."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

import msgspec
import numpy as np

from adc_edge.cloud_trainer.checkpoints import TrainerCheckpoints
from adc_edge.cloud_trainer.codec.on_device import decode_to
from adc_edge.cloud_trainer.head import HeadTraining, Judged
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.scheduling.length import HeadLength
from adc_edge.cloud_trainer.served_session import ServedSession
from adc_edge.cloud_trainer.store.batches import GROUP_BYTES, StoredBatches
from adc_edge.errors import CheckpointError, ProtocolError
from adc_edge.method.token_augmentation import NO_AUGMENTATION, TokenAugmentation
from adc_edge.storage.bundle import Manifest
from adc_edge.wire.messages import LABEL_BYTES, Evaluate

_RETRY_S = 1.0
_FAREWELL_S = 10.0  # for a device that still waits for the answer to its farewell, after a kill of this trainer

logger = logging.getLogger(__name__)


class _AloneSession:
    """A session that goes on alone in this process: its batches, and the evaluation under way."""

    def __init__(self, session: ServedSession, batches: StoredBatches) -> None:
        self.session, self.batches = session, batches
        self.judged_step, self.judged = -1, list[tuple[Evaluate, Judged]]()  # of the last evaluation
        self.fault: CheckpointError | ProtocolError | None = None  # why it cannot go on
        self._since_s = time.monotonic()

    def may_end(self) -> bool:
        """Whether its device has had the answer to its farewell from this process, or was given time to ask again."""
        return self.session.parted or time.monotonic() - self._since_s > _FAREWELL_S

    def evaluation_due(self) -> bool:
        """Whether a part of the evaluation before the next step is still to be judged."""
        session, whole = self.session, self.session.whole_store
        step, every = session.applied, whole.evaluate_every
        at = step == whole.sent or step >= session.planned_steps  # the device's own may have lost its line
        if not at and not (every and step > whole.sent and step % every == 0):
            return False
        if self.judged_step != step:
            self.judged_step, self.judged = step, []
        return session.store is not None and len(self.judged) < session.store.parts(whole.sent)


class AloneTraining:
    """Does the steps of sessions whose stores are whole, in turns, up to the length that their devices have planned.

    Each step is what it would be if the device had sent these activations: the same optimizer, schedule, metrics and
    checkpoints. It is a function of the head, the store, the seed and the step, so a restart repeats it bit for bit.

    Args:
        manifest: the bundle's.
        training: the head's training.
        sessions: all sessions.
        checkpoints: checkpoints of the run.
        seed: the trainer's random seed.
        augmentation: of the steps that are done alone.
        group_bytes: most bytes of decoded groups of stored messages.
    """

    def __init__(
        self,
        manifest: Manifest,
        training: HeadTraining,
        sessions: SessionRegistry,
        checkpoints: TrainerCheckpoints,
        seed: int,
        augmentation: TokenAugmentation = NO_AUGMENTATION,
        group_bytes: int = GROUP_BYTES,
    ) -> None:
        self._manifest, self._training, self._sessions, self._checkpoints = manifest, training, sessions, checkpoints
        self._record, self._length = checkpoints.record, HeadLength(sessions)
        self._batches: Callable[..., StoredBatches] = partial(
            StoredBatches,
            manifest=manifest,
            device=training.device,
            seed=seed,
            augmentation=augmentation,
            group_bytes=group_bytes,
        )
        self._group_bytes, self._augmentation = group_bytes, augmentation
        self._alone: dict[int, _AloneSession] = {}  # the one that has waited longest first
        self._not_before_s = 0.0  # after a disk that was full

    @property
    def held_bytes(self) -> int:
        """Size in bytes of the activations that are kept for the next steps of all sessions."""
        return sum(alone.batches.held_bytes for alone in self._alone.values())

    def work(self, busy: bool) -> bool:
        """Do one step, or a part of an evaluation, of the session that has waited longest; return whether one was due.

        Args:
            busy: whether devices wait. They do not wait for more than this one step.

        Raises:
            CheckpointError, ProtocolError: a session cannot go on, and no other has steps left.
        """
        if time.monotonic() < self._not_before_s:
            return False
        alone = self._next()
        if alone is None:
            self._check_faults()
            return False
        try:
            if alone.evaluation_due():
                self._judge(alone)
            elif alone.session.applied < alone.session.planned_steps:
                self._step(alone)
            elif alone.may_end():
                self._finish(alone.session)
            else:
                return False
        except (CheckpointError, ProtocolError) as error:
            alone.fault = error
            logger.error("the steps of device %r cannot go on: %s", alone.session.record.device, error.received)
        return True

    def _check_faults(self) -> None:
        """Raise the fault of a session once all others are at their end: what is waited for would never come."""
        faults = {alone.session.id: alone.fault for alone in self._alone.values() if alone.fault is not None}
        if faults and all(session.record.finished or session.id in faults for session in self._sessions):
            raise next(iter(faults.values()))

    def _next(self) -> _AloneSession | None:
        """The session whose turn it is; it becomes the last one in the order."""
        for session in self._sessions:
            known = self._alone.get(session.id)
            if session.goes_on_alone and (known is None or known.session is not session):
                assert session.store is not None, "it goes on alone"
                batches = self._batches(session.store, session.whole_store.kept)
                self._alone[session.id] = _AloneSession(session, batches)
                self._tell(session)
        for number, alone in list(self._alone.items()):
            if alone.session not in self._sessions or not alone.session.goes_on_alone:
                del self._alone[number]
            elif not alone.fault and not self._sessions.waiting.fair.is_paused(number):
                self._alone[number] = self._alone.pop(number)
                return alone
        return None

    def _step(self, alone: _AloneSession) -> None:
        """Learn one step and record it; raises CheckpointError for a damaged store, ProtocolError for a loss of NaN."""
        session, training, start = alone.session, self._training, time.monotonic()
        batches = alone.batches.step(session.applied)
        self._release()
        decoded = time.monotonic()
        session.accumulator = None  # of a part of a step that a device has sent once more
        totals = session.begin_step(len(batches))
        for batch in batches:
            learned = training.learn(batch.activations, batch.soft, False, totals)
            totals.images += batch.images
            totals.clusters += len(batch.soft)
            self._record.use.add(learned.seconds, 0.0)
        self._record.use.add(0.0, decoded - start)
        step = session.applied
        session.end_step(training.steps + 1, totals.images)
        training.update(totals, self._length.at(training.steps + 1))
        totals.seconds = time.monotonic() - start
        message = msgspec.structs.replace(batches[-1].message, step=step)
        self._record.step(session, message, totals, None, training.steps)
        self._checkpoints.count_steps([totals])

    def _release(self) -> None:
        """Bound the bytes of decoded groups, but for the one in use: the next turn of the latest is the farthest."""
        for one in list(reversed(self._alone.values()))[1:]:
            if self.held_bytes > self._group_bytes:
                one.batches.release()

    def _judge(self, alone: _AloneSession) -> None:
        """Judge one part of what the device has sent to evaluate; the last one writes the line of the metrics."""
        session, whole, manifest = alone.session, alone.session.whole_store, self._manifest
        assert session.store is not None, "it goes on alone"
        message, body = session.store.evaluation(whole.sent, len(alone.judged))
        split, shape = -LABEL_BYTES * message.images, (message.images, manifest.tokens, manifest.dim)
        activations = decode_to(self._training.device, body[:split], shape, message.precision)
        judged = self._training.judge(activations, np.frombuffer(body[split:], "<i4"))
        alone.judged.append((msgspec.structs.replace(message, step=session.applied), judged))
        if not alone.evaluation_due():
            for part in alone.judged:  # at once: a device that says hello again drops what is open
                self._record.judged(session, *part, self._training.steps)
            self._record.evaluated(session)

    def _finish(self, session: ServedSession) -> None:
        """End a session that has come to its last step: a checkpoint, and what was kept of its device is deleted."""
        session.record.finished = True
        try:
            self._checkpoints.save()
        except OSError as error:
            session.record.finished, self._not_before_s = False, time.monotonic() + _RETRY_S
            logger.warning("no checkpoint at the end of device %r: %s; trying again", session.record.device, error)
            return
        session.forget()
        self._record.done(session)
        logger.info("device %r is done after %d steps; what it sent is deleted", session.record.device, session.applied)

    def _tell(self, session: ServedSession) -> None:
        sent, end = session.whole_store.sent, session.planned_steps
        logger.info(
            "device %r has sent its %d steps and may be switched off; going on alone from step %d to %d%s",
            session.record.device,
            sent,
            session.applied,
            end,
            f", {self._augmentation.in_words}" if self._augmentation.is_active else "",
        )
