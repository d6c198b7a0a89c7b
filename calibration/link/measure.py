"""Measurement of the link over the trainer's own kind of socket, in stages.

First round trips on an idle link. Then a load up, a load down and both at once, while pings go on beside them. Then
messages of our sizes, one after the other, as a step sends them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timezone
from typing import Any

import numpy as np
from msgspec import UNSET

from adc_edge.calibration.link.load import DownLoad, Load, Prober, UpLoad
from adc_edge.calibration.link.report import LinkMoment, LinkReport, LoadFigures, SizeFigures
from adc_edge.calibration.link.samples import Losses, Rates, window_s
from adc_edge.calibration.link.trace import LoadTrace, idle_figures, load_figures, size_figures
from adc_edge.calibration.link.traffic import Requests, Spent, ask_about, serves_bulk
from adc_edge.errors import LinkError
from adc_edge.wire.channel import Channel
from adc_edge.wire.connection import LinkLost, Stopped
from adc_edge.wire.link_messages import Pong
from adc_edge.wire.tcp import offers_bbr

LEAST_BYTES = 500_000  # below that nothing is measured
SIZES = (20_000, 200_000, 2_000_000)
_SHARES = {"idle": 0.1, "up": 0.15, "down": 0.15, "both": 0.2}  # of the time
_SIZE_SHARES = (0.03, 0.06, 0.11)  # of the time, each size and direction
_BUDGETS = {"up": 0.2, "down": 0.25, "both": 0.33}  # of the bytes that are left
_ROUND_TRIPS = {"up": 20, "down": 20, "both": 40}  # least length of a stage
_AHEAD_ROUND_TRIPS = 12  # of the load down before the load up: two starts at once hold each other up, and take longest
_TICK_S = 0.02
_SETTLE_S = 3.0
_PROBE_MORE_S = 10.0  # pings go on for so long beyond the stages
_SAMPLES = 20  # of each size and direction
_PAUSED = 0.05  # share of the time from which on pauses are told

logger = logging.getLogger(__name__)

Dial = Callable[[Callable[[], bool]], Channel]  # makes an open channel; asked while it waits, True raises Stopped


def measure_link(
    dial: Dial, seconds: float, max_bytes: float = math.inf, stop: Callable[[], bool] = lambda: False
) -> LinkReport:
    """Measure the link to a trainer.

    Args:
        dial: makes an open channel to the trainer, each time another one.
        seconds: about how long to measure; a stage takes at least 20 round trips, both ways 40.
        max_bytes: never exceeded by both directions together.
        stop: asked while waiting; True raises Stopped.

    Raises:
        LinkError: the trainer cannot be reached, or the link broke or stopped answering.
        RefusedError: the trainer refused.
        Stopped: ``stop`` returned True.
    """
    measurement = _Measurement(dial, seconds, max_bytes, stop)
    try:
        return measurement.run()
    except LinkLost as lost:
        raise LinkError(
            f"the link to {measurement.endpoint} broke while it was measured ({lost})", "a link that lasts", "try again"
        ) from None


class _Measurement:
    def __init__(self, dial: Dial, seconds: float, max_bytes: float, stop: Callable[[], bool]) -> None:
        self._open, self._seconds, self._stop = dial, seconds, stop
        self._spent = Spent(max_bytes)
        self._start_s, self._time = time.monotonic(), datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.endpoint = "the trainer"
        self._totals = [0, 0]  # bytes up and down of connections that are closed
        self._paused_s = 0.0
        self._notes: list[str] = []
        self._series: list[LinkMoment] = []
        self._losses: dict[str, Losses | None] = {}
        self._congestion_down: str | None = None

    def run(self) -> LinkReport:
        pong = self._ask()
        bulk = serves_bulk(pong)
        if not bulk:
            self._notes.append(
                f"the trainer ({_version(pong) or '0.7 or older'}) serves no bulk messages: pings of 64 KiB took their "
                "place; it does not tell its retransmissions, and leaves others no share of its time"
            )
        self._requests = Requests(bulk, self._spent)
        with Prober(self._dial, self._requests, self._spent.probe_every_s(self._seconds + _PROBE_MORE_S)) as prober:
            self._prober = prober
            congestion = prober.channel.congestion
            idle_ms = self._idle()
            self._rtt_s = float(np.median(idle_ms)) / 1e3
            loads = {name: self._loaded(name) for name in ("up", "down", "both")}
        self._count(prober.channel, prober.resent_bytes)
        sizes = self._by_size(loads)
        self._tell_limits()
        return LinkReport(
            time=self._time,
            trainer=self.endpoint,
            trainer_version=_version(pong),
            seconds=time.monotonic() - self._start_s,
            bytes=sum(self._totals),
            bytes_up=self._totals[0],
            bytes_down=self._totals[1],
            **idle_figures(idle_ms),
            **load_figures(loads),
            by_size=sizes,
            retransmitted_up=self._losses.get("up"),
            retransmitted_down=self._losses.get("down"),
            congestion=congestion,
            congestion_down=self._congestion_down,
            bbr=offers_bbr(),
            bulk=bulk,
            paused_s=self._paused_s,
            notes=self._notes,
            series=self._series,
            share=prober.share or UNSET,
        )

    def _dial(self, stop: Callable[[], bool]) -> Channel:
        self._spent.take_connection()
        return self._open(lambda: stop() or self._stop())

    def _ask(self) -> Pong:
        channel = self._dial(lambda: False)
        self.endpoint = channel.endpoint
        try:
            return ask_about(channel)
        finally:
            channel.close()
            self._count(channel)

    def _count(self, channel: Channel, resent_bytes: int = 0) -> None:
        sent, received = channel.totals()
        self._totals[0] += sent + resent_bytes
        self._totals[1] += received

    def _idle(self) -> list[float]:
        """Round trips in ms without load."""
        logger.info("measuring round trips")
        start = time.monotonic()
        end = start + _SHARES["idle"] * self._seconds
        while time.monotonic() < end or not self._prober.times:
            self._tick()
        found = self._prober.between(start, math.inf)
        self._add_series("idle", start, time.monotonic(), {})
        return found

    def _tick(self, *loads: Load) -> None:
        time.sleep(_TICK_S)
        if self._stop():
            raise Stopped
        for worker in (self._prober, *loads):
            worker.check()

    def _loaded(self, name: str) -> LoadFigures:
        """Measure rates and round trips under one load."""
        logger.info("measuring the rate %s", "both ways" if name == "both" else name)
        self._spent.begin_stage(_BUDGETS[name])
        length_s = max(_SHARES[name] * self._seconds, _ROUND_TRIPS[name] * self._rtt_s)
        kinds = {"up": (UpLoad,), "down": (DownLoad,), "both": (DownLoad, UpLoad)}[name]
        with ExitStack() as stack:
            loads: list[Load] = []
            for kind in kinds:  # all connect before one sends: BBR takes the shortest round trip it sees for the path's
                loads.append(kind(self._dial, self._requests))
                stack.callback(loads[-1].channel.close)
            stack.enter_context(loads[0])
            for load in loads[1:]:
                self._start(loads[0])
                stack.enter_context(load)
            trace = LoadTrace(loads)
            self._prober.pace(0)
            while trace.length_s < length_s and not all(load.finished for load in loads):
                self._tick(*loads)
                trace.take()
                self._prober.pace(trace.bytes_per_s())
        for load in loads:
            self._count(load.channel, load.resent_bytes)
            self._paused_s += load.paused_s
            self._congestion_down = load.congestion or self._congestion_down
        self._losses |= trace.losses() if name != "both" else {}
        result = self._figures(name, trace)
        self._settle()
        return result

    def _start(self, load: Load) -> None:
        """Let a load come to its rate alone, for a quarter of the stage's bytes at most."""
        left, end_s = self._requests.left_bytes(), time.monotonic() + _AHEAD_ROUND_TRIPS * self._rtt_s
        self._prober.pace(0)
        while time.monotonic() < end_s and self._requests.left_bytes() > 0.75 * left and not load.finished:
            self._tick(load)

    def _figures(self, name: str, trace: LoadTrace) -> LoadFigures:
        width, found = window_s(trace.length_s), trace.rates()
        steady_s = max((r.start_s for r in found.values()), default=trace.start_s)
        self._add_series(name, trace.start_s, trace.end_s, found, width)
        times_ms = self._prober.between(steady_s, trace.end_s)
        figures: dict[str, float] = {}
        for way, rate in found.items():
            figures |= {f"{way}_mbit_s": rate.steady, f"{way}_p10_mbit_s": rate.p10}
        if times_ms:
            figures |= {f"rtt_p{share}_ms": float(np.percentile(times_ms, share)) for share in (50, 95, 99)}
            figures["rpm"] = 60e3 / float(np.mean(times_ms))
        return LoadFigures(trace.length_s, **figures)

    def _settle(self) -> None:
        """Wait until the queues that a load has filled are empty again."""
        start, limit_ms = time.monotonic(), 1.5e3 * self._rtt_s + 10
        while time.monotonic() < start + _SETTLE_S and not self._prober.exhausted:
            recent = self._prober.between(time.monotonic() - 0.1 - self._rtt_s, math.inf)
            if recent and time.monotonic() > start + 0.1 and max(recent) < limit_ms:
                return
            self._tick()

    def _add_series(self, load: str, start: float, end: float, found: dict[str, Rates], width: float = 0.1) -> None:
        for number in range(max(1, int((end - start) / width))):
            at = start + number * width
            trips = self._prober.between(at, at + width)
            ways = (found.get("up"), found.get("down"))
            up, down = (float(w.windows[number]) if w and number < len(w.windows) else None for w in ways)
            middle = float(np.median(trips)) if trips else None
            self._series.append(LinkMoment(at + width / 2 - self._start_s, load, up, down, middle))

    def _by_size(self, loads: dict[str, LoadFigures]) -> list[SizeFigures]:
        logger.info("measuring messages of our sizes")
        expected = {"up": loads["up"].up_mbit_s, "down": loads["down"].down_mbit_s}
        channel, result = self._dial(lambda: False), []
        try:
            for number, size in enumerate(SIZES):
                figures: dict[str, Any] = {}
                for way, rate in expected.items():
                    left = 2 * (len(SIZES) - number) - (way == "down")
                    self._spent.begin_stage(1 / left)
                    slot_s = _SIZE_SHARES[number] * self._seconds
                    figures |= size_figures(way, size, self._messages(channel, size, way, slot_s, rate))
                result.append(SizeFigures(size, **figures))
        finally:
            live = channel.tcp()
            channel.abort()
            self._count(channel, live.resent_bytes if live else 0)
        return result

    def _messages(self, channel: Channel, size: int, way: str, slot_s: float, rate: float | None) -> list[float]:
        """Times in seconds of messages of one size, until their answers were there."""
        expected_s = self._rtt_s + size * 8 / 1e6 / rate if rate else 0.0
        times: list[float] = []
        if expected_s > 2 * slot_s:
            self._notes.append(f"{size} bytes {way} would take {expected_s:.1f} s: not measured; --seconds gives time")
            return times
        end = time.monotonic() + slot_s
        while len(times) < _SAMPLES and (not times or time.monotonic() + expected_s < end):
            start = time.monotonic()
            numbers = self._requests.send(channel, **{way: size})
            if numbers is None:
                break
            pause_s = 0.0
            while numbers:
                answered = self._requests.receive(channel)
                numbers.discard(answered.number)
                pause_s = answered.bulk.pause_s if answered.bulk else 0.0
            times.append(time.monotonic() - start)
            self._paused_s += pause_s
            channel.pause(pause_s)
        return times

    def _tell_limits(self) -> None:
        if self._spent.refused:
            self._notes.append("--max-bytes ended parts early: on a fast link the rates may be too low")
        length_s = time.monotonic() - self._start_s
        if self._paused_s > _PAUSED * length_s:
            self._notes.append(
                f"the trainer is serving others and asked for pauses of {self._paused_s:.1f} s: rates may be too low"
            )


def _version(pong: Pong) -> str | None:
    return None if pong.trainer is UNSET else pong.trainer
