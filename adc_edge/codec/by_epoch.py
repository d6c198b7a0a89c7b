"""Precisions that change by epoch: a list has one for each epoch, and the last one holds from its epoch on.

A list as ``pca4,pca1,pca0.5`` begins fine; docs/results/ten-epochs.md has what that was worth. A precision is a
function of the step alone: a run that goes on after a kill sends the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import msgspec

from adc_edge.defaults import Precision
from adc_edge.errors import SettingError

_PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class PrecisionsByEpoch(msgspec.Struct, frozen=True):
    """Precisions of activations (up) and gradients (down) in each epoch, as lists of one or more."""

    up: tuple[Precision, ...]
    down: tuple[Precision, ...]

    @property
    def changes(self) -> bool:
        """Whether any epoch has another precision than the first."""
        return len(self.up) > 1 or len(self.down) > 1

    @property
    def texts(self) -> tuple[str, str]:
        """Both lists as text."""
        return text_of(self.up), text_of(self.down)

    def of_epoch(self, epoch: int) -> tuple[Precision, Precision]:
        """Return the precisions up and down of an epoch, counted from 0."""
        return self.up[min(epoch, len(self.up) - 1)], self.down[min(epoch, len(self.down) - 1)]

    def of_step(self, step: int, steps_per_epoch: int) -> tuple[Precision, Precision]:
        """Return the precisions up and down of a step, counted from 0."""
        return self.of_epoch(step // steps_per_epoch)

    def pairs(self) -> list[tuple[Precision, Precision]]:
        """Return the precisions up and down of each epoch, until they change no more."""
        return [self.of_epoch(epoch) for epoch in range(max(len(self.up), len(self.down)))]


def shortest(precisions: Sequence[Precision]) -> tuple[Precision, ...]:
    """Return the shortest list that gives every epoch the same precision: the last one is not repeated."""
    last = len(precisions)
    while last > 1 and precisions[last - 1] == precisions[last - 2]:
        last -= 1
    return tuple(precisions[:last])


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """Return the shortest list of the same meaning as ``P`` or ``P,P,…``.

    Raises:
        SettingError: a precision is unknown, or there is none.
    """
    named = [part.strip() for part in text.split(",")]
    found = [precision for part in named for precision in _PRECISIONS if precision == part]
    if len(found) < len(named):
        unknown = next(part for part in named if part not in _PRECISIONS)
        raise SettingError(
            f"precision {unknown!r} in {text!r}",
            f"any of {', '.join(_PRECISIONS)}; several: one for each epoch, the last one from then on",
            "for example pca1, or pca4,pca1,pca0.5",
        )
    return shortest(found)


def text_of(precisions: Sequence[Precision]) -> str:
    """Return the text that ``parse_precisions`` reads."""
    return ",".join(precisions)
