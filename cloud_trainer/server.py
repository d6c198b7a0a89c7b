"""The trainer's socket: one ROUTER and one loop, which takes pieces of messages, and answers one message in between.

Whole messages wait in `scheduling/messages.py` for their turn; those that open a session or measure the link do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import zmq

from adc_edge.cloud_trainer.access import Access
from adc_edge.cloud_trainer.answers import Answers, Request
from adc_edge.cloud_trainer.checkpoints import TrainerCheckpoints
from adc_edge.cloud_trainer.classes import HeadClasses
from adc_edge.cloud_trainer.fleet.device_fleet import DeviceFleet
from adc_edge.cloud_trainer.fleet.settings import FleetSettings
from adc_edge.cloud_trainer.guard import Guard, Refusals
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.inference.answers import Inference
from adc_edge.cloud_trainer.limits import MessageLimits
from adc_edge.cloud_trainer.link.arriving import ArrivingBodies
from adc_edge.cloud_trainer.link.context import request_context
from adc_edge.cloud_trainer.link.listening import listen, received_frames
from adc_edge.cloud_trainer.link.pongs import Pongs
from adc_edge.cloud_trainer.link.probes import LinkProbes
from adc_edge.cloud_trainer.link.replies import Replies
from adc_edge.cloud_trainer.link.share import TrainerLoad
from adc_edge.cloud_trainer.registry import Peer, RequestContext, SessionRegistry, outside_session
from adc_edge.cloud_trainer.scheduling.admission import Admission
from adc_edge.cloud_trainer.scheduling.merged import Merging, is_whole_step
from adc_edge.cloud_trainer.scheduling.messages import QueuedMessage
from adc_edge.cloud_trainer.scheduling.orders import FleetOrders
from adc_edge.cloud_trainer.scheduling.steps import StepAnswers
from adc_edge.defaults import MergePasses
from adc_edge.errors import ProtocolError
from adc_edge.planning.passive import LATE_MS
from adc_edge.storage.bundle import Bundle
from adc_edge.wire.fleet_messages import TrunkDelta
from adc_edge.wire.framing import Assembler, chunk_bytes, to_frames
from adc_edge.wire.headers import check_foreign, unpack_from_device
from adc_edge.wire.link_messages import Bulk, Ping
from adc_edge.wire.messages import ClassNames, FromDevice, Hello
from adc_edge.wire.tcp import TcpInfo, prefer_bbr, tcp_info

_TICK_MS = 100
_LINGER_MS = 1_000
_READ_S = 0.02  # for so long pieces are taken before the next message is answered


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
        fleet: how the devices' trunks become one; None: each keeps its own.
        merge_passes: how waiting steps of several devices go through the head together.
        max_devices: connected sessions beyond which a new one has to wait; 0: no such limit.
        steps: makes what learns the steps.

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
        fleet: DeviceFleet | None = None,
        merge_passes: MergePasses = "off",
        max_devices: int = 0,
        steps: Callable[..., StepAnswers] = StepAnswers,
    ) -> None:
        self.sessions, self._access = sessions, access
        limits = MessageLimits.from_manifest(bundle.manifest, max_images)
        self._checkpoints = checkpoints = checkpoints or TrainerCheckpoints(training, sessions)
        self._record, self._refusals = checkpoints.record, Refusals(checkpoints.record.rejected)
        self._fleet = fleet or DeviceFleet(FleetSettings(), bundle, sessions, self._record)
        self._fleet.is_paused = sessions.waiting.fair.is_paused
        merging = Merging(merge_passes, max_images * bundle.manifest.tokens)
        sessions.waiting.merges, sessions.waiting.most_merged = merging.fits, merging.most
        self._probes, self._load = LinkProbes(), TrainerLoad()
        self._arriving = ArrivingBodies(limits, self._fleet, sessions, self._probes, max_held_bytes)
        change_bytes = self._fleet.change_bytes()
        admission = Admission(sessions, self._record.presence, self._load, max_devices, max_held_bytes, change_bytes)
        self._answers = Answers(
            bundle,
            training,
            sessions,
            limits=limits,
            checkpoints=checkpoints,
            refusals=self._refusals,
            classes=classes or HeadClasses(bundle.manifest),
            fleet=self._fleet,
            merging=merging,
            admission=admission,
            steps=steps,
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._pongs = Pongs(bundle, training, sessions)
        self._load.priority = sessions.waiting.fair.priority
        self.between: Callable[[bool], bool] = lambda busy: False  # work between messages: whether there is more
        most_bytes = max(limits.largest_bytes(), self._fleet.largest_bytes())
        ended = self._record.presence.end
        self._guard = Guard(self._context, self._socket, self._refusals, most_bytes, ended)
        self._replies = Replies(self._socket, sessions, self._guard, self._refusals, self._record, self._load)
        self._orders = FleetOrders(checkpoints.path, sessions, self._load, self._replies.tell_pause)
        try:
            self.endpoint = listen(self._context, self._socket, bind, access, self._refusals)
            self._guard.log_silent_ends()
        except BaseException:
            self.close()
            raise

    @property
    def inference(self) -> Inference:
        """The answers to requests for inference; ``--serve-only`` sets those of a head."""
        return self._arriving.inference

    @inference.setter
    def inference(self, answers: Inference) -> None:
        self._arriving.inference = answers

    def serve(self, stop: Callable[[], bool]) -> None:
        """Answer messages until ``stop``, which is asked between two of them, returns True."""
        while not stop():
            self._read()
            self._replies.send_due(self._fleet.due())
            taken = self.sessions.waiting.pop()
            if taken:
                self._answer_waiting(taken)
            more = self.between(bool(taken))
            if not taken:
                self._socket.poll(0 if more else _TICK_MS, zmq.POLLIN)
            self._look_after()

    def _look_after(self) -> None:
        """Follow a person's orders, and do what is due by the clock; cheap to call again and again."""
        self._orders.follow()
        self._refusals.sweep()
        self._record.tell_use(self.sessions.held_bytes, self._guard.count)
        if self._access is not None:
            self._replies.expel(self._access)

    def _read(self) -> None:
        """Take the pieces that have come."""
        until_s = time.monotonic() + _READ_S
        while self._socket.poll(0, zmq.POLLIN):
            self._receive()
            if time.monotonic() > until_s:
                return
        self._guard.drained()

    def close(self) -> None:
        """Close the socket; messages just sent, the last ByeAck for example, have a moment to leave."""
        self._guard.close()
        self._socket.close(_LINGER_MS)
        if self._access is not None:
            self._access.stop()
        self._context.term()

    def _receive(self) -> None:
        route, *frames = received_frames(self._socket)
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
        with self._replies.refusing(route, peer):
            self._take(route, peer, owner, frames)
        self._replies.tell_dismissed()
        self._count((peer,), self._load.end(peer, answered=False))

    def _take(self, route: bytes, peer: Peer, owner: str, frames: list[Any]) -> None:
        """Check the frames of one message; if it is complete, answer it or let it wait for its turn."""
        if self._access is not None:
            self._access.check(owner)
        if len(frames) != 2:
            raise ProtocolError(
                f"{len(frames)} frames", "a header and a piece", "install the same version of adc-edge on both sides"
            )
        self._arriving.speaker = peer
        whole = peer.inbox.feed(frames[0].bytes, frames[1].buffer)
        if whole is None:
            return
        if self._guard.cut_off_non_reader(peer.fd):
            self.sessions.cut_off(route)
            return
        live = tcp_info(peer.fd)
        up = peer.inbox.arrival_mbit_s if live and live.last_received_ms <= LATE_MS else None
        queued = QueuedMessage(route, peer, *whole, self._load.arrival_s(live), up)
        if isinstance(queued.message, Hello | ClassNames | Ping | Bulk):
            self._answer_at_once(queued, live)
        else:
            self.sessions.waiting.push(queued)

    def _count(self, peers: Iterable[Peer], seconds: float) -> None:
        """Count time that the loop took for each of the peers."""
        for peer in peers:
            self._probes.spent(peer, seconds)
            self.sessions.waiting.fair.charge(peer.turn, seconds)

    def _new_inbox(self) -> Assembler[FromDevice]:
        return Assembler(unpack_from_device, self._arriving.body_bytes, check_foreign)

    def _answer_at_once(self, asked: QueuedMessage, live: TcpInfo | None) -> None:
        """Answer a message that opens a session or measures the link; a device waits for it for a limited time."""
        route, peer, message = asked.route, asked.peer, asked.message
        if isinstance(message, Ping):
            pong = self._load.told(self._pongs.answer(message, self.inference.about), peer, asked.arrived_s)
            self._replies.send(route, peer, to_frames(pong, bytes(message.reply_bytes)))
        elif isinstance(message, Bulk):
            self._replies.send(route, peer, to_frames(*self._probes.answer(message, peer.fd), chunk_bytes(live)))
        elif not isinstance(message, Hello):
            self._answer(asked, (self._context_of(asked), message, asked.body))
        elif self._guard.count_hello(peer.fd):  # a device needs one for each connection
            self.sessions.cut_off(route)
        else:
            peer.hello = message
            self._answer_hello(asked)

    def _answer_hello(self, asked: QueuedMessage) -> None:
        congestion = prefer_bbr(asked.peer.fd)  # before the first gradient leaves
        reply, after_send = self._answers.answer(self._context_of(asked, congestion), asked.message, asked.body)
        self._replies.deliver([asked], [reply], after_send)

    def _answer_waiting(self, taken: list[QueuedMessage]) -> None:
        """Answer the message whose turn it is, with those that are learned with it."""
        self._load.begin()
        checkpoints_s = self._checkpoints.due_seconds
        requests: list[Request] = [(self._context_of(one), one.message, one.body) for one in taken]
        together = self._answers.answer_together(requests) if len(taken) > 1 else None
        peers = [one.peer for one in taken]
        if together is not None:
            self._replies.deliver(taken, *together)
        elif len(taken) == 1:
            with self._replies.refusing(taken[0].route, taken[0].peer):
                self._answer(taken[0], requests[0])
        else:
            self._answer_each(taken, self._load.end(*peers, answered=False) * len(peers))
            return
        checkpoints_s = self._checkpoints.due_seconds - checkpoints_s  # all sessions have these, whosever step it was
        self._count(peers, self._load.end(*peers) - checkpoints_s / len(peers))

    def _answer_each(self, taken: list[QueuedMessage], vain_s: float) -> None:
        """Answer messages alone that could not be learned together; those that are refused pay for the attempt."""
        for one in taken:
            self._answer_waiting([one])
        faulty = [one.peer for one in taken if is_whole_step(one)] or [one.peer for one in taken]
        self._count(faulty, vain_s / len(faulty))

    def _answer(self, asked: QueuedMessage, request: Request) -> None:
        if asked.peer.cut_off:
            return
        if (alone := self.inference.answer(asked.message, asked.body)) is not None:
            self._replies.deliver([asked], [alone], None)
            return
        if self.sessions.peers.get(asked.route) is not asked.peer:
            raise outside_session(asked.message)
        if isinstance(asked.message, TrunkDelta):
            self._fleet.take(asked.peer, asked.message, asked.body)  # answered by `due`, perhaps much later
            return
        reply, after_send = self._answers.answer(*request)
        self._replies.deliver([asked], [reply], after_send)

    def _context_of(self, asked: QueuedMessage, congestion: str | None = None) -> RequestContext:
        return request_context(asked, congestion, self._access)
