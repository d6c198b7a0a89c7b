"""The connections of a trainer, and the session that each one speaks for."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from adc_edge.cloud_trainer.record.presence import GuardedConnection
from adc_edge.cloud_trainer.scheduling.messages import MessageQueue
from adc_edge.cloud_trainer.served_session import ServedSession, SessionRecord
from adc_edge.cloud_trainer.store.stores import ActivationStores
from adc_edge.errors import ProtocolError
from adc_edge.wire.framing import Assembler
from adc_edge.wire.messages import FromDevice, Hello

MAX_PEERS = 1024
MAX_SESSIONS = 256
MAX_SESSIONS_OF_A_KEY = 16
_MOST_PARTS = 4  # of the bytes of all messages
STALE_S = 10.0  # time without a byte after which a message in progress may be dropped


class Peer:
    """One connection: its proved key, the message that is being received, and the session that it speaks for."""

    def __init__(self, fd: int, owner: str, new_inbox: Callable[[], Assembler[FromDevice]]) -> None:
        self.fd, self.owner, self._new_inbox, self.inbox = fd, owner, new_inbox, new_inbox()
        self.session: ServedSession | None = None
        self.connection: GuardedConnection | None = None  # that its last message came over; None: it has ended
        self.hello: Hello | None = None  # its last one, whether or not it was admitted
        self.cut_off = False
        self.measures = False  # whether it has sent a Bulk

    @property
    def turn(self) -> int:
        """The key of its turns: its session, or without one a number of its own."""
        return -1 - self.fd if self.session is None else self.session.id

    @property
    def connected(self) -> bool:
        """Whether its connection has not ended; one that ends without a word stays known."""
        return self.connection is not None and not self.connection.ended

    def join_session(self, session: ServedSession) -> None:
        """Speak for ``session``; a message that it was receiving goes on over this connection."""
        if self.session is not session:
            self.leave_session()
        self.session, self.inbox = session, session.share_inbox(self.inbox)

    def leave_session(self) -> None:
        """Speak for no session; a message that was being received stays with the session."""
        self.session, self.inbox = None, self._new_inbox()


@dataclass(frozen=True)
class RequestContext:
    """The connection that a message came over."""

    route: bytes
    peer: Peer
    congestion: str | None = None  # congestion control that the kernel uses towards the device
    down_mbit_s: float | None = None  # rate at which the kernel delivers to the device
    down_app_limited: bool = False  # that rate is what there was to send
    up_mbit_s: float | None = None  # rate at which the message came in; None: not known
    key_name: str | None = None  # name of the device's key in the trainer's directory
    rtt_ms: float | None = None  # smoothed

    def shown_name(self, hello: Hello) -> str:
        """The name of a device for people: that of its key, and the one a person gave it; without keys its own."""
        if self.key_name is None:
            return hello.device
        named = hello.named is True and hello.device != self.key_name
        return f"{self.key_name} ({hello.device})" if named else self.key_name


class SessionRegistry:
    """All sessions and connections, in bounded number.

    Args:
        directory: parent of the sessions' log directories.
        one_session: refuse every session after the first, so that a head learns from one alone.
        stores: of sessions that go on without their devices; None: there are none.
    """

    def __init__(self, directory: Path, one_session: bool = False, stores: ActivationStores | None = None) -> None:
        self._directory, self._one_session, self.stores = directory, one_session, stores or ActivationStores()
        self._sessions: OrderedDict[int, ServedSession] = OrderedDict()
        self.peers: OrderedDict[bytes, Peer] = OrderedDict()
        self.waiting = MessageQueue()
        self._dismissed: list[tuple[bytes, Peer]] = []  # connections that have lost their session, and are not told yet
        self.is_spared: Callable[[int], bool] = lambda session: False  # told a number: it must not give way
        self.elsewhere_bytes: Callable[[], int] = lambda: 0  # of bodies that wait for something else than their turn
        self.on_evict: Callable[[int], None] = lambda session: None  # told the number of a session that gives way

    def restore(self, kept: Mapping[int, SessionRecord]) -> None:
        """Take the sessions of a checkpoint; every device must say hello again."""
        for route, peer in self.peers.items():
            self._dismiss(route, peer)
        for session in self:
            self.waiting.withdraw(session.id)
        self._sessions.clear()
        self.stores.delete_others(kept)
        for number, whole in self.stores.whole():
            if number not in kept:  # it began after the checkpoint
                begun = SessionRecord(whole.device, whole.owner, 0, planned=whole.planned)
                self._sessions[number] = self._new(number, begun)
        for number, record in kept.items():
            self._sessions[number] = session = self._new(number, record)
            if record.finished and session.store is not None:  # killed before it was deleted
                session.forget()

    def peer(self, route: bytes, fd: int, owner: str, new_inbox: Callable[[], Assembler[FromDevice]]) -> Peer:
        """The connection with a routing id; beyond MAX_PEERS the one that was silent longest is dropped."""
        if route not in self.peers:
            if len(self.peers) >= MAX_PEERS:
                idle = next((r for r, p in self.peers.items() if p.session is None), next(iter(self.peers)))
                self.peers.pop(idle)
            self.peers[route] = Peer(fd, owner, new_inbox)
        self.peers.move_to_end(route)
        return self.peers[route]

    def find(self, hello: Hello, owner: str) -> ServedSession:
        """The session that a Hello names, a new one if it is unknown.

        Raises:
            ProtocolError: ``identity``: it belongs to another key; ``busy``: there is no room for a new one;
                ``history``: there is another one, and only one is served.
        """
        session = self._sessions.get(hello.session)
        if session is None:
            if self._one_session and self._sessions:
                raise ProtocolError(
                    "a second session, and this trainer serves one alone (--one-session)",
                    "the session that its head began with",
                    "start the trainer with --fresh or another --run, so that this one begins on a new head",
                    "history",
                )
            self._make_room(owner)
            session = self._new(hello.session, SessionRecord(hello.device, owner, 0))
            session.forget()  # a log in its directory belongs to no run that this session continues
        elif session.record.owner != owner:
            raise ProtocolError(
                "a session of another device's key",
                "the key that began the session",
                "use that device's --keys, or start over with --fresh",
                "identity",
            )
        return session

    def has_served(self, session: int) -> bool:
        """Whether there is a session of that number, or its log: a trainer that was killed has lost the session."""
        return session in self._sessions or self._log_of(session).is_dir()

    def open(self, session: ServedSession, route: bytes) -> list[int]:
        """Let ``route`` alone speak for ``session`` from now on; a key speaks for one session at a time.

        Returns:
            The numbers of its key's other sessions, for which nobody speaks any more.
        """
        peer, superseded = self.peers[route], list[int]()
        for way, other in self.peers.items():
            mine = other.session is session or (peer.owner and other.owner == peer.owner)
            if other is not peer and mine and other.session is not None:
                if other.session is not session:
                    other.session.supersede()
                    superseded.append(other.session.id)
                    self._take_back(other.session)
                self._dismiss(way, other)
        if peer.session is not None and peer.session is not session:
            self._take_back(peer.session)
        self._take_back(session)
        peer.join_session(session)
        self._sessions[session.id] = session
        self._sessions.move_to_end(session.id)
        return superseded

    def speakers(self, session: int) -> list[tuple[bytes, Peer]]:
        """The routing id and the connection that speaks for a session; none if its device is away."""
        return [(route, peer) for route, peer in self.peers.items() if peer.session and peer.session.id == session]

    def dismissed(self) -> list[tuple[bytes, Peer]]:
        """Take the connections whose session was taken away since the last call, and which have none since."""
        taken, self._dismissed = self._dismissed, []
        return [(route, peer) for route, peer in taken if peer.session is None]

    def _dismiss(self, route: bytes, peer: Peer) -> None:
        """Let a connection speak for no session; what its device waits for would never come, so it must be told."""
        if peer.session is not None:
            self._dismissed.append((route, peer))
        peer.leave_session()

    def leave(self, route: bytes) -> Peer | None:
        """Forget a connection that has ended, and return it if it was known."""
        peer = self.peers.pop(route, None)
        if peer is not None and peer.session is not None:
            self._take_back(peer.session)
        return peer

    def _take_back(self, session: ServedSession) -> None:
        """Drop the waiting messages of a session: its device sends them again, of the first one only the header."""
        first = self.waiting.withdraw(session.id)
        if first is not None and session.inbox is not None:
            session.inbox.hold(*first)

    def cut_off(self, route: bytes) -> None:
        """Ignore a connection that was cut off; it stays known, since libzmq still delivers what it had queued."""
        peer = self.peers.get(route)
        if peer is None:
            return
        if peer.session is not None:
            self._take_back(peer.session)
        peer.leave_session()
        peer.cut_off = True

    def held_bytes(self) -> int:
        """Size in bytes of all message bodies that are being received, or wait for their answers."""
        received = sum(inbox.held_bytes for inbox in self._inboxes())
        return received + self.waiting.held_bytes() + self.elsewhere_bytes()

    def make_room(self, size: int, most: int, session: ServedSession | None = None) -> bool:
        """Whether a body of ``size`` may be received beside the others, ``most`` bytes in all.

        Bodies that have not grown for STALE_S are dropped: no peer can block the others, and a slow device sends again.
        """
        if session is not None and not self.waiting.has_room(session.id, size, most // self._parts(session)):
            return False
        if self.held_bytes() + size <= most:  # nearly always
            return True
        for inbox in sorted(self._inboxes(), key=lambda inbox: inbox.grown_s):
            if self.held_bytes() + size <= most or time.monotonic() - inbox.grown_s < STALE_S:
                break
            inbox.drop()
        return self.held_bytes() + size <= most

    def _parts(self, session: ServedSession) -> int:
        """The number of parts of the bytes, one of which a session may use: a paused one leaves room for others."""
        connected = {peer.session.id for peer in self.peers.values() if peer.session is not None and peer.connected}
        return _MOST_PARTS if self.waiting.fair.is_paused(session.id) else min(_MOST_PARTS, max(1, len(connected)))

    def _inboxes(self) -> list[Assembler[FromDevice]]:
        found = (inbox for owner in (*self.peers.values(), *self) if (inbox := owner.inbox) is not None)
        return list({id(inbox): inbox for inbox in found}.values())

    def __iter__(self) -> Iterator[ServedSession]:
        return iter(self._sessions.values())

    def records(self) -> dict[int, SessionRecord]:
        """The part of each session that a checkpoint keeps."""
        return {session.id: session.record for session in self}

    def finished(self) -> int:
        """Number of devices that have come to their end."""
        return sum(session.record.finished for session in self)

    def sync(self) -> None:
        """Flush the log of every session that goes on to disk; raises OSError."""
        for session in self:
            if not session.record.finished:
                session.sync()

    def _new(self, number: int, record: SessionRecord) -> ServedSession:
        return ServedSession(number, record, self._log_of(number), self.stores.known(number, record.applied))

    def _log_of(self, session: int) -> Path:
        return self._directory / f"{session:016x}"

    def _make_room(self, owner: str) -> None:
        own = [s for s in self if owner and s.record.owner == owner]
        if len(own) >= MAX_SESSIONS_OF_A_KEY:
            self._evict(next((s for s in own if not self.is_spared(s.id) and not s.goes_on_alone), own[0]))
        if len(self._sessions) >= MAX_SESSIONS:
            done = (s for s in self if s.record.finished or (s.applied == 0 and not s.goes_on_alone))
            idle = next((s for s in done if not self.is_spared(s.id)), None)
            if idle is None:
                raise ProtocolError(
                    f"one more session than {MAX_SESSIONS}",
                    "fewer devices at once",
                    "let some finish, or start another trainer",
                    "busy",
                )
            self._evict(idle)

    def _evict(self, session: ServedSession) -> None:
        self._sessions.pop(session.id)
        self.waiting.withdraw(session.id)
        for route, peer in self.speakers(session.id):
            self._dismiss(route, peer)
        session.forget()
        self.on_evict(session.id)


def outside_session(message: FromDevice) -> ProtocolError:
    """The refusal of a message whose peer has not said hello on its connection."""
    return ProtocolError(
        f"a {type(message).__name__} outside a session", "a Hello first", "say hello", "unknown-device"
    )
