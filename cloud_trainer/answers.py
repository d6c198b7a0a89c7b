"""What the trainer answers to each message of a device's session. Knows nothing of sockets."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from adc_edge import __version__
from adc_edge.arrays import Body
from adc_edge.cloud_trainer.accumulator import StepAccumulator
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.limits import MessageLimits
from adc_edge.cloud_trainer.registry import Peer, SessionRegistry
from adc_edge.cloud_trainer.served_session import ServedSession
from adc_edge.codec.precision import decode, encode, encoded_bytes
from adc_edge.errors import ProtocolError
from adc_edge.method.labels import check_classes, soft_labels
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.journal import JournalKey
from adc_edge.wire.messages import (
    LABEL_BYTES,
    Absent,
    Bye,
    ByeAck,
    Evaluate,
    Evaluated,
    Fetch,
    FromDevice,
    FromTrainer,
    Gradient,
    Hello,
    Step,
    Welcome,
)

_ID_BITS = 62

Reply = tuple[FromTrainer, Body]


class Answers:
    """One trainer's side of the protocol.

    Args:
        bundle: that every device must have.
        training: of the head.
        sessions: with what a checkpoint knew.
        limits: of a message.
        say: told of devices that come and go.
        trouble: told why an answer cannot be logged.
        on_step: called after each optimizer step with the values for metrics.jsonl.
        on_bye: makes everything durable before a device's goodbye is acknowledged.
        go_back: returns to a checkpoint in which a session stood at most at a step; False if there is none.
    """

    def __init__(
        self,
        bundle: Bundle,
        training: HeadTraining,
        sessions: SessionRegistry,
        limits: MessageLimits,
        *,
        say: Callable[[str], None],
        trouble: Callable[[str], None],
        on_step: Callable[..., None],
        on_bye: Callable[[], None],
        go_back: Callable[[int, int], bool],
    ) -> None:
        self._bundle, self._training, self._sessions, self._limits = bundle, training, sessions, limits
        self._say, self._trouble = say, trouble
        self._on_step, self._on_bye, self._go_back = on_step, on_bye, go_back
        self._incarnation = secrets.randbits(_ID_BITS)
        self.durable: Mapping[int, int] | None = None  # steps of each session that no crash undoes; None: all lost
        self.down_mbit_s: float | None = None  # of the connection that is answered
        self.congestion: str | None = None  # control of the connection that says hello
        self._due: Callable[[], None] | None = None

    def answer(self, route: bytes, peer: Peer, message: FromDevice, body: memoryview) -> Reply:
        """The answer to one whole message that came over ``route``.

        Raises:
            ProtocolError: it is refused; nothing has changed.
            OSError: what must be on disk first could not be written; nothing has changed.
        """
        if isinstance(message, Hello):
            return self._hello(route, peer, message), b""
        session = peer.session
        if session is None or message.session != session.id:  # type: ignore[union-attr]
            raise outside_session(message)
        if isinstance(message, Step):
            return self._step(session, message, body)
        if isinstance(message, Fetch):
            session.prune(message.durable)
            key = JournalKey(message.step, message.micro_batch, message.part)
            return self._again(session, key, message.transfer, message.offset)
        if isinstance(message, Evaluate):
            return self._evaluate(session, message, body)
        if isinstance(message, Bye):
            return self._bye(session)
        raise ProtocolError(f"a {type(message).__name__}", "a request", "use one version")

    def settle(self) -> None:
        """What the last answer left to do, once it is on its way: files must not make a device wait.

        Nothing is lost by a kill in between: the trainer comes back older than the step, and is fed it again.
        """
        due, self._due = self._due, None
        if due is not None:
            due()

    def _hello(self, route: bytes, peer: Peer, hello: Hello) -> Welcome:
        ours = self._bundle
        if hello.bundle != ours.digest:
            raise ProtocolError(
                f"bundle {hello.bundle[:12]}…",
                f"bundle {ours.digest[:12]}…, {ours.manifest.model} split {ours.manifest.split}",
                "copy the trainer's bundle to the device",
                "bundle",
            )
        session = self._sessions.find(hello, peer.owner)
        try:
            session.greet(hello)
        except ProtocolError as error:
            if error.code != "history" or not self._go_back(hello.session, hello.next_step):
                raise
            session = self._sessions.find(hello, peer.owner)
            session.greet(hello)
        session.standing.device = hello.device
        self._sessions.open(session, route)
        by = "" if self.congestion is None else f", sending by {self.congestion}"
        self._say(f"device {hello.device!r} at step {hello.next_step}{by}" + _apart(session.applied, hello))
        return Welcome(
            session=session.id,
            applied=session.applied,
            learned=session.learned,
            oldest=session.oldest(),
            durable=self._durable(session),
            incarnation=self._incarnation,
            transfer=peer.inbox.unfinished[0],
            received_bytes=peer.inbox.unfinished[1],
            trainer=__version__,
        )

    def _step(self, session: ServedSession, message: Step, body: memoryview) -> Reply:
        key = JournalKey(message.step, message.micro_batch)
        if not session.due(key):
            return self._again(session, key, message.transfer, empty=message.replay)
        manifest = self._bundle.manifest
        shape = (message.clusters, message.kept, manifest.dim)
        split = encoded_bytes(shape, message.precision)
        soft = soft_labels(body[split:], message.clusters, manifest.classes, message.images)
        activations = decode(body[:split], shape, message.precision)
        begun = session.begin()
        learned = self._training.learn(activations, soft, message.gradient is not None, begun)
        answer: Body = b""
        if message.gradient is not None and learned.gradient is not None:
            answer = encode(learned.gradient, message.gradient)
        reply = Gradient(
            session=session.id,
            step=message.step,
            micro_batch=message.micro_batch,
            transfer=message.transfer,
            body_bytes=len(answer),
            precision=message.gradient or message.precision,
            loss=learned.loss,
            accuracy=learned.accuracy,
            seconds_cloud=learned.seconds,
            down_mbit_s=self.down_mbit_s,
        )
        session.answered(reply, answer)
        self._due = lambda: self._settle_step(session, begun, message, learned.seconds, len(answer))
        return self._again(session, key, message.transfer, empty=message.replay)

    def _settle_step(
        self, session: ServedSession, begun: StepAccumulator, message: Step, seconds: float, answer_bytes: int
    ) -> None:
        start = time.monotonic()
        if begun.complete:
            self._training.update(begun, session.planned_steps)
        self._log(session)
        session.prune(message.durable)
        begun.seconds += seconds + time.monotonic() - start
        begun.images += message.images
        begun.clusters += message.clusters
        begun.bytes_up += message.body_bytes
        begun.bytes_down += answer_bytes
        if begun.complete:
            self._on_step(
                device=session.standing.device,
                step=message.step,
                head_step=self._training.steps,
                images=begun.images,
                clusters=begun.clusters,
                loss=begun.loss,
                accuracy=begun.accuracy,
                seconds_cloud=begun.seconds,
                body_bytes_up=begun.bytes_up,
                body_bytes_down=begun.bytes_down,
            )

    def _again(
        self, session: ServedSession, key: JournalKey, transfer: int, offset: int = 0, *, empty: bool = False
    ) -> Reply:
        """An answer of the log, from ``offset`` on; ``empty`` for a device that has had the gradient."""
        found = session.answer(key)
        if found is None:
            return Absent(session.id, key.step), b""
        reply, body = found
        if isinstance(reply, Evaluated):
            return reply, body
        body = b"" if empty else body
        if offset and offset >= len(body):
            raise ProtocolError(f"an answer from {offset} on", f"less than {len(body)}", "use one version", "order")
        durable = self._durable(session)
        return msgspec.structs.replace(
            reply, transfer=transfer, offset=offset, body_bytes=len(body), durable=durable
        ), body

    def _evaluate(self, session: ServedSession, message: Evaluate, body: memoryview) -> Reply:
        shape = (message.images, self._limits.tokens, self._limits.dim)
        labels = np.frombuffer(body[-LABEL_BYTES * message.images :], "<i4")
        check_classes(labels, self._limits.classes)
        judged = self._training.judge(decode(body[: -LABEL_BYTES * message.images], shape, message.precision), labels)
        if message.step != session.applied:  # its answer has left the log: a device that came back without its trainer
            self._trouble(f"warning: the head of step {session.applied} judged the evaluation of step {message.step}")
        reply = Evaluated(session.id, message.step, message.part, message.images, *judged)
        session.keep(JournalKey(message.step, part=message.part), reply)
        self._due = lambda: self._log(session)
        return reply, b""

    def _bye(self, session: ServedSession) -> Reply:
        before, session.standing.finished = session.standing.finished, True
        try:
            self._on_bye()
        except OSError:
            session.standing.finished = before
            raise
        self._sessions.close(session)
        if not before:
            self._say(f"device {session.standing.device!r} is done after {session.applied} steps")
        return ByeAck(session.id), b""

    def _durable(self, session: ServedSession) -> int | None:
        return None if self.durable is None else self.durable.get(session.id, 0)

    def _log(self, session: ServedSession) -> None:
        try:
            session.write()
        except OSError as error:
            self._trouble(f"warning: the log of answers cannot be written: {error}")


def outside_session(message: FromDevice) -> ProtocolError:
    """What a peer is told that has not said hello on its connection."""
    return ProtocolError(
        f"a {type(message).__name__} outside a session", "a Hello first", "say hello", "unknown-device"
    )


def _apart(applied: int, hello: Hello) -> str:
    """How far apart the two sides stand, in words."""
    if applied == hello.next_step:
        return ""
    if applied > hello.next_step:
        return f" (applied here: {applied}; it fetches the answers it lacks)"
    return f" (applied here: {applied}; its journal brings this head forward)"
