"""The table of which rank serves which session; all ranks have the same.

It changes only by what the ranks tell in a round. So each session has one rank at most at any time, and before a rank
gives a session up it answers no Hello of it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from adc_edge.cloud_trainer.ranks.devices.placing import Loads, Placement, deal_out, rank_of_text
from adc_edge.cloud_trainer.ranks.devices.rooms import Rooms
from adc_edge.cloud_trainer.scheduling.room import Room, Wanted
from adc_edge.cloud_trainer.served_session import ServedSession, SessionRecord
from adc_edge.errors import SettingError
from adc_edge.security.keystore import fingerprint

MOST_UNOPENED = 256  # sessions of a rank that it was given, and whose device has not come yet
UNOPENED_S = 60.0  # time after which such a session is given up
REFUSED_S = 2.0  # the same, where its device would be refused for want of room that another rank has


class Wish(msgspec.Struct, frozen=True, array_like=True):
    """A session that no rank serves, and whose device has said Hello to the rank that tells this."""

    session: int
    key: str  # public key that the device has proved; empty: there are no keys
    name: str  # of the device, as people see it
    stays: bool  # the device cannot move to another rank
    wanted: Wanted = Wanted()


class _Told(msgspec.Struct, frozen=True, array_like=True):
    """The part of one rank in a round."""

    endpoint: str = ""  # where its devices reach it; told once
    gone: list[int] = []  # sessions of this rank that it gives up
    finished: list[tuple[int, bool]] = []  # sessions of this rank that have finished, or go on after all
    wishes: list[Wish] = []
    room: Room | None = None  # where it has changed


class _Owned(msgspec.Struct):
    rank: int
    key: str
    finished: bool = False
    wanted: Wanted = Wanted()
    bound: bool = False  # no other rank may serve it


class _Kept(msgspec.Struct):
    """The table in a checkpoint."""

    world: int
    ranks: dict[int, int]


class Owners:
    """The table of one rank, and its part in the rounds (a ``Member``).

    Args:
        rank: this one.
        world: number of ranks.
        endpoint: where this rank's devices reach it, ``tcp://HOST:PORT``; empty: ``announce`` tells.
        sessions: the sessions that this rank serves now.
        place: how a rank is chosen for a new session.
        clock: tells seconds.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        endpoint: str,
        sessions: Iterable[ServedSession],
        place: Placement = "load",
        clock: Any = time.monotonic,
    ) -> None:
        self.rank, self.world, self._place = rank, world, place
        self._sessions, self._clock = sessions, clock
        self._table: dict[int, _Owned] = {}
        self._unfinished = [0] * world  # sessions of each rank that are not finished
        self._keys: dict[str, set[int]] = {}  # sessions of each key, all on one rank
        self._loads = Loads(world)
        self.rooms = Rooms(rank, world, clock)
        self._endpoints = [""] * world
        self._untold_endpoint = endpoint
        self._wishes: dict[int, Wish] = {}  # to be told in the next round
        self._giving_up: set[int] = set()  # told in the round under way
        self._opened: set[int] = set()  # sessions of this rank whose device has come
        self._unopened: dict[int, float] = {}  # the others of this rank, and when they were given to it

    def restore(self, kept: object, records: Mapping[int, SessionRecord]) -> None:
        """Take the sessions of a checkpoint. Where it has no table for so many ranks, they are dealt out.

        By the next ``tell`` this rank must serve those of them that ``owner`` gives it, or it gives them up.

        Args:
            kept: the table that ``kept`` returned when the checkpoint was made; None: it has none.
            records: all sessions of the checkpoint.
        """
        ranks = _known_ranks(kept, self.world) if kept is not None else {}
        texts = {number: self._text(record.owner, record.device) for number, record in records.items()}
        groups = {number: record.owner for number, record in records.items()}
        if not records.keys() <= ranks.keys():  # of another number of ranks, or of a trainer without ranks
            finished = {number for number, record in records.items() if record.finished}
            ranks = deal_out(texts, self.world, groups, self._place, finished)
        for number, record in sorted(records.items()):
            self._add(number, _Owned(ranks[number], record.owner, record.finished))
        self._opened = {number for number, owned in self._table.items() if owned.rank == self.rank}

    def kept(self) -> dict[str, Any]:
        """Return the table for a checkpoint, as plain values."""
        ranks = {number: owned.rank for number, owned in self._table.items()}
        return msgspec.to_builtins(_Kept(self.world, ranks), str_keys=True)  # type: ignore[no-any-return]

    def owner(self, session: int) -> int | None:
        """The rank that serves a session; None: no rank does."""
        owned = self._table.get(session)
        return None if owned is None else owned.rank

    def settled(self, session: int) -> bool:
        """Whether ``owner`` holds until a round changes it; False: this rank is giving the session up."""
        return session not in self._giving_up

    def endpoint(self, rank: int) -> str:
        """Where devices reach a rank; empty until the first round."""
        return self._endpoints[rank]

    def announce(self, endpoint: str) -> None:
        """Have the next round tell where this rank's devices reach it, ``tcp://HOST:PORT``."""
        self._untold_endpoint = endpoint

    def wish(self, wish: Wish) -> None:
        """Have the next round give a session to a rank."""
        self._wishes[wish.session] = wish

    def worked(self, computed_ms: Sequence[int], elapsed_ms: int) -> None:
        """Count the work of one round, as ``Loads.worked``; the same numbers on all ranks."""
        self._loads.worked(computed_ms, elapsed_ms)

    def tell(self) -> bytes:
        """This rank's part in the next round; empty: it has nothing to tell."""
        mine = {session.id: session.record.finished for session in self._sessions}
        finished = [(n, over) for n, over in mine.items() if self._differs(n, over)]
        room = self.rooms.to_tell(self._table[number].wanted for number in self._note_opened(mine.keys()))
        gone = self._to_give_up(mine.keys())
        wishes = list(self._wishes.values())
        if not (self._untold_endpoint or finished or gone or wishes or room):
            return b""
        self._giving_up.update(gone)
        return msgspec.msgpack.encode(_Told(self._untold_endpoint, gone, finished, wishes, room))

    def hear(self, told: Sequence[bytes]) -> None:
        """Change the table by what all ranks have told, by rank.

        Raises:
            SettingError: two ranks tell their devices the same address.
        """
        parts = [msgspec.msgpack.decode(part, type=_Told) if part else _Told() for part in told]
        for rank, part in enumerate(parts):
            self._endpoints[rank] = part.endpoint or self._endpoints[rank]
            if part.room:
                self.rooms.hear(rank, part.room)
        self._check_endpoints()
        for rank, part in enumerate(parts):
            for session in part.gone:
                self._give_up(session, rank)
            for session, finished in part.finished:
                self._note_finished(session, rank, finished)
        for rank, part in enumerate(parts):
            for wish in part.wishes:
                self._grant(wish, rank)
        if parts[self.rank].endpoint:
            self._untold_endpoint = ""
        self._giving_up.clear()
        for wish in parts[self.rank].wishes:
            self._wishes.pop(wish.session, None)

    def _differs(self, session: int, finished: bool) -> bool:
        owned = self._table.get(session)
        return owned is not None and owned.rank == self.rank and owned.finished != finished

    def _note_opened(self, open_now: Collection[int]) -> Iterable[int]:
        """Note whose devices have come to this rank, and return its sessions whose devices have not."""
        now = self._clock()
        mine = [number for number, owned in self._table.items() if owned.rank == self.rank]
        self._opened = {number for number in mine if number in open_now or number in self._opened}
        self._unopened = {n: self._unopened.get(n, now) for n in mine if n not in self._opened}
        return self._unopened

    def _to_give_up(self, open_now: Collection[int]) -> list[int]:
        """The sessions of this rank that it has forgotten, or whose devices have not come or are better elsewhere."""
        now = self._clock()
        forgotten = [number for number in self._opened if number not in open_now]
        late = [n for n, since in self._unopened.items() if now - since > self._longest_s(n)]
        many = list(self._unopened)[: max(0, len(self._unopened) - MOST_UNOPENED)]
        return sorted({*forgotten, *late, *many})

    def _longest_s(self, session: int) -> float:
        """Seconds for which a session is kept whose device has not come: few if only another rank would admit it."""
        owned = self._table[session]
        return REFUSED_S if not owned.bound and self.rooms.only_elsewhere(owned.wanted) else UNOPENED_S

    def _give_up(self, session: int, rank: int) -> None:
        owned = self._table.get(session)
        if owned is None or owned.rank != rank:
            return
        self._note_finished(session, rank, True)
        del self._table[session]
        self._keys.get(owned.key, set()).discard(session)
        if owned.key and not self._keys[owned.key]:
            del self._keys[owned.key]
        self._opened.discard(session)
        self._unopened.pop(session, None)

    def _note_finished(self, session: int, rank: int, finished: bool) -> None:
        owned = self._table.get(session)
        if owned is None or owned.rank != rank or owned.finished == finished:
            return
        if finished:
            self._loads.ended(rank, self._unfinished[rank])
        else:
            self._loads.placed(rank, self._unfinished)
        self._unfinished[rank] += -1 if finished else 1
        owned.finished = finished

    def _grant(self, wish: Wish, asked: int) -> None:
        """Give a session to a rank, unless one has it: the lowest rank's wish has come first."""
        if wish.session in self._table:
            return
        rank = asked if wish.stays else self._choose(wish)
        if others := self._keys.get(wish.key):  # one key speaks for one session at a time, which one rank must see
            rank = self._table[next(iter(others))].rank
        self._loads.placed(rank, self._unfinished)
        self.rooms.give(rank, wish.wanted)
        self._add(wish.session, _Owned(rank, wish.key, False, wish.wanted, wish.stays or bool(others)))

    def _add(self, session: int, owned: _Owned) -> None:
        self._table[session] = owned
        self._unfinished[owned.rank] += not owned.finished
        if owned.key:
            self._keys.setdefault(owned.key, set()).add(session)

    def _choose(self, wish: Wish) -> int:
        among = self.rooms.fitting(wish.wanted)
        if self._place == "load":
            return self._loads.least(self._unfinished, among)
        return rank_of_text(self._text(wish.key, wish.name), self.world, among)

    def _text(self, key: str, name: str) -> str:
        """The text by which a session is placed, with key or name; without keys only names are there."""
        return fingerprint(key.encode()) if key and self._place == "key" else name

    def _check_endpoints(self) -> None:
        told = [endpoint for endpoint in self._endpoints if endpoint]
        if twice := next((endpoint for endpoint in told if told.count(endpoint) > 1), None):
            raise SettingError(
                f"two ranks whose devices are told {twice}",
                "an address of its own for each rank",
                "use --advertise tcp://HOST:PORT with another host on each machine",
            )


def _known_ranks(kept: object, world: int) -> dict[int, int]:
    """The table of a checkpoint; empty if it is of another number of ranks, or no table."""
    try:
        table = msgspec.convert(kept, _Kept, strict=False)
    except msgspec.ValidationError:
        return {}
    fits = table.world == world and all(0 <= rank < world for rank in table.ranks.values())
    return table.ranks if fits else {}
