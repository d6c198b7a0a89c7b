"""Real trainers v the simulation, at points that nothing was fitted to: other numbers of devices, and another head."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
from scale_runs import HEADS, Point, stand
from scale_values import quantile
from scale_work import Work, head_bytes, simulated

CHECKED = {  # by devices: seconds of a turn, and turns
    "light": {8: (8.0, 3), 32: (10.0, 2), 64: (12.0, 2)},
    "heavier": {8: (10.0, 3), 32: (16.0, 2), 64: (20.0, 2)},
}
BOUND = 0.10
SEEDS = 40


class Agreement(msgspec.Struct, frozen=True):
    """A real run and the simulated one: steps a second, and seconds of a step."""

    head: str
    devices: int
    steps: int  # that the latencies are of
    alone_ms: float
    stretch: float  # seconds v processor seconds of the work alone
    rate: tuple[float, float]  # real, simulated
    p50: tuple[float, float]
    p99: tuple[float, float]
    cpu: tuple[float, float]  # processor seconds of the trainer for a step: other work on the machine changes it little

    def ratios(self) -> list[float]:
        """Simulated v real: steps a second, median, 99th percentile."""
        return [ours / real for real, ours in (self.rate, self.p50, self.p99)]

    def holds(self) -> int:
        """Number of the three that are within the bound."""
        return sum(abs(ratio - 1) <= BOUND for ratio in self.ratios())


def agreement(head: str, point: Point, work: Work, size: int) -> Agreement:
    """Simulate a point with the work alone that was measured beside it."""
    runs = [simulated(work, point.alone, point.devices, size, point.turn_s, seed) for seed in range(SEEDS)]
    latencies = [latency for run in runs for latency in run.latencies()]
    rate = sum(run.rate() for run in runs) / len(runs)
    both = [(quantile(point.latencies, share), quantile(latencies, share)) for share in (0.5, 0.99)]
    steps, alone = len(point.latencies), point.alone
    cpu = point.cpu, alone.mean / alone.stretch + work.loop + work.after
    return Agreement(
        head, point.devices, steps, 1e3 * alone.mean, alone.stretch, (point.rate, rate), both[0], both[1], cpu
    )


def check(head: str, work: Work) -> Iterator[Agreement]:
    """Run the trainer at the points of a head, and simulate each."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / head
        with stand(place, HEADS[head]) as measure:
            size = head_bytes(place / "recording" / "bundle")
            for devices, (seconds, turns) in CHECKED[head].items():
                yield agreement(head, measure(devices, seconds, turns), work, size)
