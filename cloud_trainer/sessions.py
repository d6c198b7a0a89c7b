"""Who is connected, and what each device's session has had answered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from adc_edge.errors import ProtocolError
from adc_edge.framing import Assembler
from adc_edge.protocol import FromDevice, Gradient, Hello

MAX_PEERS = 1024
MAX_SESSIONS = 256


class Session:
    """One device's training, over as many connections as it takes."""

    def __init__(self, hello: Hello, route: bytes) -> None:
        self.id, self.device, self.planned_steps = hello.session, hello.device, hello.steps
        self.route = route
        self.applied = hello.next_step
        self.reply: tuple[Gradient, bytes] | None = None

    def resume(self, hello: Hello, route: bytes) -> str | None:
        """The same session on a new connection; returns a warning if the two sides do not stand alike.

        A device that lacks just the last answer gets it again. Any other difference means that one side came back
        from an older state; training goes on from the device's.
        """
        self.route, self.planned_steps = route, hello.steps
        if hello.next_step == self.applied or self._answered_last(hello.next_step):
            return None
        warning = f"stood at step {self.applied} here and at {hello.next_step} on the device"
        self.applied, self.reply = hello.next_step, None
        return warning

    def due(self, step: int) -> bool:
        """Whether ``step`` is to be applied (True) or was applied and is to be answered again (False).

        Raises:
            ProtocolError: code ``order``: neither.
        """
        if step == self.applied:
            return True
        if self._answered_last(step):
            return False
        raise ProtocolError(f"step {step}", f"step {self.applied}", "restart `adc-edge serve`; it resumes", "order")

    def answered(self, reply: Gradient, body: bytes) -> None:
        """``reply.step`` has been applied; keep its answer until the next one."""
        self.applied, self.reply = reply.step + 1, (reply, body)

    def _answered_last(self, step: int) -> bool:
        return self.reply is not None and self.reply[0].step == step


class Peer:
    """One connection: the frames that have come, and the session that it speaks for."""

    def __init__(self, inbox: Assembler[FromDevice]) -> None:
        self.inbox = inbox
        self.session: Session | None = None


class Sessions:
    """All sessions and connections, bounded."""

    def __init__(self, applied: dict[int, int] | None = None) -> None:
        self._sessions: OrderedDict[int, Session] = OrderedDict()
        self.peers: OrderedDict[bytes, Peer] = OrderedDict()
        self._before = dict(applied or {})  # from a checkpoint: sessions that have not come back yet

    def peer(self, route: bytes, new_inbox: Callable[[], Assembler[FromDevice]]) -> Peer:
        """The connection behind a routing id; the longest silent one makes room beyond MAX_PEERS."""
        if route not in self.peers:
            self.peers[route] = Peer(new_inbox())
            if len(self.peers) > MAX_PEERS:
                self.peers.popitem(last=False)
        self.peers.move_to_end(route)
        return self.peers[route]

    def open(self, hello: Hello, route: bytes) -> tuple[Session, str | None]:
        """Open or resume the session of a Hello; with a warning if the sides do not stand alike."""
        session = self._sessions.get(hello.session)
        if session is not None:
            old = self.peers.get(session.route)
            if old is not None and session.route != route:
                old.session = None
            warning = session.resume(hello, route)
        else:
            if len(self._sessions) >= MAX_SESSIONS:  # the one heard of longest ago says hello again if it lives
                self.close(next(iter(self._sessions.values())))
            before = self._before.pop(hello.session, hello.next_step)
            session = self._sessions[hello.session] = Session(hello, route)
            stood = f"the checkpoint stood at step {before}, the device at {hello.next_step}"
            warning = None if before == hello.next_step else stood
        self._sessions.move_to_end(session.id)
        self.peers[route].session = session
        return session, warning

    def close(self, session: Session) -> None:
        """A device has said goodbye."""
        self._sessions.pop(session.id, None)
        for peer in self.peers.values():
            if peer.session is session:
                peer.session = None

    def applied(self) -> dict[str, int]:
        """Steps applied by session id, for a checkpoint."""
        known = {**self._before, **{s.id: s.applied for s in self._sessions.values()}}
        return {str(key): value for key, value in known.items()}
