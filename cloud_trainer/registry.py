"""Who is connected, and which session each connection speaks for."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from adc_edge.cloud_trainer.served_session import ServedSession, SessionRecord
from adc_edge.errors import ProtocolError
from adc_edge.wire.framing import Assembler
from adc_edge.wire.messages import FromDevice, Hello

MAX_PEERS = 1024
MAX_SESSIONS = 256
MAX_SESSIONS_OF_A_KEY = 16
STALE_S = 10.0  # without a byte of a message in progress


class Peer:
    """One connection: the frames that have come, whose key it proved, and the session that it speaks for."""

    def __init__(self, fd: int, owner: str, new_inbox: Callable[[], Assembler[FromDevice]]) -> None:
        self.fd, self.owner, self._new_inbox, self.inbox = fd, owner, new_inbox, new_inbox()
        self.session: ServedSession | None = None
        self.cut_off = False

    def leave_session(self) -> None:
        """Speak for nobody; what has been received stays with the session."""
        self.session, self.inbox = None, self._new_inbox()


class SessionRegistry:
    """All sessions and connections, bounded.

    Args:
        directory: of the logs, one directory a session.
        kept: what the checkpoint knew.
    """

    def __init__(self, directory: Path, kept: Mapping[int, SessionRecord] | None = None) -> None:
        self._directory = directory
        self._sessions: OrderedDict[int, ServedSession] = OrderedDict()
        self.peers: OrderedDict[bytes, Peer] = OrderedDict()
        self.restore(kept or {})

    def restore(self, kept: Mapping[int, SessionRecord]) -> None:
        """Stand where a checkpoint stood; every device must say hello again."""
        for peer in self.peers.values():
            peer.leave_session()
        self._sessions.clear()
        for number, standing in kept.items():
            self._sessions[number] = self._new(number, standing)

    def peer(self, route: bytes, fd: int, owner: str, new_inbox: Callable[[], Assembler[FromDevice]]) -> Peer:
        """The connection behind a routing id; the longest silent one makes room beyond MAX_PEERS."""
        if route not in self.peers:
            if len(self.peers) >= MAX_PEERS:
                idle = next((r for r, p in self.peers.items() if p.session is None), next(iter(self.peers)))
                self.peers.pop(idle)
            self.peers[route] = Peer(fd, owner, new_inbox)
        self.peers.move_to_end(route)
        return self.peers[route]

    def find(self, hello: Hello, owner: str) -> ServedSession:
        """The session of a Hello, a new one if need be.

        Raises:
            ProtocolError: ``identity``: it belongs to another key; ``busy``: no room for another.
        """
        session = self._sessions.get(hello.session)
        if session is None:
            self._make_room(owner)
            session = self._new(hello.session, SessionRecord(hello.device, owner, 0))
            session.forget()  # whatever lies there is of no run that this one continues
        elif session.standing.owner != owner:
            raise ProtocolError(
                "a session of another device's key",
                "the key that began the session",
                "use that device's --keys, or start over with --fresh",
                "identity",
            )
        return session

    def open(self, session: ServedSession, route: bytes) -> None:
        """``route`` speaks for ``session`` from now on, and it alone; a key speaks for one session at a time."""
        peer = self.peers[route]
        for other in self.peers.values():
            mine = other.session is session or (peer.owner and other.owner == peer.owner)
            if other is not peer and mine and other.session is not None:
                if other.session is not session:
                    other.session.supersede()
                other.leave_session()
        if peer.session is not session:
            peer.leave_session()
        peer.session = session
        peer.inbox = session.inbox = session.inbox or peer.inbox
        session.route = route
        self._sessions[session.id] = session
        self._sessions.move_to_end(session.id)

    def close(self, session: ServedSession) -> None:
        """A device has said goodbye, and that is durable."""
        session.forget()
        session.inbox = None

    def leave(self, route: bytes) -> None:
        """A connection has ended."""
        self.peers.pop(route, None)

    def cut_off(self, route: bytes) -> None:
        """A connection was cut off; it stays known, for libzmq still delivers what it had queued."""
        if route in self.peers:
            self.peers[route].leave_session()
            self.peers[route].cut_off = True

    def held_bytes(self) -> int:
        """Size of all bodies that are being received."""
        return sum(inbox.held_bytes for inbox in self._inboxes())

    def make_room(self, size: int, most: int) -> bool:
        """Whether a body of ``size`` may be received beside the others, ``most`` bytes in all.

        Those that have not grown for STALE_S give way: nobody can hold the others up, and a slow device sends again.
        """
        for inbox in sorted(self._inboxes(), key=lambda inbox: inbox.grown_s):
            if self.held_bytes() + size <= most or time.monotonic() - inbox.grown_s < STALE_S:
                break
            inbox.drop()
        return self.held_bytes() + size <= most

    def _inboxes(self) -> list[Assembler[FromDevice]]:
        found = (inbox for owner in (*self.peers.values(), *self) if (inbox := owner.inbox) is not None)
        return list({id(inbox): inbox for inbox in found}.values())

    def __iter__(self) -> Iterator[ServedSession]:
        return iter(self._sessions.values())

    def standings(self) -> dict[int, SessionRecord]:
        """What a checkpoint keeps, by session."""
        return {session.id: session.standing for session in self}

    def finished(self) -> int:
        """How many devices have come to their end."""
        return sum(session.standing.finished for session in self)

    def sync(self) -> None:
        """Make every log survive a power cut; raises OSError."""
        for session in self:
            if not session.standing.finished and session.route is not None:
                session.log.sync()

    def _new(self, number: int, standing: SessionRecord) -> ServedSession:
        return ServedSession(number, standing, self._directory / f"{number:016x}")

    def _make_room(self, owner: str) -> None:
        own = [s for s in self if owner and s.standing.owner == owner]
        if len(own) >= MAX_SESSIONS_OF_A_KEY:
            self._evict(own[0])
        if len(self._sessions) >= MAX_SESSIONS:
            idle = next((s for s in self if s.standing.finished or s.applied == 0), None)
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
        for peer in self.peers.values():
            if peer.session is session:
                peer.leave_session()
        session.forget()
