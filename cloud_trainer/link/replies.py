"""Replies and refusals on their way to devices."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import zmq
from msgspec import UNSET

from adc_edge.cloud_trainer.access import Access
from adc_edge.cloud_trainer.answers import AfterSend, Reply
from adc_edge.cloud_trainer.fleet.common_trunk import Due
from adc_edge.cloud_trainer.guard import Guard, Refusals, refusal_message
from adc_edge.cloud_trainer.link.share import TrainerLoad
from adc_edge.cloud_trainer.record.trainer_record import TrainerRecord
from adc_edge.cloud_trainer.registry import Peer, SessionRegistry
from adc_edge.cloud_trainer.scheduling.messages import QueuedMessage
from adc_edge.errors import ProtocolError
from adc_edge.wire.fleet_messages import Paused
from adc_edge.wire.framing import chunk_bytes, to_frames
from adc_edge.wire.headers import pack_header
from adc_edge.wire.tcp import tcp_info

_DISMISSED = ProtocolError(
    "a connection whose session was taken over or ended", "a Hello first", "say hello", "unknown-device"
)

Frames = Iterable[tuple[bytes, memoryview]]

logger = logging.getLogger(__name__)


class Replies:
    """Sends to the peers of a ROUTER.

    Args:
        router: the socket.
        sessions: all sessions and connections.
        guard: counts what is sent.
        refusals: log of refusals.
        record: told of peers that are gone.
        load: tells a device its share of the trainer.
    """

    def __init__(
        self,
        router: zmq.Socket[bytes],
        sessions: SessionRegistry,
        guard: Guard,
        refusals: Refusals,
        record: TrainerRecord,
        load: TrainerLoad,
    ) -> None:
        self._router, self._sessions, self._guard = router, sessions, guard
        self._refusals, self._record, self._load = refusals, record, load

    def deliver(self, asked: Sequence[QueuedMessage], replies: Sequence[Reply], after_send: AfterSend) -> None:
        """Send the replies, then do the work that waits until they are on their way."""
        try:
            for one, (answer, body) in zip(asked, replies, strict=True):
                told = self._load.told(answer, one.peer, one.arrived_s)
                self.send(one.route, one.peer, to_frames(told, body, chunk_bytes(tcp_info(one.peer.fd))))
        finally:
            if after_send is not None:
                self._load.after_sending(after_send)  # also if the answer could not be sent: the step has been learned

    @contextmanager
    def refusing(self, route: bytes, peer: Peer) -> Iterator[None]:
        """Tell the peer if its message is refused within the block."""
        try:
            yield
        except ProtocolError as error:
            self._refuse(route, peer, error)
        except OSError as error:
            why = f"{error.filename or 'the run'}: {error.strerror}"
            self._refuse(route, peer, ProtocolError(why, "room on the trainer's disk", "free some", "busy"))

    def send(self, route: bytes, peer: Peer, frames: Frames) -> None:
        """Send the frames of one message; a peer that is gone is forgotten, and its session keeps the answer."""
        try:
            for header, piece in frames:
                self._router.send_multipart([route, header, piece], zmq.NOBLOCK, copy=False)
                self._guard.sent(peer.fd, len(header) + len(piece))
        except zmq.ZMQError:
            self._record.left(self._sessions.leave(route))

    def send_due(self, due: Iterable[Due]) -> None:
        """Send answers that were held, each to the connection that speaks for its session now."""
        for answer, body in due:
            for route, peer in self._sessions.speakers(answer.session):
                self.send(route, peer, to_frames(answer, body, chunk_bytes(tcp_info(peer.fd))))

    def tell_pause(self, session: int, paused: bool) -> None:
        """Tell the device of a session that a person has paused it, or has it go on."""
        for route, peer in self._sessions.speakers(session):
            if peer.hello is not None and peer.hello.fleet is not UNSET:  # an older one does not know the message
                self.send(route, peer, to_frames(Paused(session, paused)))

    def tell_dismissed(self) -> None:
        """Tell the devices whose session was taken away: they say Hello again, and then learn why."""
        for route, peer in self._sessions.dismissed():
            self.send(route, peer, to_frames(refusal_message(_DISMISSED)))

    def expel(self, access: Access) -> None:
        """Tell the devices whose key has been revoked, and drop their connections."""
        for public, fingerprint in access.revoked():
            gone = {route: peer for route, peer in self._sessions.peers.items() if peer.owner == public}
            devices = {repr(peer.session.record.device) for peer in gone.values() if peer.session}
            connected = ", ".join(devices) or "not connected"
            logger.warning("key %s (%s) may no longer connect", fingerprint, connected)
            for route, peer in gone.items():
                self._record.rejected("key", "its key may no longer connect", peer)
                self.send(route, peer, to_frames(refusal_message(access.refusal(public))))
                self._record.left(self._sessions.leave(route))

    def _refuse(self, route: bytes, peer: Peer, error: ProtocolError) -> None:
        who = repr(peer.session.record.device) if peer.session else "a peer without a session"
        text = f"refused {who} ({error.code}): {error.received}; expected {error.expected}"
        self._refusals.refuse(error.code, text, peer=peer)
        refused = refusal_message(error)
        # Another version cannot check our seal, but it can read the header alone.
        alone = [(pack_header(refused), memoryview(b""))]
        self.send(route, peer, alone if error.code == "version" else to_frames(refused))
        if peer.session is None and self._guard.count_refusal(peer.fd):
            self._sessions.cut_off(route)
