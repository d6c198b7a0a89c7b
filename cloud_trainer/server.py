"""The trainer's socket: one ROUTER and one loop, which answers messages in the order in which they are complete."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import zmq

from adc_edge import __version__
from adc_edge.cloud_trainer.access import Access
from adc_edge.cloud_trainer.answers import Answers
from adc_edge.cloud_trainer.checkpoints import TrainerCheckpoints
from adc_edge.cloud_trainer.classes import HeadClasses
from adc_edge.cloud_trainer.guard import Guard, Refusals
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.limits import MessageLimits
from adc_edge.cloud_trainer.link.probes import LinkProbes
from adc_edge.cloud_trainer.link.share import TrainerLoad
from adc_edge.cloud_trainer.profile.head_speed import HeadSpeed
from adc_edge.cloud_trainer.registry import Peer, RequestContext, SessionRegistry, outside_session
from adc_edge.errors import ProtocolError
from adc_edge.planning.passive import LATE_MS
from adc_edge.storage.bundle import Bundle
from adc_edge.wire.addresses import Address, listening_addresses, listening_error, parse_address
from adc_edge.wire.framing import Assembler, chunk_bytes, to_frames
from adc_edge.wire.headers import check_foreign, pack_header, unpack_from_device
from adc_edge.wire.messages import (
    BULK_BYTES,
    BUNDLE_DIGITS,
    VERSION,
    Bulk,
    ClassNames,
    Evaluate,
    FromDevice,
    FromTrainer,
    Hello,
    Ping,
    Pong,
    Refused,
    Step,
)
from adc_edge.wire.sockets import set_socket_options
from adc_edge.wire.tcp import prefer_bbr, tcp_info

_TICK_MS = 100
_LINGER_MS = 1_000
_TEXT = 300  # characters of each part of a refusal: all three fit into a header in any alphabet

Frames = Iterable[tuple[bytes, memoryview]]

logger = logging.getLogger(__name__)


class Server:
    """Receives the messages of devices, has them answered, and sends the answers.

    Args:
        bundle: the bundle that every device must have.
        training: the head's training.
        bind: ``tcp://HOST:PORT``; port ``*`` lets the system choose.
        sessions: all sessions, as far as the checkpoint knew them.
        checkpoints: checkpoints of the run; None: the run is not kept.
        access: admission by keys; None: everybody who reaches the address is admitted.
        max_images: largest number of images in one message.
        max_held_bytes: largest size of all messages that are being received at once.
        classes: class names of the head; None: the bundle's, and those that devices tell this process.

    Raises:
        SettingError: the address cannot be bound.
        RunError: unauthenticated peers would be admitted.
    """

    def __init__(
        self,
        bundle: Bundle,
        training: HeadTraining,
        bind: str,
        sessions: SessionRegistry,
        checkpoints: TrainerCheckpoints | None = None,
        access: Access | None = None,
        max_images: int = 1024,
        max_held_bytes: int = 2**30,
        classes: HeadClasses | None = None,
    ) -> None:
        self.sessions, self._access = sessions, access
        self._limits, self._max_held_bytes = MessageLimits.from_manifest(bundle.manifest, max_images), max_held_bytes
        checkpoints = checkpoints or TrainerCheckpoints(training, sessions)
        self._record, self._refusals = checkpoints.record, Refusals(checkpoints.record.rejected)
        classes = classes or HeadClasses(bundle.manifest)
        self._answers = Answers(bundle, training, sessions, self._limits, checkpoints, self._refusals, classes)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._head_speed = HeadSpeed(training, bundle.manifest)
        self._about: dict[str, Any] = {"version": VERSION, "trainer": __version__, "bulk_bytes": BULK_BYTES}
        self._about["bundle"] = bundle.digest[:BUNDLE_DIGITS]
        self._probes, self._load = LinkProbes(), TrainerLoad()
        self._speaker: Peer | None = None  # the sender of the message that is being read
        most_bytes, ended = self._limits.largest_bytes(), self._record.presence.end
        self._guard = Guard(self._context, self._socket, self._refusals, most_bytes, ended)
        try:
            self._listen(bind)
        except BaseException:
            self.close()
            raise

    def serve(self, stop: Callable[[], bool]) -> None:
        """Answer messages until ``stop``, which is asked between two of them, returns True."""
        while not stop():
            if self._socket.poll(0, zmq.POLLIN):
                self._receive()
            else:
                self._guard.drained()
                self._socket.poll(_TICK_MS, zmq.POLLIN)
            self._refusals.sweep()
            self._record.tell_use(self.sessions.held_bytes, self._guard.count)
            if self._access is not None:
                self._expel(self._access)

    def close(self) -> None:
        """Close the socket; messages just sent, the last ByeAck for example, have a moment to leave."""
        self._guard.close()
        self._socket.close(_LINGER_MS)
        if self._access is not None:
            self._access.stop()
        self._context.term()

    def _listen(self, bind: str) -> None:
        addresses = listening_addresses(parse_address(bind, listening=True))
        set_socket_options(self._socket, addresses[0].endpoint)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if self._access is not None:
            self._access.secure(self._context, self._socket, self._refusals)
        self.endpoint = self._bind(addresses[0])
        port = parse_address(self.endpoint).port
        for address in addresses[1:]:  # of a name
            self._bind(address._replace(port=port))
        if self._access is not None:
            self._access.self_test(self.endpoint)
        self._guard.log_silent_ends()

    def _bind(self, address: Address) -> str:
        """Listen on a numeric address, and return it with its port."""
        self._socket.setsockopt(zmq.IPV6, int(":" in address.host))
        try:
            self._socket.bind(address.endpoint)
        except zmq.ZMQError as error:
            raise listening_error(address, error.errno or 0, error.strerror) from None
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def _receive(self) -> None:
        route, *frames = self._frames()
        last = frames[-1]
        try:
            fd = last.get(zmq.SRCFD)
        except zmq.ZMQError:  # ZMTP of ten years ago, or random bytes that look like it
            self._refusals.refuse("handshake", "refused a message (handshake): it came in a ZMTP older than 3")
            return
        connection = self._guard.received(fd, sum(map(len, frames)))
        owner = self._access.owner(last) if self._access is not None else ""
        peer = self.sessions.peer(route, fd, owner, self._new_inbox)
        if peer.cut_off:
            return
        peer.connection = connection
        self._load.begin()
        self._take(route, peer, fd, owner, frames)
        self._probes.spent(peer, self._load.end(peer))

    def _take(self, route: bytes, peer: Peer, fd: int, owner: str, frames: list[Any]) -> None:
        """Check the frames of one message, and answer it if it is complete."""
        try:
            if self._access is not None:
                self._access.check(owner)
            if len(frames) != 2:
                raise ProtocolError(
                    f"{len(frames)} frames",
                    "a header and a piece",
                    "install the same version of adc-edge on both sides",
                )
            self._speaker = peer
            whole = peer.inbox.feed(frames[0].bytes, frames[1].buffer)
            if whole is None:
                return
            if self._guard.cut_off_non_reader(fd):
                self.sessions.cut_off(route)
            else:
                self._answer(route, peer, fd, *whole)
        except ProtocolError as error:
            self._refuse(route, peer, fd, error)
        except OSError as error:
            why = f"{error.filename or 'the run'}: {error.strerror}"
            self._refuse(route, peer, fd, ProtocolError(why, "room on the trainer's disk", "free some", "busy"))

    def _frames(self) -> list[Any]:
        """Routing id and frames of one message; frames beyond the third are dropped as they are read."""
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
        elif isinstance(message, ClassNames | Bulk):
            size = message.body_bytes
        else:
            return message.body_bytes if isinstance(message, Ping) else 0
        if isinstance(message, Bulk):
            self._probes.begin(self._speaker)
        elif self._speaker is None or self._speaker.session is None:
            raise outside_session(message)
        most = self._max_held_bytes // (4 if isinstance(message, Bulk) else 1)  # padding leaves room for steps
        if getattr(message, "offset", 0) == 0 and not self.sessions.make_room(size, most):
            raise ProtocolError(
                f"{size} bytes more than can be held now", "fewer messages at once", "try again later", "busy"
            )
        return size

    def _answer(self, route: bytes, peer: Peer, fd: int, message: FromDevice, body: memoryview) -> None:
        live = tcp_info(fd)  # a device cannot see from its end how fast its trainer sends
        if isinstance(message, Ping):
            pong = self._load.told(self._pong(message), peer, live)
            self._send(route, fd, to_frames(pong, bytes(message.reply_bytes)))
            return
        if isinstance(message, Bulk):
            self._send(route, fd, to_frames(*self._probes.answer(message, fd), chunk_bytes(live)))
            return
        congestion = None
        if isinstance(message, Hello):
            if self._guard.count_hello(fd):  # a device needs one for each connection
                self.sessions.cut_off(route)
                return
            peer.hello, congestion = message, prefer_bbr(fd)  # before the first gradient leaves
        name = None if self._access is None else self._access.name(peer.owner)
        down, limited = (live.delivery_mbit_s, live.app_limited) if live else (None, False)
        up = peer.inbox.arrival_mbit_s if live and live.last_received_ms <= LATE_MS else None
        context = RequestContext(route, peer, congestion, down, limited, up, name, live.rtt_ms if live else None)
        (answer, answer_body), after_send = self._answers.answer(context, message, body)
        try:
            self._send(route, fd, to_frames(self._load.told(answer, peer, live), answer_body, chunk_bytes(live)))
        finally:
            if after_send is not None:
                self._load.after_sending(after_send)  # also if the answer could not be sent: the step has been learned

    def _pong(self, ping: Ping) -> Pong:
        told = dict(self._about) if ping.about is True else {}
        if ping.head is True:
            alone = not any(peer.session for peer in self.sessions.peers.values())
            told |= self._head_speed.tell(alone)
        return Pong(ping.nonce, ping.reply_bytes, ping.nonce, **told)

    def _expel(self, access: Access) -> None:
        """Tell the devices whose key has been revoked, and drop their connections."""
        for public, fingerprint in access.revoked():
            gone = {route: peer for route, peer in self.sessions.peers.items() if peer.owner == public}
            devices = {repr(peer.session.record.device) for peer in gone.values() if peer.session}
            connected = ", ".join(devices) or "not connected"
            logger.warning("key %s (%s) may no longer connect", fingerprint, connected)
            for route, peer in gone.items():
                self._record.rejected("key", "its key may no longer connect", peer)
                self._send(route, peer.fd, to_frames(_refusal(access.refusal(public))))
                self._record.left(self.sessions.leave(route))

    def _refuse(self, route: bytes, peer: Peer, fd: int, error: ProtocolError) -> None:
        who = repr(peer.session.record.device) if peer.session else "a peer without a session"
        text = f"refused {who} ({error.code}): {error.received}; expected {error.expected}"
        self._refusals.refuse(error.code, text, peer=peer)
        refused = _refusal(error)
        # Another version cannot check our seal, but it can read the header alone.
        self._send(
            route, fd, [(pack_header(refused), memoryview(b""))] if error.code == "version" else to_frames(refused)
        )
        if peer.session is None and self._guard.count_refusal(fd):
            self.sessions.cut_off(route)

    def _send(self, route: bytes, fd: int, frames: Frames) -> None:
        try:
            for header, piece in frames:
                self._socket.send_multipart([route, header, piece], zmq.NOBLOCK, copy=False)
                self._guard.sent(fd, len(header) + len(piece))
        except zmq.ZMQError:  # the peer has gone; its session keeps the answer
            self._record.left(self.sessions.leave(route))


def _refusal(error: ProtocolError) -> FromTrainer:
    texts = (text[:_TEXT] for text in (error.received, error.expected, error.remedy))
    return Refused(error.code, *texts)  # type: ignore[arg-type]
