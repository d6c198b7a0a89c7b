"""Samples of the loads of one stage, and the figures that the report makes of samples and times."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from adc_edge.calibration.link.load import Load
from adc_edge.calibration.link.report import LoadFigures
from adc_edge.calibration.link.samples import Losses, Rates, losses, rates, window_s

_LEAST_S = 0.02  # of a mean rate


class LoadTrace:
    """Samples of the loads of a stage; their time is that of their last sample."""

    def __init__(self, loads: list[Load]) -> None:
        self._loads = loads
        self._times: list[float] = []
        self._totals: list[list[int]] = [[] for _ in loads]
        self.take()

    @property
    def start_s(self) -> float:
        """Monotonic time of the first sample."""
        return self._times[0]

    @property
    def end_s(self) -> float:
        """Monotonic time of the last sample."""
        return self._times[-1]

    @property
    def length_s(self) -> float:
        """Seconds from the first to the last sample."""
        return self.end_s - self.start_s

    def take(self) -> None:
        """Take one sample."""
        self._times.append(time.monotonic())
        for load, totals in zip(self._loads, self._totals, strict=True):
            live = load.channel.tcp()
            totals.append(load.delivered_bytes(live))

    def bytes_per_s(self) -> float:
        """Mean rate of the slower direction so far."""
        return min(totals[-1] - totals[0] for totals in self._totals) / max(self.length_s, _LEAST_S)

    def rates(self) -> dict[str, Rates]:
        """Rates of each direction that was measured."""
        width = window_s(self.length_s)
        found = {
            load.way: rates(self._times, totals, width, load.finished)
            for load, totals in zip(self._loads, self._totals, strict=True)
        }
        return {way: rate for way, rate in found.items() if rate is not None}

    def losses(self) -> dict[str, Losses | None]:
        """Retransmissions of each direction."""
        return {load.way: losses(load.kernel_samples()) for load in self._loads}


def size_figures(way: str, size: int, times: list[float]) -> dict[str, Any]:
    """Return the fields of SizeFigures for one direction, from the seconds that each message took."""
    if not times:
        return {}
    each = [size * 8 / 1e6 / seconds for seconds in times]
    return {
        f"{way}_count": len(times),
        f"{way}_mbit_s": float(np.median(each)),
        f"{way}_p10_mbit_s": float(np.percentile(each, 10)),
        f"{way}_ms": float(np.median(times)) * 1e3,
    }


def idle_figures(times_ms: list[float]) -> dict[str, Any]:
    """Return the fields of LinkReport about round trips without load."""
    p50, p95, p99 = (float(np.percentile(times_ms, share)) for share in (50, 95, 99))
    return {
        "rtt_ms": p50,
        "rtt_min_ms": min(times_ms),
        "rtt_p50_ms": p50,
        "rtt_p95_ms": p95,
        "rtt_p99_ms": p99,
        "jitter_ms": float(np.abs(np.diff(times_ms)).mean()) if len(times_ms) > 1 else 0.0,
        "pings": len(times_ms),
    }


def load_figures(loads: dict[str, LoadFigures]) -> dict[str, Any]:
    """Return the fields of LinkReport about the loads."""
    up, down, both = loads["up"], loads["down"], loads["both"]
    return {
        "up_mbit_s": up.up_mbit_s,
        "up_p10_mbit_s": up.up_p10_mbit_s,
        "down_mbit_s": down.down_mbit_s,
        "down_p10_mbit_s": down.down_p10_mbit_s,
        "both_up_mbit_s": both.up_mbit_s,
        "both_down_mbit_s": both.down_mbit_s,
        "rtt_up_ms": up.rtt_p50_ms,
        "rtt_down_ms": down.rtt_p50_ms,
        "rtt_both_ms": both.rtt_p50_ms,
        "rpm": both.rpm,
        "loads": loads,
    }
