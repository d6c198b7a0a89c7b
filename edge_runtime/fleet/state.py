"""The fleet's trunk as a device's run last had it: what a checkpoint keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from adc_edge.arrays import Arrays, Float32

_BASE, _RESIDUAL = "fleet.base.", "fleet.residual."


class FleetState(msgspec.Struct):
    """The last average that a run took.

    Attributes:
        averaged: step before which it was taken; None: there was none yet.
        round: of the fleet's trunk; 0 is the bundle's.
        base: the trunk of that round, by timm name; empty: the bundle's.
        residual: the rounding of this device's changes, which its next change makes up for.
        fleet: random number of the fleet whose round it is; 0: not told.
        number: of the average among those that the run has taken before this step.
        ended: the run has come to its end with it; if it is extended, the fleet may have gone on meanwhile.
    """

    averaged: int | None = None
    round: int = 0
    base: dict[str, Float32] = {}
    residual: dict[str, Float32] = {}
    fleet: int = 0
    number: int = 0
    ended: bool = False

    @staticmethod
    def restored(meta: Mapping[str, Any], arrays: Arrays) -> FleetState:
        """Return the state in a checkpoint; one of a run without averages, as up to version 0.10, has none."""
        found = meta.get("fleet")
        if found is None:
            return FleetState()
        base, residual = _under(_BASE, arrays), _under(_RESIDUAL, arrays)
        averaged, number = int(found["averaged"]), int(found.get("number", 0))
        fleet, ended = int(found.get("fleet", 0)), bool(found.get("ended", False))
        return FleetState(averaged, int(found["round"]), base, residual, fleet, number, ended)

    def meta(self) -> dict[str, Any]:
        """Return what a checkpoint's meta keeps; nothing before the first average."""
        if self.averaged is None:
            return {}
        stands = {"averaged": self.averaged, "round": self.round, "fleet": self.fleet}
        return {"fleet": stands | {"number": self.number, "ended": self.ended}}

    def arrays(self) -> dict[str, Float32]:
        """Return the arrays for a checkpoint."""
        base = {_BASE + name: value for name, value in self.base.items()}
        return base | {_RESIDUAL + name: value for name, value in self.residual.items()}


def _under(prefix: str, arrays: Arrays) -> dict[str, Float32]:
    return {name[len(prefix) :]: np.array(value) for name, value in arrays.items() if name.startswith(prefix)}
