"""The seconds of the last batches at one place."""

from __future__ import annotations

import statistics
from collections import defaultdict, deque

_RECENT = 9  # batches of each size


class RecentSeconds:
    """Seconds of the last batches by their numbers of images: what a large one takes tells nothing of a small one."""

    def __init__(self) -> None:
        self._by_images: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_RECENT))

    def add(self, images: int, seconds: float) -> None:
        """Add a batch."""
        self._by_images[images].append(seconds)

    def usual(self, images: int) -> float | None:
        """Return the median of the last batches of this size; None: there was none."""
        found = self._by_images.get(images)
        return statistics.median(found) if found else None

    def is_sure(self, images: int) -> bool:
        """Return whether there were so many batches of this size that one slow one does not change the median much."""
        return len(self._by_images.get(images, ())) == _RECENT

    def clear(self) -> None:
        """Forget all of them."""
        self._by_images.clear()
