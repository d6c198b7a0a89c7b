"""Whole messages that wait for their answers, by session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adc_edge.cloud_trainer.scheduling.queue import FairQueue
from adc_edge.errors import ProtocolError
from adc_edge.wire.fleet_messages import TrunkDelta
from adc_edge.wire.messages import Evaluate, FromDevice, Step

if TYPE_CHECKING:
    from adc_edge.cloud_trainer.registry import Peer

MOST_WAITING = 256  # messages of one session; a device has two for each micro-batch in flight at most


@dataclass(frozen=True, eq=False)
class QueuedMessage:
    """One whole message, and what was known when its last piece came."""

    route: bytes
    peer: Peer
    message: FromDevice
    body: memoryview
    arrived_s: float | None = None  # monotonic time, by the kernel; None: not known
    up_mbit_s: float | None = None  # rate at which it came in; None: not known

    @property
    def key(self) -> int:
        """The session whose turn it takes; a connection without one takes turns of its own."""
        return self.peer.turn


class MessageQueue:
    """The messages of all sessions; whose turn it is, `queue.py` tells."""

    def __init__(self) -> None:
        self.fair: FairQueue[QueuedMessage] = FairQueue()
        self.most_merged: Callable[[QueuedMessage], int] = lambda first: 1
        self.merges: Callable[[QueuedMessage, QueuedMessage], bool] = lambda first, other: False

    def push(self, queued: QueuedMessage) -> None:
        """Add a message behind those of its session; raises ProtocolError (``busy``) if these are MOST_WAITING."""
        if len(list(self.fair.waiting(queued.key))) >= MOST_WAITING:
            raise ProtocolError(f"more than {MOST_WAITING} messages", "fewer at once", "wait for the answers", "busy")
        self.fair.push(queued.key, queued)

    def pop(self) -> list[QueuedMessage]:
        """Take the message whose turn it is, with those of other sessions that are learned with it; or nothing."""
        return self.fair.pop_with(self.merges, self.most_merged)

    @property
    def has_turn(self) -> bool:
        """Whether ``pop`` would take a message."""
        return any(not self.fair.is_paused(queued.key) for queued in self.fair)

    def held_bytes(self) -> int:
        """Return the size in bytes of all bodies."""
        return sum(len(queued.body) for queued in self.fair)

    def has_room(self, session: int, size: int, most: int) -> bool:
        """Return whether a body of ``size`` bytes fits beside those of its session, ``most`` bytes together."""
        held = sum(len(queued.body) for queued in self.fair.waiting(session))
        return not held or held + size <= most

    def withdraw(self, session: int) -> tuple[FromDevice, memoryview] | None:
        """Drop the messages of a session, whose device sends them again; return the first of those with a body."""
        bodies = [
            q for q in self.fair.withdraw(session) if q.body and isinstance(q.message, Step | Evaluate | TrunkDelta)
        ]
        return (bodies[0].message, bodies[0].body) if bodies else None
