"""The number of training images that each device has of each class, as far as the devices tell it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from adc_edge.data.classes import show_name
from adc_edge.storage.events import Event, ToldClasses

_LISTED = 100  # classes of an event
_MOST_CHARACTERS = 64  # of a name in an event

logger = logging.getLogger(__name__)


class ClassImages:
    """Keeps the counts of each session, and tells of them once: a device tells each process of a trainer again.

    Args:
        tell: takes the events.
        outputs: of the head; 0: not known.
    """

    def __init__(self, tell: Callable[[Event], None], outputs: int = 0) -> None:
        self._tell, self._outputs = tell, outputs
        self.of_session: dict[int, dict[str, int]] = {}  # classes with images, the one with the most first

    def take(self, session: int, device: str, images: Mapping[str, int] | None) -> None:
        """Take the counts of a session; None: the device tells none."""
        if images is None:
            return
        found = dict(sorted(((n, c) for n, c in images.items() if c), key=lambda pair: -pair[1]))
        if self.of_session.get(session) == found:
            return
        self.of_session[session] = found
        listed = {name[:_MOST_CHARACTERS]: count for name, count in list(found.items())[:_LISTED]}
        rest = sum(found.values()) - sum(listed.values())
        self._tell(
            ToldClasses(
                session=f"{session:016x}", device=device, images=listed, classes=len(found), of=self._outputs, rest=rest
            )
        )
        logger.info("classes of device %r: %s", device, imbalance(found, self._outputs))

    def forget(self, session: int) -> None:
        """Forget a session."""
        self.of_session.pop(session, None)


def imbalance(images: Mapping[str, int], outputs: int) -> str:
    """Return how unequal classes are, in words: ``8 of 10 classes; largest 5,000 x smallest (cat 5,000, dog 1)``."""
    of = f" of {outputs}" if outputs else ""
    if not images:
        return f"training images of 0{of} classes"
    large, small = max(images, key=lambda name: images[name]), min(images, key=lambda name: images[name])
    ratio = images[large] / images[small]
    text = f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"
    counts = f"{show_name(large)} {images[large]:,}, {show_name(small)} {images[small]:,}"
    return f"{len(images):,}{of} classes; largest {text} x smallest ({counts})"
