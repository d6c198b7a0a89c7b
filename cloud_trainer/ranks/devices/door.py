"""The Hellos that reach a rank: a session is opened here or elsewhere, or a round has to decide where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from adc_edge.cloud_trainer.ranks.devices.owners import Owners, Wish
from adc_edge.cloud_trainer.registry import RequestContext
from adc_edge.cloud_trainer.scheduling.messages import QueuedMessage
from adc_edge.cloud_trainer.scheduling.room import Wanted
from adc_edge.errors import ProtocolError
from adc_edge.wire.messages import Hello, Moved


class Door:
    """The Hellos of one rank.

    Args:
        owners: the table of this rank.
        key_name: the name that the trainer's directory gives a key; None without keys.
    """

    def __init__(self, owners: Owners, key_name: Callable[[str], str | None] = lambda owner: None) -> None:
        self._owners, self._key_name = owners, key_name
        self._waiting: dict[bytes, QueuedMessage] = {}  # one of each connection

    def hello(self, asked: QueuedMessage) -> Literal["here", "wait"] | Moved:
        """Decide about a Hello.

        Returns:
            "here": its session is to be opened now, before another round; "wait": ``decided`` gives it back;
            or the answer to it.

        Raises:
            ProtocolError: ``version``: another rank serves the session, and the device is too old to move.
        """
        hello = _hello(asked)
        self._waiting.pop(asked.route, None)
        owner = self._decided_owner(hello.session)
        if owner is None:
            self._wait(asked, hello)
            return "wait"
        if owner == self._owners.rank:
            return "here"
        return _elsewhere(hello, self._owners.endpoint(owner))

    def decided(self) -> list[QueuedMessage]:
        """Take the Hellos that need not wait any more, after a round; ``hello`` tells what becomes of each.

        Those whose connection has ended are dropped.
        """
        taken, self._waiting = list(self._waiting.values()), {}
        decided = list[QueuedMessage]()
        for asked in taken:
            hello = _hello(asked)
            if not asked.peer.connected or asked.peer.cut_off:
                continue
            if self._decided_owner(hello.session) is None:
                self._wait(asked, hello)
            else:
                decided.append(asked)
        return decided

    def speaks_for(self, session: int) -> bool:
        """Return whether this rank tells of a session: it serves the session, or no rank does and this is rank 0."""
        owner = self._owners.owner(session)
        return self._owners.rank == (0 if owner is None else owner)

    def _decided_owner(self, session: int) -> int | None:
        """The rank of a session; None: only a round can tell, or the first one has to tell that rank's address."""
        owner = self._owners.owner(session)
        if owner is None or not self._owners.settled(session):
            return None
        return owner if owner == self._owners.rank or self._owners.endpoint(owner) else None

    def _wait(self, asked: QueuedMessage, hello: Hello) -> None:
        self._waiting[asked.route] = asked
        if self._owners.owner(hello.session) is None:
            key = asked.peer.owner
            name = RequestContext(asked.route, asked.peer, key_name=self._key_name(key)).shown_name(hello)
            self._owners.wish(Wish(hello.session, key, name, hello.moves is not True, Wanted.by(hello)))


def _hello(asked: QueuedMessage) -> Hello:
    assert isinstance(asked.message, Hello)
    return asked.message


def _elsewhere(hello: Hello, endpoint: str) -> Moved:
    if hello.moves is True:
        return Moved(hello.session, endpoint)
    raise ProtocolError(
        f"a device that cannot move to {endpoint}, where its session is served",
        "adc-edge 0.12 or later on the device, which moves by itself",
        f"upgrade the device, or start it with --trainer {endpoint}",
        "version",
    )
