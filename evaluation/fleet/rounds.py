"""The fleet's trunk and its rounds: the mathematics of a trainer and its devices, in one process, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adc_edge.arrays import Arrays, Float32, Weights
from adc_edge.codec.trunk_changes import added, changes_bytes, decode_changes, encode_changes, shapes_of
from adc_edge.evaluation.fleet.setting import StudyFleet
from adc_edge.method.averaging import combined, outliers

_KEPT_ROUNDS = 8  # whose changes the trainer keeps


class TrunkAnswer(NamedTuple):
    """A trainer's answer to a device: changes from its base to the newest trunk, or the whole trunk."""

    base: int
    round: int
    whole: bool
    body: bytes


class StudyRounds:
    """The fleet's trunk, which every round adds one change to.

    A change is encoded in the fleet's precision both ways, and what the rounding loses is added to the next one of the
    same sender.

    Args:
        trunk: of round 0, float32 by name.
        fleet: its devices, its precision and how changes become one.
    """

    def __init__(self, trunk: Weights, fleet: StudyFleet) -> None:
        self._fleet, self._shapes = fleet, shapes_of(trunk)
        self.newest: dict[str, Float32] = {name: np.array(value, np.float32) for name, value in trunk.items()}
        self.round, self.left_out = 0, 0
        self.bases = [0] * fleet.devices  # the round that each device's trunk was the fleet's in
        self._lost = [_zeros(trunk) for _ in range(fleet.devices)]  # by rounding, for each device
        self._lost_down = _zeros(trunk)
        self._last = b""  # encoded change of the newest round

    def change(self, device: int, trunk: Weights) -> bytes:
        """Encode the change of a device's trunk since it was equal to the fleet's newest one."""
        change = {name: trunk[name] - value + self._lost[device][name] for name, value in self.newest.items()}
        body, self._lost[device] = self._encoded(change)
        return body

    def close(self, bodies: Mapping[int, Any], images: Sequence[int]) -> None:
        """Bring encoded changes together and add them to the newest trunk.

        Args:
            bodies: the changes by device; one that is left out loses also what its rounding has left.
            images: images behind the change of each device.
        """
        changes = [decode_changes(body, self._shapes, self._fleet.precision) for body in bodies.values()]
        senders = list(bodies)
        away = outliers(changes) if self._fleet.guard else {}
        fitting = [number for number in range(len(changes)) if number not in away]
        self.left_out += len(away)
        for number in away:
            self._lost[senders[number]] = _zeros(self.newest)
        mean = combined([changes[n] for n in fitting], [images[senders[n]] for n in fitting], self._fleet.robust)
        self._last, self._lost_down = self._encoded(added(mean, self._lost_down))
        self.newest = added(self.newest, decode_changes(self._last, self._shapes, self._fleet.precision))
        self.round += 1

    def answer(self, device: int) -> TrunkAnswer:
        """Return what brings a device's trunk to the newest one, which it is equal to then."""
        base, self.bases[device] = self.bases[device], self.round
        behind = self.round - base
        changes = behind * changes_bytes(self._shapes, self._fleet.precision)
        if behind > _KEPT_ROUNDS or changes >= changes_bytes(self._shapes, "fp32"):
            return TrunkAnswer(base, self.round, True, encode_changes(self.newest, "fp32"))
        # Of several changes only the length counts here: the device takes the newest trunk, which has the same bits.
        return TrunkAnswer(base, self.round, False, self._last if behind == 1 else bytes(changes))

    def arrays(self) -> dict[str, Any]:
        """Return the state between two rounds as arrays."""
        named = {"newest": self.newest, "down": self._lost_down}
        named |= {f"up{device}": lost for device, lost in enumerate(self._lost)}
        found: dict[str, Any] = {f"{part}.{name}": v for part, values in named.items() for name, v in values.items()}
        return found | {"numbers": np.array([self.round, self.left_out, *self.bases], np.int64)}

    def restore(self, arrays: Arrays) -> None:
        """Restore the state that ``arrays`` returned."""
        self.newest, self._lost_down = self._named(arrays, "newest"), self._named(arrays, "down")
        self._lost = [self._named(arrays, f"up{device}") for device in range(self._fleet.devices)]
        self.round, self.left_out, *self.bases = arrays["numbers"].tolist()

    def _encoded(self, change: Weights) -> tuple[bytes, dict[str, Float32]]:
        """Encode a change; return also what that loses."""
        body = encode_changes(change, self._fleet.precision)
        arrived = decode_changes(body, self._shapes, self._fleet.precision)
        return body, {name: change[name] - arrived[name] for name in change}

    def _named(self, arrays: Arrays, part: str) -> dict[str, Float32]:
        return {name: np.array(arrays[f"{part}.{name}"], np.float32) for name in self._shapes}


def _zeros(trunk: Weights) -> dict[str, Float32]:
    return {name: np.zeros(value.shape, np.float32) for name, value in trunk.items()}
