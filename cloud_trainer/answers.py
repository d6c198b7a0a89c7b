"""The trainer's answers to the messages of a device's session. Knows nothing of sockets."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import numpy as np
from msgspec import UNSET

from adc_edge import __version__
from adc_edge.arrays import Body
from adc_edge.cloud_trainer.checkpoints import TrainerCheckpoints
from adc_edge.cloud_trainer.classes import HeadClasses
from adc_edge.cloud_trainer.codec.on_device import decode_to
from adc_edge.cloud_trainer.fleet.device_fleet import DeviceFleet
from adc_edge.cloud_trainer.guard import Refusals
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.limits import MessageLimits
from adc_edge.cloud_trainer.registry import RequestContext, SessionRegistry, outside_session
from adc_edge.cloud_trainer.scheduling.admission import Admission
from adc_edge.cloud_trainer.scheduling.merged import Merging
from adc_edge.cloud_trainer.scheduling.steps import StepAnswers, StepRequest
from adc_edge.cloud_trainer.served_session import ServedSession
from adc_edge.cloud_trainer.store.sending import (
    check_not_alone,
    check_wish,
    part_from_device,
    steps_stored,
    store_evaluation,
    tell_of_older,
)
from adc_edge.errors import ProtocolError
from adc_edge.method.labels import check_classes
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.journal import JournalKey
from adc_edge.wire.class_names import pack_names
from adc_edge.wire.messages import (
    LABEL_BYTES,
    Absent,
    Bye,
    ByeAck,
    ClassNames,
    Evaluate,
    Evaluated,
    Fetch,
    FromDevice,
    FromTrainer,
    HeadKept,
    Hello,
    KeepHead,
    Step,
    Welcome,
)

_ID_BITS = 62

logger = logging.getLogger(__name__)

Request = tuple[RequestContext, FromDevice, memoryview]  # with the message's body
Reply = tuple[FromTrainer, Body]
AfterSend = Callable[[], None] | None  # to be called once the reply is on its way, whether or not that succeeded


class Answers:
    """One trainer's side of the protocol.

    Args:
        bundle: the bundle that every device must have.
        training: the head's training.
        sessions: all sessions, as far as the checkpoint knew them.
        limits: limits of a message.
        checkpoints: checkpoints of the run.
        refusals: log for the reasons why an answer cannot be kept.
        classes: the class names of the head.
        fleet: says who fits its mode.
        merging: how steps of several sessions are learned together.
        admission: tells whether there is room for a new session.
        steps: makes what learns the steps.
    """

    def __init__(
        self,
        bundle: Bundle,
        training: HeadTraining,
        sessions: SessionRegistry,
        *,
        limits: MessageLimits,
        checkpoints: TrainerCheckpoints,
        refusals: Refusals,
        classes: HeadClasses,
        fleet: DeviceFleet,
        merging: Merging,
        admission: Admission,
        steps: Callable[..., StepAnswers] = StepAnswers,
    ) -> None:
        self._bundle, self._training, self._sessions, self._limits = bundle, training, sessions, limits
        self._checkpoints, self._refusals, self._classes = checkpoints, refusals, classes
        self._device, self._record = training.device, checkpoints.record
        self._fleet = fleet
        self._steps = steps(bundle.manifest, training, sessions, checkpoints, refusals.warn, merging)
        self.admission = admission
        self._incarnation = secrets.randbits(_ID_BITS)

    def answer(self, context: RequestContext, message: FromDevice, body: memoryview) -> tuple[Reply, AfterSend]:
        """The reply to one whole message, and the work that waits until the reply is on its way.

        The device must not wait for the optimizer and for files. A kill in between loses nothing: the trainer comes
        back older than the step, and the device sends it again.

        Raises:
            ProtocolError: the message is refused; nothing has changed.
            OSError: what must be on disk first could not be written; nothing has changed.
        """
        if isinstance(message, Hello):
            return (self._open_session(context, message), b""), None
        session = context.peer.session
        if session is None or message.session != session.id:  # type: ignore[union-attr]
            raise outside_session(message)
        if isinstance(message, Step | Evaluate):
            check_not_alone(session, message)
        if isinstance(message, Step):
            return self._step(session, message, body, context)
        if isinstance(message, Fetch):
            session.prune(message.durable)
            key = JournalKey(message.step, message.micro_batch, message.part)
            return self._logged(session, key, message.transfer, message.offset), None
        if isinstance(message, Evaluate):
            return self._evaluate(session, message, body), partial(self._steps.write_log, session)
        if isinstance(message, ClassNames):
            return self._name_classes(session, message, body), None
        if isinstance(message, KeepHead):
            fault = self._checkpoints.keep_head(session, message.step, message.held)
            return (HeadKept(session.id, message.step, fault), b""), None
        if isinstance(message, Bye):
            return self._close_session(session), None
        raise ProtocolError(
            f"a {type(message).__name__}", "a request", "install the same version of adc-edge on both sides"
        )

    def _open_session(self, context: RequestContext, hello: Hello) -> Welcome:
        ours, peer = self._bundle, context.peer
        hello = msgspec.structs.replace(hello, device=context.shown_name(hello))
        if hello.bundle != ours.digest:
            raise ProtocolError(
                f"bundle {hello.bundle[:12]}…",
                f"bundle {ours.digest[:12]}…, {ours.manifest.model} split {ours.manifest.split}",
                "copy the trainer's bundle to the device",
                "bundle",
            )
        if hello.class_names is not True:
            self._classes.check_silent(hello.device)
        self._fleet.check_hello(hello)
        check_wish(self._sessions, hello)
        if not self._fleet.knows(hello.session):
            self.admission.check(hello)
        session = self._sessions.find(hello, peer.owner)
        try:
            session.resume(hello)
        except ProtocolError as error:
            if error.code != "history" or not self._checkpoints.go_back(hello.session, hello.next_step):
                raise
            session = self._sessions.find(hello, peer.owner)
            session.resume(hello)
        stored = steps_stored(session, hello)
        if stored == 0:
            session.store = self._sessions.stores.begin(hello)
        begins_on = 0 if session.applied else self._training.steps
        for superseded in self._sessions.open(session, context.route):
            self._record.presence.leave(superseded)
        self._fleet.joined(hello)
        self._record.joined(session, context, hello)
        self._tell_joined(session, hello, context, begins_on)
        return Welcome(
            session=session.id,
            applied=session.applied,
            learned=session.learned,
            oldest=session.oldest(),
            durable=self._checkpoints.durable(session.id),
            incarnation=self._incarnation,
            transfer=peer.inbox.unfinished[0],
            received_bytes=peer.inbox.unfinished[1],
            trainer=__version__,
            class_names=self._classes.asked_for or UNSET,
            class_counts=True,
            other_steps=begins_on or UNSET,
            max_images=self._limits.max_images,
            follows=True,
            keeps_heads=self._checkpoints.keep_heads or UNSET,
            fleet=self._fleet.terms(),
            paused=self._sessions.waiting.fair.is_paused(session.id) or UNSET,
            stored=stored,
            keeps_from=(hello.sends and hello.sends.first) or UNSET,
            transforms=True,
        )

    def _tell_joined(self, session: ServedSession, hello: Hello, context: RequestContext, begins_on: int) -> None:
        """Log that a device has come, and where it differs from what the trainer is set up for."""
        by = "" if context.congestion is None else f", sending by {context.congestion}"
        logger.info("device %r at step %d%s%s", hello.device, hello.next_step, by, session.difference(hello))
        if begins_on:
            logger.info("device %r begins on a head with %d steps of other sessions", hello.device, begins_on)
        self._sessions.stores.tell_unused(hello)
        tell_of_older(self._sessions, session)

    def _name_classes(self, session: ServedSession, message: ClassNames, body: memoryview) -> Reply:
        """Learn a device's class names and their images, and answer with those of the head if they were asked for."""
        names, images = self._classes.take(message, body, session.record.device)
        self._record.classes.take(session.id, session.record.device, images)
        answer = pack_names(names)
        return ClassNames(session.id, message.transfer, len(answer)), answer

    def _step(
        self, session: ServedSession, message: Step, body: memoryview, context: RequestContext
    ) -> tuple[Reply, AfterSend]:
        self._fleet.check_step(message)
        key = JournalKey(message.step, message.micro_batch)
        if not session.due(key, message.micro_batches):
            return self._logged(session, key, message.transfer, empty=message.replay), None
        after_send = self._steps.learn(session, message, body, context)
        return self._logged(session, key, message.transfer, empty=message.replay), after_send

    def answer_together(self, requests: Sequence[Request]) -> tuple[list[Reply], AfterSend] | None:
        """The replies to whole steps of several sessions, learned in one pass; None: each must be answered alone.

        Nothing has changed if None is returned.
        """
        steps: list[StepRequest] = []
        for context, message, body in requests:
            session = context.peer.session
            if session is None or not isinstance(message, Step) or not session.is_next_step(message):
                return None
            if session.goes_on_alone or not self._fleet.takes(message):
                return None
            steps.append((session, message, body, context))
        after_send = self._steps.learn_together(steps)
        if after_send is None:
            return None
        told = [(session, JournalKey(message.step), message) for session, message, _, _ in steps]
        return [self._logged(session, key, m.transfer, empty=m.replay) for session, key, m in told], after_send

    def _logged(
        self, session: ServedSession, key: JournalKey, transfer: int, offset: int = 0, *, empty: bool = False
    ) -> Reply:
        """An answer that was given, from ``offset`` on; ``empty`` for a device that has had the gradient."""
        found = session.answer(key)
        if found is None:
            return Absent(session.id, key.step), b""
        reply, body = found
        if isinstance(reply, Evaluated):
            return reply, body
        body = b"" if empty else body
        if offset and offset >= len(body):
            remedy = "install the same version of adc-edge on both sides"
            raise ProtocolError(f"an answer from {offset} on", f"less than {len(body)}", remedy, "order")
        durable = self._checkpoints.durable(session.id)
        return msgspec.structs.replace(
            reply, transfer=transfer, offset=offset, body_bytes=len(body), durable=durable
        ), body

    def _evaluate(self, session: ServedSession, message: Evaluate, body: memoryview) -> Reply:
        split, shape = -LABEL_BYTES * message.images, (message.images, self._limits.tokens, self._limits.dim)
        labels = np.frombuffer(body[split:], "<i4")
        check_classes(labels, self._limits.classes)
        store_evaluation(session, message, body)
        judged = self._training.judge(decode_to(self._device, body[:split], shape, message.precision), labels)
        self._record.judged(session, message, judged, self._training.steps)
        if message.step != session.applied:  # its answer has left the log: a device that came back without its trainer
            self._refusals.warn(
                "journal", f"the head of step {session.applied} judged the evaluation of step {message.step}"
            )
        by = UNSET if message.step == session.applied else session.applied
        reply = Evaluated(session.id, message.step, message.part, message.images, *judged, by)
        session.keep(JournalKey(message.step, part=message.part), reply)
        return reply, b""

    def _close_session(self, session: ServedSession) -> Reply:
        self._record.evaluated(session)
        if session.goes_on_alone or part_from_device(session):
            self._checkpoints.save()
            session.prune(None)
            session.parted = True
            return ByeAck(session.id), b""
        was_finished = session.record.finished
        session.record.finished = True
        try:
            self._checkpoints.save()  # before the device is told, which then drops what it keeps
        except OSError:
            session.record.finished = was_finished
            raise
        session.forget()
        self._record.done(session)
        if not was_finished:
            logger.info("device %r is done after %d steps", session.record.device, session.applied)
        return ByeAck(session.id), b""
