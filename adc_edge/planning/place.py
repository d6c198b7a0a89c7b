"""The place where images are judged: trunk here and head on the trainer (split), or the whole model here (local).

There is no third place, a JPEG judged by the trainer alone: a trainer has no trunk when it serves, and images stay on
the device. That is what split inference is for.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from adc_edge.planning.schedule import Costs, step_seconds

InferPlace = Literal["split", "local"]
_GAIN = 1.1  # another place must be so many times faster, or a few milliseconds of noise would move images about


class SplitCosts(NamedTuple):
    """Measured seconds of a batch that is judged by trunk and head."""

    trunk: float  # with ADC and the encoding
    head: float  # on the trainer
    rtt: float  # of an empty message
    up: float  # its bytes over the link's rate
    down: float

    @property
    def seconds(self) -> float:
        """Seconds of the batch: the model of a step with one message, in which nothing is trained."""
        return step_seconds(Costs(self.trunk, 0.0, 0.0, self.up, self.head, self.down), self.rtt)

    def __str__(self) -> str:
        """Return the parts in words."""
        link = self.rtt + self.up + self.down
        return f"{1e3 * self.trunk:.1f} ms trunk, {1e3 * link:.1f} ms link, {1e3 * self.head:.1f} ms head"


class PlaceChoice(NamedTuple):
    """A place, and why it is chosen."""

    place: InferPlace
    reason: str


def choose_place(split: SplitCosts | None, local_s: float | None) -> PlaceChoice:
    """Return the faster place by the model of a step.

    Args:
        split: None: there is no trainer, or no link to it at the moment.
        local_s: seconds of the same batch by the whole model here; None: there is no such model.
    """
    if local_s is None:
        assert split is not None, "one of the two is there"
        return PlaceChoice("split", f"no whole model is here; {1e3 * split.seconds:.1f} ms ({split})")
    here = f"{1e3 * local_s:.1f} ms local"
    if split is None:
        return PlaceChoice("local", f"{here}; no trainer")
    away = f"{1e3 * split.seconds:.1f} ms split ({split})"
    if pays(split.seconds, local_s):
        return PlaceChoice("split", f"{away}, {here}")
    return PlaceChoice("local", f"{here}, {away}")


def pays(candidate_s: float, present_s: float) -> bool:
    """Return whether a place is so much faster than the present one that it pays to change."""
    return candidate_s * _GAIN < present_s
