"""The trainer's socket: one ROUTER, one loop, devices served in the order in which their messages are whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import zmq

from adc_edge.cloud_trainer.access import Access
from adc_edge.cloud_trainer.answers import Answers, outside_session
from adc_edge.cloud_trainer.guard import Guard, Refusals
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.limits import MessageLimits
from adc_edge.cloud_trainer.registry import Peer, SessionRegistry
from adc_edge.errors import ProtocolError, SettingError
from adc_edge.storage.bundle import Bundle
from adc_edge.wire.framing import Assembler, chunk_bytes, to_frames
from adc_edge.wire.messages import (
    Evaluate,
    FromDevice,
    FromTrainer,
    Hello,
    Ping,
    Pong,
    Refused,
    Step,
    check_foreign,
    pack_header,
    unpack_from_device,
)
from adc_edge.wire.sockets import set_socket_options
from adc_edge.wire.tcp import prefer_bbr, tcp_info

_TICK_MS = 100
_LINGER_MS = 1_000
_TEXT = 300  # characters of each part of a refusal: all three fit into a header, whatever their alphabet

Frames = Iterable[tuple[bytes, memoryview]]


class Server:
    """Answers devices with one HeadTraining.

    Args:
        bundle: that every device must have.
        training: of the head.
        bind: ``tcp://HOST:PORT``; port ``*`` lets the system choose.
        sessions: with what a checkpoint knew.
        access: whose keys are let in; None: no keys, everybody who reaches the address.
        max_images: of one message.
        max_held_bytes: of all messages that are being received at once.
        say: told of devices that come, go, or are refused.
        on_step: called after each optimizer step with the values for metrics.jsonl.
        on_bye: makes everything durable before a device's goodbye is acknowledged.
        go_back: returns to a checkpoint in which a session stood at most at a step; False if there is none.

    Raises:
        SettingError: the address cannot be bound.
        RunError: strangers would get in.
    """

    def __init__(
        self,
        bundle: Bundle,
        training: HeadTraining,
        bind: str,
        sessions: SessionRegistry,
        *,
        access: Access | None = None,
        max_images: int = 1024,
        max_held_bytes: int = 2**30,
        say: Callable[[str], None] = lambda text: None,
        on_step: Callable[..., None] = lambda **values: None,
        on_bye: Callable[[], None] = lambda: None,
        go_back: Callable[[int, int], bool] = lambda session, step: False,
    ) -> None:
        self.sessions, self._access, self._say = sessions, access, say
        self._limits, self._max_held_bytes = MessageLimits.of(bundle.manifest, max_images), max_held_bytes
        self._refusals = Refusals(say)
        self.answers = Answers(
            bundle,
            training,
            sessions,
            self._limits,
            say=say,
            trouble=lambda text: self._refusals.say("journal", text),
            on_step=on_step,
            on_bye=on_bye,
            go_back=go_back,
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._speaker: Peer | None = None  # whose message is being read
        self._guard = Guard(self._context, self._socket, self._refusals, self._limits.largest_bytes())
        try:
            self._listen(bind)
        except zmq.ZMQError as error:
            self.close()
            raise SettingError(
                f"cannot listen on {bind}: {error.strerror}", "a free address", "choose another"
            ) from None
        except BaseException:
            self.close()
            raise

    def serve(self, stop: Callable[[], bool]) -> None:
        """Answer until ``stop`` says so, which is asked between messages."""
        while not stop():
            if self._socket.poll(0, zmq.POLLIN):
                self._receive()
            else:
                self._guard.drained()
                self._socket.poll(_TICK_MS, zmq.POLLIN)
            self._refusals.sweep()
            if self._access is not None:
                self._expel(self._access)

    def close(self) -> None:
        """Close the socket; what was just sent, a goodbye's answer say, has a moment to leave."""
        self._guard.close()
        self._socket.close(_LINGER_MS)
        if self._access is not None:
            self._access.stop()
        self._context.term()

    def _listen(self, bind: str) -> None:
        set_socket_options(self._socket, bind)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if self._access is not None:
            self._access.secure(self._context, self._socket, self._refusals)
        self._socket.bind(bind)
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        if self._access is not None:
            self._access.self_test(self.endpoint)
        self._guard.tell()

    def _receive(self) -> None:
        route, *frames = self._frames()
        last = frames[-1]
        try:
            fd = last.get(zmq.SRCFD)
        except zmq.ZMQError:  # it speaks a ZMTP of ten years ago, or random bytes that look like it
            self._refusals.say("handshake", "refused a message (handshake): it came in a ZMTP older than 3")
            return
        self._guard.received(fd, sum(map(len, frames)))
        owner = self._access.owner(last) if self._access is not None else ""
        peer = self.sessions.peer(route, fd, owner, self._new_inbox)
        if peer.cut_off:
            return
        try:
            if self._access is not None:
                self._access.check(owner)
            if len(frames) != 2:
                raise ProtocolError(f"{len(frames)} frames", "a header and a piece", "use one version")
            self._speaker = peer
            whole = peer.inbox.feed(frames[0].bytes, last.buffer)
            if whole is None:
                return
            if self._guard.reads(fd):
                self._answer(route, peer, fd, *whole)
            else:
                self.sessions.cut_off(route)
        except ProtocolError as error:
            self._refuse(route, peer, fd, error)
        except OSError as error:
            why = f"{error.filename or 'the run'}: {error.strerror}"
            self._refuse(route, peer, fd, ProtocolError(why, "room on the trainer's disk", "free some", "busy"))

    def _frames(self) -> list[Any]:
        """Routing id and frames of one message; of a long one, what is too much is dropped as it is read."""
        frames: list[Any] = [self._socket.recv()]
        more = True
        while more:
            frame: Any = self._socket.recv(copy=False)
            if len(frames) < 4:
                frames.append(frame)
            more = frame.more
        return frames

    def _new_inbox(self) -> Assembler[FromDevice]:
        return Assembler(unpack_from_device, self._body_bytes, check_foreign)

    def _body_bytes(self, message: FromDevice) -> int:
        if isinstance(message, Step):
            size = self._limits.step_bytes(message)
        elif isinstance(message, Evaluate):
            size = self._limits.evaluate_bytes(message)
        else:
            return message.body_bytes if isinstance(message, Ping) else 0
        if self._speaker is None or self._speaker.session is None:
            raise outside_session(message)
        if message.offset == 0 and not self.sessions.make_room(size, self._max_held_bytes):
            raise ProtocolError(
                f"{size} bytes more than can be held now", "fewer messages at once", "try again later", "busy"
            )
        return size

    def _answer(self, route: bytes, peer: Peer, fd: int, message: FromDevice, body: memoryview) -> None:
        if isinstance(message, Ping):
            pong = Pong(message.nonce, message.reply_bytes, message.nonce)
            self._send(route, fd, to_frames(pong, bytes(message.reply_bytes)))
            return
        if isinstance(message, Hello) and self._guard.hello(fd):  # one for each connection is all a device needs
            self.sessions.cut_off(route)
            return
        if isinstance(message, Hello):
            self.answers.congestion = prefer_bbr(fd)  # gradients have not left yet
        live = tcp_info(fd)  # a device cannot see from its end how fast its trainer sends
        self.answers.down_mbit_s = live.delivery_mbit_s if live else None
        answer, answer_body = self.answers.answer(route, peer, message, body)
        try:
            self._send(route, fd, to_frames(answer, answer_body, chunk_bytes(live)))
        finally:
            self.answers.settle()  # whatever became of the answer, the step has been learned

    def _expel(self, access: Access) -> None:
        """Cut off whose key has been revoked."""
        for public, fingerprint in access.revoked():
            gone = {route: peer for route, peer in self.sessions.peers.items() if peer.owner == public}
            devices = {repr(peer.session.standing.device) for peer in gone.values() if peer.session}
            self._say(f"key {fingerprint} ({', '.join(devices) or 'not connected'}) may no longer connect")
            for route, peer in gone.items():
                self._send(route, peer.fd, to_frames(_refusal(access.refusal(public))))
                self.sessions.leave(route)

    def _refuse(self, route: bytes, peer: Peer, fd: int, error: ProtocolError) -> None:
        who = repr(peer.session.standing.device) if peer.session else "a peer without a session"
        self._refusals.say(error.code, f"refused {who} ({error.code}): {error.received}; expected {error.expected}")
        refused = _refusal(error)
        # Another version cannot read our seal, but it can read the header alone.
        self._send(
            route, fd, [(pack_header(refused), memoryview(b""))] if error.code == "version" else to_frames(refused)
        )
        if peer.session is None and self._guard.strike(fd):
            self.sessions.cut_off(route)

    def _send(self, route: bytes, fd: int, frames: Frames) -> None:
        try:
            for header, piece in frames:
                self._socket.send_multipart([route, header, piece], zmq.NOBLOCK, copy=False)
                self._guard.sent(fd, len(header) + len(piece))
        except zmq.ZMQError:  # gone; its session keeps the answer for when it is back
            self.sessions.leave(route)


def _refusal(error: ProtocolError) -> FromTrainer:
    texts = (text[:_TEXT] for text in (error.received, error.expected, error.remedy))
    return Refused(error.code, *texts)  # type: ignore[arg-type]
