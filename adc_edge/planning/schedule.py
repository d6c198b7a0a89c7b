"""Predicted time of a step, in which device, link and cloud work at the same time on several micro-batches."""

from __future__ import annotations

from typing import NamedTuple


class Costs(NamedTuple):
    """Seconds of one micro-batch in each place."""

    forward: float  # on the device, until it can be sent
    recompute: float  # on the device, with autograd; 0 where the forward serves
    backward: float
    up: float  # its bytes over the link's rate
    cloud: float
    down: float
    wait: float = 0.0  # for the trainer's other devices, of a message that finds none of its own device before it
    share: float = 1.0  # of the trainer's time that is this device's while its messages queue there


def step_seconds(costs: Costs, rtt: float, micro_batches: int = 1, window: int = 0) -> float:
    """Predict the time of a step, as ``DeviceLoop.step`` runs it.

    Args:
        costs: of each of its micro-batches.
        rtt: round trip of an empty message, in seconds.
        micro_batches: M.
        window: micro-batches in flight at most; 0: all.

    Returns:
        Seconds from the first forward to the end of the last backward.
    """
    device = up = down = 0.0  # when each is free again
    others = costs.cloud * (1 / costs.share - 1)  # what other devices take while one micro-batch is computed
    cloud = -others
    recomputed = 0
    arrivals: list[float] = []
    window = min(window or micro_batches, micro_batches)
    for number in range(micro_batches + window):
        if number >= window:  # all that are in flight, then the oldest's gradient
            device += (len(arrivals) - recomputed) * costs.recompute
            recomputed = len(arrivals)
            device = max(device, arrivals[number - window]) + costs.backward
        if number < micro_batches:
            device += costs.forward
            up = max(device, up) + costs.up
            cloud = max(up + rtt / 2 + costs.wait, cloud + others) + costs.cloud
            down = max(cloud, down) + costs.down
            arrivals.append(down + rtt / 2)
    return device
