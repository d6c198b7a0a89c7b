"""Figures from samples of byte counts and of the kernel's TCP_INFO: steady rates, and causes of retransmissions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

_STEADY = 0.9  # of the median rate in the second half of a stage: there the start of TCP is over
_LEAST_S = 0.02
_INFLATED_MS, _INFLATED_SHARE = 5.0, 0.1  # a round trip that is no longer than this above the shortest meets no queue


class KernelSample(NamedTuple):
    """Counts of a sender's kernel at one instant."""

    sent_bytes: int  # first transmissions
    resent_bytes: int
    rtt_ms: float  # smoothed
    rtt_min_ms: float


class Losses(msgspec.Struct, frozen=True):
    """Retransmitted bytes as shares of the bytes sent; ``share`` = ``random`` + ``queue``."""

    share: float
    random: float  # also lost while the round trip was near its minimum: the path loses packets
    queue: float  # lost only while the round trip was inflated: a queue on the path overflowed


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
    """Return the rates in windows of ``width_s``, and the rate of the steady part. None for less than 20 ms.

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
    length_s = float(at[-1] - at[0]) if len(at) else 0.0
    if length_s < _LEAST_S:
        return None
    width_s = min(width_s, length_s)
    number = int(length_s / width_s + 1e-9)
    edges = at[0] + width_s * np.arange(number + 1)
    sums = np.interp(edges, at, counts)
    windows = np.diff(sums) * 8 / 1e6 / width_s
    span = max(1, number // 5)  # a burst at the start is not the steady rate
    means = np.convolve(windows, np.full(span, 1 / span), "valid")
    first = int(np.argmax(means >= _STEADY * np.median(windows[number // 2 :])))
    # The slope, and not the ends: the kernel counts what follows a lost packet at once when the packet has come.
    steady = np.polyfit(edges[first:] - edges[first], sums[first:], 1)[0] * 8 / 1e6
    if not steady > 0:  # nothing came
        return None
    return Rates(float(edges[first]), float(steady), float(np.percentile(windows[first:], 10)), windows)


def losses(samples: Sequence[KernelSample]) -> Losses | None:
    """Return how many bytes were retransmitted and why; None without samples.

    TCP does not tell why a packet was lost. A path that loses packets at random does so whether or not a queue has
    built up. So the share that was retransmitted in the half of the bytes with the shortest round trips is taken for
    random, and what exceeds it for the queue's. If no round trip was more than 5 ms and a tenth above the shortest,
    there was no queue, and all is random.
    """
    sent = np.diff([sample.sent_bytes for sample in samples])
    again = np.diff([sample.resent_bytes for sample in samples])
    if not sent.sum():
        return None
    excess = np.array([max(0.0, sample.rtt_ms - sample.rtt_min_ms) for sample in samples[1:]])
    share = at_random = float(again.sum() / (sent.sum() + again.sum()))
    if excess.max() > max(_INFLATED_MS, _INFLATED_SHARE * samples[-1].rtt_min_ms):
        order = np.argsort(excess, kind="stable")
        half = order[: int(np.searchsorted(np.cumsum(sent[order]), sent.sum() / 2)) + 1]
        at_random = min(share, float(again[half].sum() / max(sent[half].sum() + again[half].sum(), 1)))
    return Losses(share, at_random, share - at_random)
