"""Figures from samples of byte counts and of the kernel's TCP_INFO: steady rates, and causes of retransmissions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

_STEADY = 0.9  # of the median rate in the second half of a stage: there the start of TCP is over
_INFLATED_MS, _INFLATED_SHARE = 5.0, 0.1  # a round trip that is no longer than this above the shortest meets no queue


class KernelSample(NamedTuple):
    """What a sender's kernel has counted by an instant."""

    sent_bytes: int  # first transmissions
    resent_bytes: int
    rtt_ms: float  # smoothed
    rtt_min_ms: float


class Losses(msgspec.Struct, frozen=True):
    """Retransmitted bytes as shares of the bytes sent; ``share`` = ``random`` + ``queue``."""

    share: float
    random: float  # while the round trip was near its minimum: the path loses packets
    queue: float  # while the round trip was inflated: a queue on the path overflowed


class Rates(NamedTuple):
    """The rates of one direction in windows of a stage, Mbit/s."""

    start_s: float  # of the steady part
    steady: float
    p10: float
    windows: NDArray[np.float64]


def window_s(seconds: float) -> float:
    """Return the length of the windows of a stage."""
    return min(max(seconds / 20, 0.05), 0.25)


def rates(times_s: Sequence[float], totals: Sequence[int], width_s: float, ended: bool = False) -> Rates | None:
    """Return the rates in windows of ``width_s``, and the rate of the steady part. None for less than two windows.

    Args:
        times_s: monotonic time of each sample.
        totals: bytes by then.
        width_s: length of a window.
        ended: the load had ended by itself before the last sample: the time without new bytes does not count.
    """
    at, counts = np.asarray(times_s), np.asarray(totals, np.float64)
    if ended and len(counts):
        last = int(np.argmax(counts))
        at, counts = at[: last + 1], counts[: last + 1]
    number = 0 if len(at) < 2 else int((at[-1] - at[0]) / width_s + 1e-9)
    if number < 2:
        return None
    edges = at[0] + width_s * np.arange(number + 1)
    sums = np.interp(edges, at, counts)
    windows = np.diff(sums) * 8 / 1e6 / width_s
    first = int(np.argmax(windows >= _STEADY * np.median(windows[number // 2 :])))
    steady = (sums[-1] - sums[first]) * 8 / 1e6 / (edges[-1] - edges[first])
    return Rates(float(edges[first]), float(steady), float(np.percentile(windows[first:], 10)), windows)


def losses(samples: Sequence[KernelSample]) -> Losses | None:
    """Return how many bytes were retransmitted and why; None without samples.

    A retransmission is the queue's if the smoothed round trip was above its minimum by more than half of the largest
    excess of the stage, and by more than 5 ms and a tenth. Otherwise the loss was random.
    """
    if len(samples) < 2 or samples[-1].sent_bytes == samples[0].sent_bytes:
        return None
    excess = [max(0.0, sample.rtt_ms - sample.rtt_min_ms) for sample in samples]
    limit = max(max(excess) / 2, _INFLATED_MS, _INFLATED_SHARE * samples[-1].rtt_min_ms)
    again = np.diff([sample.resent_bytes for sample in samples])
    inflated = np.maximum(excess[:-1], excess[1:]) > limit
    by_queue, at_random = int(again[inflated].sum()), int(again[~inflated].sum())
    sent = samples[-1].sent_bytes - samples[0].sent_bytes + by_queue + at_random
    return Losses((by_queue + at_random) / sent, at_random / sent, by_queue / sent)
