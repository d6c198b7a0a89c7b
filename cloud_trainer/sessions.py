"""Who is connected, how far each device's training has come here, and the log of what it was answered."""

from __future__ import annotations

import shutil
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from adc_edge.errors import ProtocolError
from adc_edge.framing import Assembler, Body
from adc_edge.journal import Journal, Key
from adc_edge.protocol import Evaluated, FromDevice, Gradient, Hello, pack, unpack_from_trainer

MAX_PEERS = 1024
MAX_SESSIONS = 256
MAX_SESSIONS_OF_A_KEY = 16
STALE_S = 10.0  # without a byte of a message in progress
_LIVES = 16

Reply = tuple[Gradient | Evaluated, Body]


class Standing(msgspec.Struct):
    """What a checkpoint keeps of a session."""

    device: str
    owner: str  # public key, or "" without keys
    applied: int
    finished: bool = False


class Session:
    """One device's training, over as many connections and lives as it takes.

    Args:
        number: the session's id.
        standing: what is known of it.
        directory: of its log, which is opened when a device first speaks for it.
    """

    def __init__(self, number: int, standing: Standing, directory: Path) -> None:
        self.id, self.standing, self._directory = number, standing, directory
        self.planned_steps = 0
        self.route: bytes | None = None
        self.inbox: Assembler[FromDevice] | None = None
        self._log: Journal | None = None
        self._newest: tuple[Key, Reply] | None = None  # also in memory: a full disk must not lose it
        self._lives: deque[int] = deque(maxlen=_LIVES)  # of the device's process, the one that speaks last

    @property
    def applied(self) -> int:
        """Steps applied."""
        return self.standing.applied

    @property
    def log(self) -> Journal:
        """Answers that the device may still ask for."""
        if self._log is None:
            self._log = Journal(self._directory)
            self._log.forget(self.applied)  # of a life whose steps did not reach the checkpoint
        return self._log

    def greet(self, hello: Hello) -> None:
        """Take a Hello.

        Raises:
            ProtocolError: ``superseded``: a newer process has spoken for the session; ``history``: the device is older
                than the log reaches back.
        """
        if hello.life in self._lives and hello.life != self._lives[-1]:
            raise ProtocolError(
                "a Hello of an older process",
                "one process for each session",
                "another `adc-edge serve` has taken this run over; stop one of the two",
                "superseded",
            )
        if hello.next_step < self.applied and self.oldest() > hello.next_step:
            raise ProtocolError(
                f"a device at step {hello.next_step}",
                f"step {self.oldest()} or later: the log of answers does not reach further back",
                "restore the device's newer checkpoint, or start both sides over with --fresh",
                "history",
            )
        if hello.life not in self._lives:
            self._lives.append(hello.life)
        self.planned_steps = hello.steps
        self.prune(hello.durable)

    def supersede(self) -> None:
        """The process that spoke for this session no longer may."""
        self._lives.append(-1)

    def oldest(self) -> int:
        """The first step from which on every answer is here."""
        in_memory = self._newest is not None and self._newest[0] == Key(self.applied - 1)
        return self.log.oldest(self.applied - in_memory)

    def due(self, step: int) -> bool:
        """Whether ``step`` is to be applied (True) or was applied and is to be answered again (False).

        Raises:
            ProtocolError: code ``order``: neither.
        """
        if step == self.applied:
            return True
        if self.answer(Key(step)) is not None:
            return False
        raise ProtocolError(f"step {step}", f"step {self.applied}", "restart `adc-edge serve`; it resumes", "order")

    def answered(self, reply: Gradient, body: Body) -> None:
        """``reply.step`` has been applied; keep its answer."""
        self.standing.applied = reply.step + 1
        self.standing.finished = False
        self.keep(Key(reply.step), reply, body)

    def keep(self, key: Key, reply: Gradient | Evaluated, body: Body = b"") -> None:
        """Keep an answer, in memory until ``write``."""
        self._newest = key, (reply, body)

    def write(self) -> None:
        """Put the newest answer in the log; raises OSError."""
        if self._newest is not None:
            key, (reply, body) = self._newest
            self.log.append(key, pack(reply), body)

    def answer(self, key: Key) -> Reply | None:
        """The answer that was given; None if it is not here (any more)."""
        if self._newest is not None and self._newest[0] == key:
            return self._newest[1]
        kept = self.log.read(key)
        if kept is None:
            return None
        message = unpack_from_trainer(kept[0])
        return (message, kept[1]) if isinstance(message, Gradient | Evaluated) else None

    def prune(self, durable: int) -> None:
        """The device will never come back older than ``durable``."""
        self.log.prune(min(durable, self.applied))

    def forget(self) -> None:
        """Drop the log for good."""
        self._log = self._newest = None
        shutil.rmtree(self._directory, ignore_errors=True)


class Peer:
    """One connection: the frames that have come, whose key it proved, and the session that it speaks for."""

    def __init__(self, fd: int, owner: str, new_inbox: Callable[[], Assembler[FromDevice]]) -> None:
        self.fd, self.owner, self._new_inbox, self.inbox = fd, owner, new_inbox, new_inbox()
        self.session: Session | None = None

    def leave_session(self) -> None:
        """Speak for nobody; what has been received stays with the session."""
        self.session, self.inbox = None, self._new_inbox()


class Sessions:
    """All sessions and connections, bounded.

    Args:
        directory: of the logs, one directory a session.
        kept: what the checkpoint knew.
    """

    def __init__(self, directory: Path, kept: Mapping[int, Standing] | None = None) -> None:
        self._directory = directory
        self._sessions: OrderedDict[int, Session] = OrderedDict()
        self.peers: OrderedDict[bytes, Peer] = OrderedDict()
        self.restore(kept or {})

    def restore(self, kept: Mapping[int, Standing]) -> None:
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

    def find(self, hello: Hello, owner: str) -> Session:
        """The session of a Hello, a new one if need be.

        Raises:
            ProtocolError: ``identity``: it belongs to another key; ``busy``: no room for another.
        """
        session = self._sessions.get(hello.session)
        if session is None:
            self._make_room(owner)
            session = self._new(hello.session, Standing(hello.device, owner, 0))
            session.forget()  # whatever lies there is of no run that this one continues
        elif session.standing.owner != owner:
            raise ProtocolError(
                "a session of another device's key",
                "the key that began the session",
                "use that device's --keys, or start over with --fresh",
                "identity",
            )
        return session

    def open(self, session: Session, route: bytes) -> None:
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

    def close(self, session: Session) -> None:
        """A device has said goodbye, and that is durable."""
        session.forget()
        session.inbox = None

    def leave(self, route: bytes) -> None:
        """A connection has ended."""
        self.peers.pop(route, None)

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

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def standings(self) -> dict[int, Standing]:
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

    def _new(self, number: int, standing: Standing) -> Session:
        return Session(number, standing, self._directory / f"{number:016x}")

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

    def _evict(self, session: Session) -> None:
        self._sessions.pop(session.id)
        for peer in self.peers.values():
            if peer.session is session:
                peer.leave_session()
        session.forget()
