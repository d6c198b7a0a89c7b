"""The trainer's socket: one ROUTER, one loop, devices served in the order in which their messages are whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import zmq

from adc_edge import __version__
from adc_edge.bundle import Bundle
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.sessions import Peer, Session, Sessions
from adc_edge.endpoint import tune
from adc_edge.errors import ProtocolError, SettingError
from adc_edge.framing import Assembler, Body, cut
from adc_edge.labels import check_classes, soft_labels
from adc_edge.precision import decode, encode, encoded_bytes
from adc_edge.protocol import (
    LABEL_BYTES,
    Bye,
    ByeAck,
    Chunk,
    Evaluate,
    Evaluated,
    FromDevice,
    Gradient,
    Hello,
    Message,
    Ping,
    Pong,
    Refused,
    Step,
    Welcome,
    unpack_from_device,
)
from adc_edge.tcp import tcp_info

_TICK_MS = 100
_LINGER_MS = 1_000


class Server:
    """Answers devices with one HeadTraining.

    Args:
        bundle: that every device must have.
        training: of the head.
        bind: ``tcp://HOST:PORT``; port ``*`` lets the system choose.
        sessions: with what a checkpoint knew.
        max_images: of one message.
        say: told of devices that come, go, or are refused.
        on_step: called after each optimizer step with the values for metrics.jsonl.

    Raises:
        SettingError: the address cannot be bound.
    """

    def __init__(
        self,
        bundle: Bundle,
        training: HeadTraining,
        bind: str,
        sessions: Sessions,
        *,
        max_images: int = 1024,
        say: Callable[[str], None] = lambda text: None,
        on_step: Callable[..., None] = lambda **values: None,
    ) -> None:
        self._bundle, self._training, self.sessions = bundle, training, sessions
        self._limits = bundle.manifest.limits(max_images)
        self._say, self._on_step = say, on_step
        self.goodbyes = 0
        self._down_mbit_s: float | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        tune(self._socket, bind)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # One answer is in flight for each device, so its size bounds the queue.
        self._socket.setsockopt(zmq.SNDHWM, 0)
        try:
            self._socket.bind(bind)
        except zmq.ZMQError as error:
            self.close()
            raise SettingError(
                f"cannot listen on {bind}: {error.strerror}", "a free address", "choose another"
            ) from None
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def serve(self, stop: Callable[[], bool]) -> None:
        """Answer until ``stop`` says so, which is asked between messages."""
        while not stop():
            if self._socket.poll(_TICK_MS, zmq.POLLIN):
                self._receive()

    def close(self) -> None:
        """Close the socket; what was just sent, a goodbye's answer say, has a moment to leave."""
        self._socket.close(_LINGER_MS)
        self._context.term()

    def _receive(self) -> None:
        frames = self._socket.recv_multipart(copy=False)
        route = frames[0].bytes
        peer = self.sessions.peer(route, lambda: Assembler(unpack_from_device, self._body_bytes))
        try:
            if len(frames) != 3:
                raise ProtocolError(f"{len(frames) - 1} frames", "a header and a piece", "use one version")
            whole = peer.inbox.feed(frames[1].bytes, frames[2].buffer)
            if whole is not None:
                self._note_rate(frames[2])
                self._answer(route, peer, *whole)
        except ProtocolError as error:
            self._refuse(route, peer, error)

    def _body_bytes(self, message: FromDevice) -> int:
        if isinstance(message, Step):
            return self._limits.step_bytes(message)
        if isinstance(message, Evaluate):
            return self._limits.evaluate_bytes(message)
        return message.body_bytes if isinstance(message, Ping) else 0

    def _answer(self, route: bytes, peer: Peer, message: FromDevice, body: memoryview) -> None:
        if isinstance(message, Ping):
            self._send(route, Pong(message.nonce, message.reply_bytes, message.nonce), bytes(message.reply_bytes))
            return
        if isinstance(message, Hello):
            self._hello(route, message)
            return
        session = peer.session
        if isinstance(message, Chunk) or session is None or message.session != session.id:
            raise ProtocolError(
                f"a {type(message).__name__} outside a session", "a Hello first", "say hello", "unknown-device"
            )
        if isinstance(message, Step):
            self._step(session, message, body)
        elif isinstance(message, Evaluate):
            self._evaluate(session, message, body)
        elif isinstance(message, Bye):
            self._bye(session)

    def _hello(self, route: bytes, hello: Hello) -> None:
        ours = self._bundle
        if hello.bundle != ours.digest:
            raise ProtocolError(
                f"bundle {hello.bundle[:12]}…",
                f"bundle {ours.digest[:12]}…, {ours.manifest.model} split {ours.manifest.split}",
                "copy the trainer's bundle to the device",
                "bundle",
            )
        session, warning = self.sessions.open(hello, route)
        self._say(f"device {session.device!r} at step {hello.next_step}" + (f" ({warning})" if warning else ""))
        self._send(route, Welcome(session.id, session.applied, __version__))

    def _step(self, session: Session, message: Step, body: memoryview) -> None:
        if message.micro_batches != 1:
            raise ProtocolError(f"{message.micro_batches} micro-batches", "1", "use one version", "shape")
        if not session.due(message.step):
            assert session.reply is not None
            self._send(session.route, *session.reply)
            return
        manifest = self._bundle.manifest
        shape = (message.clusters, message.kept, manifest.dim)
        split = encoded_bytes(shape, message.precision)
        soft = soft_labels(body[split:], message.clusters, manifest.classes, message.images)
        activations = decode(body[:split], shape, message.precision)
        learned = self._training.learn(activations, soft, message.gradient, session.planned_steps)
        answer = b"" if learned.gradient is None else encode(learned.gradient, message.precision)
        reply = Gradient(
            session=session.id,
            step=message.step,
            micro_batch=message.micro_batch,
            transfer=message.transfer,
            body_bytes=len(answer),
            precision=message.precision,
            loss=learned.loss,
            accuracy=learned.accuracy,
            seconds_cloud=learned.seconds,
            down_mbit_s=self._down_mbit_s,
        )
        session.answered(reply, answer)
        self._send(session.route, reply, answer)
        self._on_step(
            device=session.device,
            step=message.step,
            head_step=self._training.steps,
            images=message.images,
            clusters=message.clusters,
            loss=learned.loss,
            accuracy=learned.accuracy,
            seconds_cloud=learned.seconds,
            body_bytes_up=message.body_bytes,
            body_bytes_down=len(answer),
        )

    def _evaluate(self, session: Session, message: Evaluate, body: memoryview) -> None:
        shape = (message.images, self._limits.tokens, self._limits.dim)
        labels = np.frombuffer(body[-LABEL_BYTES * message.images :], "<i4")
        check_classes(labels, self._limits.classes)
        judged = self._training.judge(decode(body[: -LABEL_BYTES * message.images], shape, message.precision), labels)
        self._send(session.route, Evaluated(session.id, message.step, message.part, message.images, *judged))

    def _bye(self, session: Session) -> None:
        self.sessions.close(session)
        self.goodbyes += 1
        self._send(session.route, ByeAck(session.id))
        self._say(f"device {session.device!r} is done after {session.applied} steps")

    def _refuse(self, route: bytes, peer: Peer, error: ProtocolError) -> None:
        who = repr(peer.session.device) if peer.session else "a peer without a session"
        self._say(f"refused {who} ({error.code}): {error.received}; expected {error.expected}")
        texts = (text[:1024] for text in (error.received, error.expected, error.remedy))
        self._send(route, Refused(error.code, *texts))  # type: ignore[arg-type]

    def _send(self, route: bytes, message: Message, body: Body = b"") -> None:
        try:
            for header, piece in cut(message, body):
                self._socket.send_multipart([route, header, piece], zmq.NOBLOCK)
        except zmq.ZMQError:  # gone; its session keeps the answer for when it is back
            self.sessions.peers.pop(route, None)

    def _note_rate(self, frame: Any) -> None:
        """This connection's sending rate as the kernel sees it; the device cannot see it from its end."""
        live = tcp_info(frame.get(zmq.SRCFD))
        self._down_mbit_s = live.delivery_mbit_s if live else None
