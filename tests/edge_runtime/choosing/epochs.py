"""Images of which only the length of an epoch is known."""

from __future__ import annotations

from typing import NamedTuple


class Epochs(NamedTuple):
    """Images in epochs of so many steps."""

    steps_per_epoch: int
