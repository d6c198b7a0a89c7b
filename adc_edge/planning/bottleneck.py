"""The place that a step waits for most (device, link or trainer), and the option that would relieve it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Place = Literal["device", "link", "trainer"]

PHASES: dict[Place, tuple[str, ...]] = {
    "device": ("data", "forward", "encode", "send", "recompute", "decode", "backward"),
    "link": ("link",),
    "trainer": ("cloud", "cloud_codec", "cloud_wait"),
}
_TURNS = 0.75  # of a step: with less, the places mostly wait for one another
_RELIEF = {
    "data": "--workers N decodes with more threads",
    "forward": "a smaller --split of export computes less here",
    "encode": "--precision int8 is quicker to encode",
    "send": "--run on a faster disk: the journal is written to it",
    "recompute": "--engine torch, or auto, computes nothing twice; --freeze-first K trains fewer blocks",
    "decode": "--gradient-precision int8 is quicker to decode",
    "backward": "--freeze-first K trains fewer blocks",
    "link": "a lower --precision or --token-ratio sends less",
    "cloud": "a trainer on a GPU, or a larger --split of export",
    "cloud_codec": "--gradient-precision int8 is quicker to encode",
    "cloud_wait": "another trainer, or a trainer on a GPU: it works for other devices meanwhile",
}
_OVERLAP = "device, link and trainer take turns; --micro-batches 8 lets them work at the same time"


class Busiest(NamedTuple):
    """The place that is busy for the largest ``share`` of a step, and what would relieve it."""

    place: Place
    share: float
    relief: str


def busiest(seconds: Mapping[str, float], step_seconds: float, micro_batches: int = 1) -> Busiest | None:
    """Return the busiest place of a step; None if no time was measured.

    Args:
        seconds: of each phase in PHASES, as `StepRecord` has them.
        step_seconds: of the whole step. With micro-batches the places overlap, and their sum is more.
        micro_batches: M.
    """
    if step_seconds <= 0.0:
        return None
    busy = {place: sum(seconds[phase] for phase in phases) for place, phases in PHASES.items()}
    place = max(busy, key=lambda place: busy[place])
    share = busy[place] / step_seconds
    longest = max(PHASES[place], key=lambda phase: seconds[phase])
    return Busiest(place, share, _OVERLAP if micro_batches == 1 and share < _TURNS else _RELIEF[longest])
