"""The record of a trainer's run: metrics of steps and evaluations, and events."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from adc_edge.cloud_trainer.accumulator import StepAccumulator
from adc_edge.cloud_trainer.fleet.closed_round import ClosedRound
from adc_edge.cloud_trainer.head import Judged
from adc_edge.cloud_trainer.record.class_images import ClassImages
from adc_edge.cloud_trainer.record.evaluations import EvaluatedPart, SessionEvaluations
from adc_edge.cloud_trainer.record.presence import SessionPresence
from adc_edge.cloud_trainer.record.use import UseMeter
from adc_edge.cloud_trainer.registry import Peer, RequestContext
from adc_edge.cloud_trainer.served_session import ServedSession
from adc_edge.storage.events import Averaged, CentralEvaluation, Event, Joined, Rejected
from adc_edge.storage.recorder import cut
from adc_edge.storage.run_dir import RunDir
from adc_edge.wire.fleet_messages import TrunkAverage
from adc_edge.wire.messages import Evaluate, Hello, Step

logger = logging.getLogger(__name__)


class TrainerRecord:
    """Writes the metrics and the events of a trainer.

    Args:
        run_dir: takes them; None: nobody will read them.
        outputs: of the head; 0: not known.
    """

    def __init__(self, run_dir: RunDir | None = None, outputs: int = 0) -> None:
        self._run_dir = run_dir
        self.use, self._evaluations = UseMeter(), SessionEvaluations()
        self.presence = SessionPresence(self._event)
        self.classes = ClassImages(self._event, outputs)

    def step(
        self,
        session: ServedSession,
        message: Step,
        totals: StepAccumulator,
        context: RequestContext | None,
        head_step: int,
    ) -> None:
        """Write the metrics of a step that was just applied; ``message`` is its last one, or none came (context)."""
        self._metric(
            kind="step",
            device=session.record.device,
            session=f"{session.id:016x}",
            step=message.step,
            head_step=head_step,
            images=totals.images,
            clusters=totals.clusters,
            kept=message.kept,
            precision=message.precision,
            gradient_precision=message.gradient,
            micro_batches=totals.micro_batches,
            loss=totals.loss,
            accuracy=totals.accuracy,
            seconds_cloud=totals.seconds,
            body_bytes_up=totals.bytes_up,
            body_bytes_down=totals.bytes_down,
            up_mbit_s=context and context.up_mbit_s,
            down_mbit_s=context and context.down_mbit_s,
            rtt_ms=context and context.rtt_ms,
        )

    def judged(self, session: ServedSession, message: Evaluate, judged: Judged, head_step: int) -> None:
        """Take a part of an evaluation; one that the head of another step has judged is none of this run's."""
        self.use.head += judged.seconds
        if message.step == session.applied:
            part = EvaluatedPart(message.images, judged.correct, judged.loss_sum)
            self._evaluations.add(session.id, message.step, message.part, part, head_step)
        else:
            self._evaluations.drop(session.id)

    def evaluated(self, session: ServedSession) -> None:
        """Write the line of the session's evaluation if there was one; it is over."""
        line = self._evaluations.take(session.id)
        if line is not None:
            self._metric(kind="evaluation", device=session.record.device, **line)

    def evaluated_centrally(self, event: CentralEvaluation) -> None:
        """Write the line and the event of an evaluation on the trainer's own images."""
        values = {
            name: getattr(event, name) for name in ("head_step", "round", "images", "accuracy", "loss", "seconds")
        }
        self._metric(kind="evaluation", source="central", step=event.head_step, **values)
        self._event(event)

    def forget_evaluations(self) -> None:
        """Forget all evaluations, before ``keeps`` learns those that stay: the head goes back."""
        self._evaluations = SessionEvaluations()

    def keeps(self, line: Mapping[str, Any], head_step: int, sessions: Container[str]) -> bool:
        """Return whether a line of the metrics stays when the head goes back to ``head_step``.

        A step after that is done again. An evaluation is not: its device has the answer, and goes on.
        """
        if line.get("kind") in ("average", "trunk"):  # rounds never go back
            return True
        if line.get("kind") == "evaluation" and line.get("session") in sessions:
            self._evaluations.learn(line)
            return True
        return bool(line.get("head_step", 0) <= head_step)

    def evaluated_late(self, line: Mapping[str, Any]) -> None:
        """Write the line of an evaluation that a process before this one could not write, unless it is there."""
        if self._evaluations.learn(line):
            self._metric(**line)

    def joined(self, session: ServedSession, context: RequestContext, hello: Hello) -> None:
        """Record that a device has opened or resumed its session."""
        self._evaluations.resume(session.id, hello.incarnation)
        event = Joined(
            session=f"{session.id:016x}",
            device=session.record.device,
            key=context.key_name or "",
            step=session.applied,
            steps=session.planned_steps,
        )
        self.presence.join(session.id, context.peer.connection, event)

    def averaged(self, closed: ClosedRound, left_out: Sequence[tuple[str, str]], head_step: int) -> None:
        """Record a round of the fleet's trunk; ``left_out`` has devices' names, which may be equal, with reasons."""
        self._metric(
            kind="average",
            round=closed.number,
            head_step=head_step,
            devices=len(closed.sessions),
            images=closed.images,
            bytes_up=closed.bytes_up,
            bytes_down=closed.bytes_down,
            seconds=closed.seconds,
            seconds_waited=closed.waited_s,
            left_out=[device for device, _ in left_out],
        )
        told = [cut(f"{device}: {why}") for device, why in left_out]
        self._event(Averaged(round=closed.number, devices=len(closed.sessions), left_out=told))

    def brought(self, answer: TrunkAverage, device: str, head_step: int, bytes_up: int, bytes_down: int) -> None:
        """Record the sizes of the bodies of an exchange that makes a device's trunk the fleet's."""
        self._metric(
            kind="trunk",
            device=device,
            session=f"{answer.session:016x}",
            step=answer.step,
            head_step=head_step,
            round=answer.round,
            body_bytes_up=bytes_up,
            body_bytes_down=bytes_down,
        )

    def done(self, session: ServedSession) -> None:
        """Record that a session has come to its end."""
        self.presence.finish(session.id, session.applied)

    def forget(self, session: int) -> None:
        """Forget a session that gives way to others."""
        self._evaluations.forget(session)
        self.classes.forget(session)
        self.presence.leave(session)

    def left(self, peer: Peer | None) -> None:
        """Record that nothing can be sent to a peer any more."""
        if peer is not None and peer.session is not None:
            self.presence.leave(peer.session.id)

    def rejected(self, code: str, text: str, peer: Peer | None = None) -> None:
        """Record that a message or a connection was refused."""
        session, device = "", ""
        if peer is not None and peer.session is not None:
            session, device = f"{peer.session.id:016x}", peer.session.record.device
        elif peer is not None and peer.hello is not None and not self.presence.connected(peer.hello.session):
            session, device = f"{peer.hello.session:016x}", peer.hello.device
        self._event(Rejected(code=code, text=cut(text), session=session, device=device))

    def tell_use(self, held_bytes: Callable[[], int], connections: Callable[[], int]) -> None:
        """Record what the trainer uses if it is time to; cheap to call again and again."""
        use = self.use.due(held_bytes, connections)
        if use is not None:
            self._event(use)

    def _event(self, event: Event) -> None:
        if self._run_dir is not None:
            self._run_dir.event(event)

    def _metric(self, **values: Any) -> None:
        if self._run_dir is None:
            return
        known = self._run_dir.trouble
        self._run_dir.metric(**values)
        if self._run_dir.trouble is not None and known is None:
            what, step = values["kind"], values["head_step"]
            logger.warning("no metrics of %s %d: %s; going on", what, step, self._run_dir.trouble)
