"""Steps on their way through the head: decoded, learned alone or together, encoded, then counted and kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from msgspec import UNSET
from torch import Tensor

from adc_edge.arrays import Body, Float32
from adc_edge.cloud_trainer.accumulator import StepAccumulator
from adc_edge.cloud_trainer.checkpoints import TrainerCheckpoints
from adc_edge.cloud_trainer.codec.on_device import decode_to, encode_from
from adc_edge.cloud_trainer.head import HeadTraining, Learned
from adc_edge.cloud_trainer.registry import RequestContext
from adc_edge.cloud_trainer.scheduling.length import HeadLength
from adc_edge.cloud_trainer.scheduling.merged import Merging
from adc_edge.cloud_trainer.served_session import ServedSession
from adc_edge.cloud_trainer.store.sending import store_step
from adc_edge.codec.precision import encoded_bytes
from adc_edge.errors import ProtocolError
from adc_edge.method.labels import soft_labels
from adc_edge.storage.bundle import Manifest
from adc_edge.wire.messages import Gradient, Step

StepRequest = tuple[ServedSession, Step, memoryview, RequestContext]


@dataclass
class MicroBatch:
    """One micro-batch: as it came, and what became of it."""

    session: ServedSession
    message: Step
    context: RequestContext
    activations: Tensor
    soft: Float32
    codec_seconds: float
    totals: StepAccumulator = field(init=False)
    loss: float = 0.0
    accuracy: float = 0.0
    answer: Body = b""
    seconds: float = 0.0  # of the head and the codec, its part of what was done together


class StepAnswers:
    """Learns micro-batches and keeps their answers.

    Args:
        manifest: the bundle's.
        training: the head's training.
        sessions: all sessions.
        checkpoints: checkpoints of the run.
        warn: told kind and text of why an answer cannot be kept.
        merging: how steps of several sessions are learned together.
    """

    def __init__(
        self,
        manifest: Manifest,
        training: HeadTraining,
        sessions: Iterable[ServedSession],
        checkpoints: TrainerCheckpoints,
        warn: Callable[[str, str], object],
        merging: Merging,
    ) -> None:
        self._manifest, self._training, self._checkpoints = manifest, training, checkpoints
        follows = training.optimizer.settings
        tells = follows.schedule == "cosine" and not follows.schedule_steps
        self._length = HeadLength(sessions, tells)
        self._record, self._warn, self._merging = checkpoints.record, warn, merging

    def learn(
        self, session: ServedSession, message: Step, body: memoryview, context: RequestContext
    ) -> Callable[[], None]:
        """Learn a micro-batch that is due, and keep its answer; returns what is to be done once the answer is sent.

        Raises:
            ProtocolError: ``labels``, ``nan``, ``size``: nothing has changed.
            OSError: what is to be kept for steps without the device cannot be written; nothing has changed.
        """
        micro = self._decode(session, message, body, context)
        store_step(session, message, body, self._checkpoints.save)  # before a checkpoint lets the device forget it
        micro.totals = session.begin_step(message.micro_batches)
        learned = self._training.learn(micro.activations, micro.soft, message.gradient is not None, micro.totals)
        self._encode(micro, learned)
        self._keep(micro, learned.seconds, 1)
        return partial(self._finish, [micro])

    def learn_together(self, requests: Sequence[StepRequest]) -> Callable[[], None] | None:
        """Learn whole steps of several sessions in one pass, as ``learn`` does; None: each must be learned alone.

        Nothing has changed if None is returned.
        """
        start = time.monotonic()
        try:
            micros = [self._decode(*request) for request in requests]
            for micro, (_, _, body, _) in zip(micros, requests, strict=True):
                store_step(micro.session, micro.message, body, self._checkpoints.save)
            for micro in micros:
                micro.totals = micro.session.begin_step(1)
            learned = self._merging.learn(
                self._training,
                [(micro.activations, micro.soft, micro.message.images) for micro in micros],
                [micro.totals for micro in micros],
            )
        except (ProtocolError, OSError):  # of one of them; alone, it is refused
            return None
        for micro, one in zip(micros, learned, strict=True):
            self._encode(micro, one)
        passed = time.monotonic() - start
        for micro in micros:
            self._keep(micro, passed - micro.codec_seconds, len(micros))
        return partial(self._finish, micros)

    def write_log(self, session: ServedSession) -> None:
        """Write a session's answers to its log; a full disk is warned of."""
        try:
            session.write()
        except OSError as error:
            self._warn("journal", f"the log of answers cannot be written: {error}")

    def _decode(self, session: ServedSession, message: Step, body: memoryview, context: RequestContext) -> MicroBatch:
        shape = (message.clusters, message.kept, self._manifest.dim)
        split = encoded_bytes(shape, message.precision)
        soft = soft_labels(body[split:], message.clusters, self._manifest.classes, message.images)
        start = time.monotonic()
        activations = decode_to(self._training.device, body[:split], shape, message.precision)
        return MicroBatch(session, message, context, activations, soft, time.monotonic() - start)

    @staticmethod
    def _encode(micro: MicroBatch, learned: Learned) -> None:
        start, asked = time.monotonic(), micro.message.gradient
        micro.loss, micro.accuracy = learned.loss, learned.accuracy
        if asked and learned.gradient is not None:
            micro.answer = encode_from(learned.gradient, asked)
        micro.codec_seconds += time.monotonic() - start

    def _keep(self, micro: MicroBatch, seconds: float, together: int) -> None:
        """Count a micro-batch, and keep its answer.

        Args:
            micro: the micro-batch, learned.
            seconds: time that its answer took beside its own codec.
            together: number of micro-batches that took this time together.
        """
        message, context = micro.message, micro.context
        reply = Gradient(
            session=micro.session.id,
            step=message.step,
            micro_batch=message.micro_batch,
            transfer=message.transfer,
            body_bytes=len(micro.answer),
            precision=message.gradient or message.precision,
            loss=micro.loss,
            accuracy=micro.accuracy,
            seconds_cloud=seconds,
            seconds_codec=micro.codec_seconds,
            down_mbit_s=context.down_mbit_s,
            down_app_limited=UNSET if context.down_mbit_s is None else context.down_app_limited,
            up_mbit_s=context.up_mbit_s or UNSET,
        )
        micro.session.record_answer(reply, micro.answer)
        micro.seconds = self._record.use.add(seconds / together, micro.codec_seconds)

    def _finish(self, micros: Sequence[MicroBatch]) -> None:
        """After the answers: the optimizer's steps of those that are complete, the log, the metrics, a checkpoint."""
        begun, complete = time.monotonic(), [micro.totals for micro in micros if micro.totals.complete]
        head_step = self._training.steps + len(complete)
        for micro in micros:
            if micro.totals.complete:
                micro.session.record.head_step = head_step
        length = self._length.at(head_step)
        for micro in micros:
            start = time.monotonic()
            self._record.evaluated(micro.session)
            if micro.totals.complete:
                self._training.update(micro.totals, length if micro.session.planned_steps else 0)
            self._settle(micro, start)
            if micro.totals.complete:
                self._count(micro, self._training.steps)
        if complete:  # after all of them: a checkpoint knows a pass as a whole
            self._checkpoints.count_steps(complete)
        self._record.use.update += time.monotonic() - begun

    def _settle(self, micro: MicroBatch, start: float) -> None:
        """Write the log, and add the costs of a micro-batch whose answer is sent; its update began at ``start``."""
        self.write_log(micro.session)
        micro.session.prune(micro.message.durable)
        micro.totals.add_cost(micro.message, len(micro.answer), micro.seconds + time.monotonic() - start)

    def _count(self, micro: MicroBatch, head_step: int) -> None:
        """Record the step that a micro-batch has completed; the head has ``head_step`` steps with it."""
        micro.session.record.images += micro.totals.images
        self._record.step(micro.session, micro.message, micro.totals, micro.context, head_step)
