"""The rank that a new session goes to, by measured load, by key or by name. The same on all ranks.

Every rank computes this for itself from what all ranks have heard, so it is done in whole numbers: the last bits of a
logarithm may differ between two hosts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

Placement = Literal["load", "key", "name"]

_MEMORY_MS = 30_000  # time that a load is averaged over
_WHOLE = 1_000_000  # load of a rank that computes all the time
_ALIKE = 20_000  # loads that differ by less count as equal


class Loads:
    """The part of the time that each rank computes, on average over the last half minute, in millionths.

    Args:
        world: number of ranks.
    """

    def __init__(self, world: int) -> None:
        self._computing = [0] * world

    def worked(self, computed_ms: Sequence[int], elapsed_ms: int) -> None:
        """Count one round.

        Args:
            computed_ms: time that each rank has computed for devices since the round before.
            elapsed_ms: time since the round before, as one of the ranks has measured it.
        """
        elapsed_ms = max(elapsed_ms, *computed_ms, 0)
        self._computing = [
            (load * _MEMORY_MS + _WHOLE * spent_ms) // (_MEMORY_MS + elapsed_ms)
            for load, spent_ms in zip(self._computing, computed_ms, strict=True)
        ]

    def placed(self, rank: int, unfinished: Sequence[int]) -> None:
        """Count a new session as an average one, until its work is measured.

        Args:
            rank: that it goes to.
            unfinished: sessions of each rank that are not finished, without the new one.
        """
        self._computing[rank] += sum(self._computing) // max(1, sum(unfinished))

    def ended(self, rank: int, unfinished: int) -> None:
        """Take off a session that has finished; ``unfinished``: sessions of its rank until then."""
        self._computing[rank] -= self._computing[rank] // max(1, unfinished)

    def least(self, unfinished: Sequence[int], among: Collection[int] | None = None) -> int:
        """The rank with the least load; of those whose loads are alike, the one with the fewest unfinished sessions.

        Args:
            unfinished: sessions of each rank that are not finished.
            among: the ranks to choose from; None: all.
        """
        ranks = range(len(self._computing)) if among is None else among
        lowest = min(self._computing[rank] for rank in ranks)
        alike = [rank for rank in ranks if self._computing[rank] - lowest < _ALIKE]
        return min(alike, key=lambda rank: (unfinished[rank], rank))


def rank_of_text(text: str, world: int, among: Collection[int] | None = None) -> int:
    """The rank that a key or a name belongs to; if the number of ranks changes, few of them change their rank.

    Args:
        text: the key or the name.
        world: number of ranks.
        among: the ranks to choose from; None: all.
    """
    return max(
        range(world) if among is None else among, key=lambda rank: hashlib.sha256(f"{rank}\0{text}".encode()).digest()
    )


def deal_out(
    texts: Mapping[int, str],
    world: int,
    groups: Mapping[int, str],
    place: Placement,
    finished: Collection[int] = (),
) -> dict[int, int]:
    """The rank of each session of a checkpoint, where no table tells them.

    Args:
        texts: of each session the text by which it is placed, as of ``rank_of_text``; not used with ``load``.
        world: number of ranks.
        groups: of each session its key; the sessions of one key stay together. "": the session is alone.
        place: how. With ``load`` every rank gets as many unfinished sessions, since nothing is measured yet.
        finished: sessions that have finished: they make no work, and follow a hash of their number or their key.
    """
    ranks, of_key, counts = dict[int, int](), dict[str, int](), [0] * world
    for session in sorted(texts, key=lambda number: (number in finished, number)):
        key = groups[session]
        if key in of_key:
            rank = of_key[key]
        elif place != "load":
            rank = rank_of_text(texts[session], world)
        elif session in finished:
            rank = rank_of_text(key or f"{session:016x}", world)
        else:
            rank = counts.index(min(counts))
        if key:
            of_key[key] = rank
        ranks[session] = rank
        counts[rank] += session not in finished
    return ranks
