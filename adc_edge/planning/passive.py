"""The passive estimate of a link: rates and round trip from the messages of the steps themselves.

Per direction R = min(max(B, C), 1.1 B). B is the largest delivery rate that the sender's kernel has measured within a
window of steps, C the rate at which the receivers' messages came in after their first piece (the median of the window).
A process that reads late sees too large a C, hence the bound. Where the kernel says that there was too little to send
(app-limited), B tells only that the link is no slower, and the bound is 1.5 B.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from adc_edge.planning.profile import TrainerShare

WINDOW_STEPS, RECENT_STEPS = 8, 3
LATE_MS = 8  # a message whose last byte came earlier was read late; two ticks of the kernel's clock
_ABOVE, _ABOVE_LIMITED = 1.1, 1.5  # how far C may exceed B


class RateSample(NamedTuple):
    """The figures of one direction in one step, in Mbit/s."""

    kernel: float
    app_limited: bool = False
    arrival: float | None = None  # None: the message came in one piece, or nobody has told


class RateEstimate:
    """The rate of one direction."""

    def __init__(self) -> None:
        self._window: deque[RateSample] = deque(maxlen=WINDOW_STEPS)

    @property
    def mbit_s(self) -> float | None:
        """R; None before the first step."""
        return _rate(list(self._window))  # a copy: a screen may ask while a step is added

    @property
    def recent_mbit_s(self) -> float | None:
        """R of the last RECENT_STEPS alone, which a link that became slower does not outlast."""
        return _rate(list(self._window)[-RECENT_STEPS:])

    @property
    def at_least(self) -> bool:
        """Whether the link may be faster: no sender in the window had enough to send."""
        return all(sample.app_limited for sample in list(self._window))

    def add(self, sample: RateSample) -> float | None:
        """Note a step. Return its rate; None if it tells only that the link is no slower than it."""
        before = self.mbit_s
        self._window.append(sample)
        if sample.arrival is not None:
            return min(sample.arrival, _bound(self._window))
        return None if sample.app_limited and before is not None and sample.kernel < before else _most(self._window)


def _rate(samples: Sequence[RateSample]) -> float | None:
    if not samples:
        return None
    arrivals = [sample.arrival for sample in samples if sample.arrival is not None]
    return min(max(_most(samples), median(arrivals) if arrivals else 0.0), _bound(samples))


def _most(samples: Sequence[RateSample]) -> float:
    return max(sample.kernel for sample in samples)


def _bound(samples: Sequence[RateSample]) -> float:
    most = max(samples, key=lambda sample: sample.kernel)
    return (_ABOVE_LIMITED if most.app_limited else _ABOVE) * most.kernel


class LinkEstimate:
    """Both directions of a link, its round trip, and the share of the trainer at its other end."""

    def __init__(self) -> None:
        self.up, self.down = RateEstimate(), RateEstimate()
        self.share: TrainerShare | None = None  # as the last answer told it; None: the trainer works for this device
        self._rtts_ms: deque[float] = deque(maxlen=WINDOW_STEPS)

    @property
    def rtt_min_ms(self) -> float | None:
        """The shortest round trip within the window; None before the first step."""
        return min(self._rtts_ms, default=None)

    def figures(self) -> dict[str, float | None]:
        """Return the recent rates, the round trip and the share, if others have one, for the record."""
        up, down = self.up.recent_mbit_s, self.down.recent_mbit_s
        shared = (
            {}
            if self.share is None
            else {"trainer_share": self.share.share, "trainer_wait_ms": 1e3 * self.share.wait_s}
        )
        return {"up_mbit_s": up, "down_mbit_s": down, "rtt_min_ms": self.rtt_min_ms, **shared}

    def round_trip(self, rtt_ms: float) -> None:
        """Note the shortest round trip that the kernel has seen lately."""
        self._rtts_ms.append(rtt_ms)
