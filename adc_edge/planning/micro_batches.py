"""The number of messages of a step (M) and of those in flight, chosen by the predicted time of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from adc_edge.defaults import MOST_MICRO_BATCHES
from adc_edge.errors import SettingError
from adc_edge.method.ratio import Shape
from adc_edge.planning.schedule import Costs, step_seconds

LEAST_MERGED = 8  # images of a micro-batch in which k-means merges
_XI_CHANGE = 0.02  # of the true ratio, at most
_WORTH = 0.9  # of the time with one message: several must gain at least a tenth
_NEAR = 1.06  # of the shortest time: among these the smallest number, since the prediction is off by as much
_WINDOW_COST = 1.01  # of the time with all in flight, at most


class CutTime(NamedTuple):
    """A way to cut a step into messages, and the predicted time of a step."""

    micro_batches: int
    window: int
    seconds: float


def possible_cuts(images: int, shape_of: Callable[[int], Shape]) -> dict[int, Shape]:
    """Return the shape of a micro-batch for each M that changes little in what is sent, 1 among them.

    M divides the batch, the true ratio stays within 2 %, and where images are merged a micro-batch has at least 8,
    since k-means merges within a micro-batch.

    Args:
        images: B, of a step.
        shape_of: gives the shape of each of M micro-batches; SettingError if there is none.
    """
    whole = shape_of(1)
    found = {1: whole}
    for count in range(2, min(MOST_MICRO_BATCHES, images // 2) + 1):
        if images % count:
            continue
        try:
            part = shape_of(count)
        except SettingError:
            continue
        merged = min(whole.clusters / whole.images, part.clusters / part.images) < 1.0
        if abs(part.xi - whole.xi) <= _XI_CHANGE * whole.xi and (part.images >= LEAST_MERGED or not merged):
            found[count] = part
    return found


def best_cut(
    costs: Mapping[int, Costs], rtt: float, window: int = 0, fits: Callable[[int], bool] = lambda count: True
) -> CutTime:
    """Return the cut with the shortest step: the smallest M within 6 % of it, the first one unless the gain is a tenth.

    Args:
        costs: of a micro-batch, in seconds, by M; usually 1 is among them.
        rtt: round trip of an empty message, in seconds.
        window: most micro-batches in flight; 0: the fewest that lose less than 1 %.
        fits: asked about an M that would be chosen; if it does not fit, neither do larger ones.
    """
    times = {count: _cut_time(each, rtt, count, window) for count, each in costs.items()}
    first = times[min(times)]
    while True:
        shortest = min(time.seconds for time in times.values())
        best = next(times[count] for count in sorted(times) if times[count].seconds <= _NEAR * shortest)
        if best is first or best.seconds > _WORTH * first.seconds:
            return first
        if fits(best.micro_batches):
            return best
        times = {count: time for count, time in times.items() if count < best.micro_batches}


def _cut_time(costs: Costs, rtt: float, count: int, window: int) -> CutTime:
    window = min(window, count) or _needed_window(costs, rtt, count)
    return CutTime(count, window, step_seconds(costs, rtt, count, window))


def _needed_window(costs: Costs, rtt: float, count: int) -> int:
    """Return the fewest micro-batches in flight that suffice, also with a slower trainer and a longer round trip.

    The trainer is taken to need as long as the device, since its time is not known before a run, and the round trip to
    be twice the measured one.
    """
    slow = costs._replace(cloud=max(costs.cloud, costs.forward + costs.recompute + costs.backward))
    cases = [(costs, rtt), (slow, 2 * rtt)]
    free = [step_seconds(*case, count) for case in cases]

    def suffices(window: int) -> bool:
        times = (step_seconds(*case, count, window) for case in cases)
        return all(time <= _WINDOW_COST * best for time, best in zip(times, free, strict=True))

    return next(filter(suffices, range(1, count)), count)
