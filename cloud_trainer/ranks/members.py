"""Members of the rounds: parts of a rank that tell the other ranks bytes, and hear those of all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec


class RankMember(Protocol):
    """Something that has a part on every rank."""

    def tell(self) -> bytes:
        """Return this rank's part in the next round; empty: it has nothing to tell."""
        ...

    def hear(self, told: Sequence[bytes]) -> None:
        """Take the parts of all ranks, by rank: the same on every rank."""
        ...


class RankMembers:
    """All members of one rank, as one.

    Args:
        members: by name; every rank has the same, and they hear in this order.
    """

    def __init__(self, members: Mapping[str, RankMember]) -> None:
        self._members = dict(members)

    def tell(self) -> bytes:
        """Return what the members have to tell; empty: nothing."""
        told = {name: part for name, member in self._members.items() if (part := member.tell())}
        return msgspec.msgpack.encode(told) if told else b""

    def hear(self, told: Sequence[bytes]) -> None:
        """Have each member hear its parts, by rank."""
        parts = [msgspec.msgpack.decode(blob, type=dict[str, bytes]) if blob else {} for blob in told]
        for name, member in self._members.items():
            if any(name in part for part in parts):
                member.hear([part.get(name, b"") for part in parts])
