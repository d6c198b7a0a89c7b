"""Fair queueing by time: of all that wait, the next is that of the key with the least used time over its priority.

The mathematics is start-time fair queueing with costs that are known afterwards. Each key has a virtual time: the
seconds that were spent for it, each divided by its priority of then. The clock of the queue is the virtual time of the
key that was served last. A key that begins to wait, or goes on after a pause, starts at the clock at least: time that
it did not ask for is not saved up. So two keys i and j that wait all the while never differ by more than

    |used_i / priority_i - used_j / priority_j| <= cost_i / priority_i + cost_j / priority_j

with the cost of the dearest item of each; how many items they have, and how large these are, changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

_MOST_KNOWN = 4096  # virtual times of keys that wait for nothing

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items by key; those of one key stay in their order."""

    def __init__(self) -> None:
        self._items: dict[int, deque[T]] = {}
        self._used: dict[int, float] = {}  # virtual time
        self._clock = 0.0
        self._priorities: Mapping[int, float] = {}
        self._paused: frozenset[int] = frozenset()

    def push(self, key: int, item: T) -> None:
        """Add an item behind those of its key."""
        if key not in self._items:
            self._items[key] = deque()
            self._start(key)
        self._items[key].append(item)

    def pop_with(self, fits: Callable[[T, T], bool], most: Callable[[T], int]) -> list[T]:
        """Take the item whose turn it is, and the first ones of other keys that fit it, in the order of their turns.

        Args:
            fits: told the item whose turn it is, and another one.
            most: told the item whose turn it is, returns how many are taken at most.
        """
        turns = sorted((key for key in self._items if key not in self._paused), key=self._used.__getitem__)
        if not turns:
            return []
        first = self._items[turns[0]][0]
        self._clock = max(self._clock, self._used[turns[0]])
        more = most(first) - 1
        fitting = [key for key in turns[1:] if more and fits(first, self._items[key][0])]
        return [self._take(key) for key in (turns[0], *fitting[:more])]

    def charge(self, key: int, seconds: float) -> None:
        """Count time that was spent for a key, whether or not for an item."""
        self._used[key] = self._used.get(key, self._clock) + seconds / self.priority(key)
        if len(self._used) > _MOST_KNOWN:
            self._used = {k: used for k, used in self._used.items() if k in self._items or used > self._clock}

    def withdraw(self, key: int) -> list[T]:
        """Take all items of a key, whether or not it is their turn."""
        return list(self._items.pop(key, ()))

    def control(self, priorities: Mapping[int, float], paused: Iterable[int]) -> None:
        """Set the priorities that are not 1, and the keys whose items wait until they are not named here any more."""
        before, self._paused = self._paused, frozenset(paused)
        self._priorities = dict(priorities)
        for key in before - self._paused:
            self._start(key)

    def priority(self, key: int) -> float:
        """Return the priority of a key."""
        return self._priorities.get(key, 1.0)

    def is_paused(self, key: int) -> bool:
        """Return whether the items of a key wait, whosever turn it is."""
        return key in self._paused

    def waiting(self, key: int) -> Iterable[T]:
        """Return the items of a key, in order."""
        return self._items.get(key, ())

    def __iter__(self) -> Iterator[T]:
        for items in self._items.values():
            yield from items

    def _start(self, key: int) -> None:
        self._used[key] = max(self._used.get(key, self._clock), self._clock)

    def _take(self, key: int) -> T:
        items = self._items[key]
        item = items.popleft()
        if items:
            self._items[key] = self._items.pop(key)  # of equal virtual times, the key that waits longest comes first
        else:
            del self._items[key]
        return item
