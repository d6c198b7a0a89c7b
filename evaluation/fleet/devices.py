"""The devices of a fleet in one process: each has a trunk, its optimizer and its images; the head is one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from adc_edge.arrays import Arrays, Float32, Weights
from adc_edge.data.loader import Loader
from adc_edge.defaults import COMMON_MODES
from adc_edge.evaluation.fleet.rounds import StudyRounds
from adc_edge.evaluation.fleet.setting import StudyFleet
from adc_edge.evaluation.study.split_model import SplitModel
from adc_edge.evaluation.study.wire import Wire
from adc_edge.method.trunk import Trunk
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.optimizer.torch_optimizer import Optimizer


class Turn(NamedTuple):
    """A step of the whole fleet: which device makes it, and how many it has made before."""

    device: int
    step: int


def turn_of(fleet: StudyFleet, step: int) -> Turn:
    """Return whose turn ``step`` is: the devices take turns of one step, in ``sequential`` of ``every`` steps."""
    length = fleet.every if fleet.mode == "sequential" else 1
    turn, within = divmod(step, length)
    before, device = divmod(turn, fleet.devices)
    return Turn(device, before * length + within)


class StudyDevices:
    """The devices of a fleet, and its rounds if the mode has any.

    Args:
        fleet: number of devices and mode.
        first: the first device's trunk and optimizer, and the head; the others begin with copies of this trunk.
        loaders: the images of each device.
        settings: of the optimizers.
    """

    def __init__(
        self, fleet: StudyFleet, first: SplitModel, loaders: Sequence[Loader], settings: OptimizerSettings
    ) -> None:
        self.fleet, self.loaders = fleet, loaders
        self.trains = fleet.mode != "frozen"
        others = [_another(first, settings) if self.trains else first for _ in loaders[1:]]
        self.parts = [first, *others]
        self.rounds = StudyRounds(_weights(first.trunk), fleet) if fleet.mode in COMMON_MODES else None
        self.trunk_bytes = [0, 0]  # of changes of the trunk, up and down, with framing
        self._made = [0] * fleet.devices  # steps of each device
        self._images = [0] * fleet.devices  # since its trunk was the fleet's
        self._merged = True  # no device has a trunk of its own

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those of the first trunk, of the head, and of the other trunks."""
        others = self.parts[1:] if self.trains else []
        return [*self.parts[0].optimizers, *(parts.optimizers[0] for parts in others)]

    def trunks(self, step: int) -> list[SplitModel]:
        """Return the devices whose trunks are judged after ``step`` steps: each trunk that there is, once.

        In ``sequential`` it is the trunk that is handed on.
        """
        if self.fleet.mode == "sequential":
            return [self.parts[turn_of(self.fleet, step if self._merged else step - 1).device]]
        return self.parts[:1] if self._merged else self.parts

    def stepped(self, turn: Turn) -> None:
        """Count a step of a device."""
        self._made[turn.device] = turn.step + 1
        self._images[turn.device] += self.loaders[turn.device].batch_size
        self._merged = not self.trains

    def ask(self, wire: Wire) -> None:
        """Let every device ask for the fleet's trunk, as at the start of its session."""
        if self.rounds is None:
            return
        for device in range(self.fleet.devices):
            self._carry_up(device, b"", False, wire)
        for device in range(1 if self.fleet.mode == "sequential" else self.fleet.devices):
            self._take(device, wire)

    def bring_together(self, step: int, ended: bool, wire: Wire) -> None:
        """Close the round that ends after ``step`` steps, if one does, and hand out the newest trunk."""
        fleet = self.fleet
        length = fleet.every * (fleet.devices if fleet.mode == "averaged" else 1)
        if self.rounds is None or (step % length and not ended):
            return
        senders = [device for device in range(fleet.devices) if self._images[device]]
        self.rounds.close({device: self._send(device, ended, wire) for device in senders}, self._images)
        self._images = [0] * fleet.devices
        all_take = ended or fleet.mode == "averaged"
        for device in range(fleet.devices) if all_take else [turn_of(fleet, step).device]:
            self._take(device, wire)
        self._merged = True

    def arrays(self) -> dict[str, Any]:
        """Return the state of the rounds as arrays, beside those of modules and optimizers."""
        numbers = np.array([self._made, self._images], np.int64)
        own = {"devices": numbers, "carried": np.array([*self.trunk_bytes, self._merged], np.int64)}
        return own if self.rounds is None else own | self.rounds.arrays()

    def restore(self, arrays: Arrays) -> None:
        """Restore the state that ``arrays`` returned."""
        self._made, self._images = arrays["devices"].tolist()
        *self.trunk_bytes, merged = arrays["carried"].tolist()
        self._merged = bool(merged)
        if self.rounds is not None:
            self.rounds.restore(arrays)

    def _send(self, device: int, last: bool, wire: Wire) -> memoryview:
        assert self.rounds is not None, "only a fleet with rounds sends changes"
        body = self.rounds.change(device, _weights(self.parts[device].trunk))
        return self._carry_up(device, body, last, wire)

    def _carry_up(self, device: int, body: bytes, last: bool, wire: Wire) -> memoryview:
        assert self.rounds is not None, "only a fleet with rounds sends changes"
        before, base = wire.bytes_up, self.rounds.bases[device]
        arrived = wire.change_up(body, self.fleet.precision, self._made[device], base, self._images[device], last)
        self.trunk_bytes[0] += wire.bytes_up - before
        return arrived

    def _take(self, device: int, wire: Wire) -> None:
        assert self.rounds is not None, "only a fleet with rounds has a trunk"
        before = wire.bytes_down
        wire.average_down(self.rounds.answer(device), self.fleet.precision, self._made[device])
        self.trunk_bytes[1] += wire.bytes_down - before
        _load(self.parts[device].trunk, self.rounds.newest)


def _another(first: SplitModel, settings: OptimizerSettings) -> SplitModel:
    trunk = copy.deepcopy(first.trunk)
    optimizer = Optimizer(nn.ModuleList([trunk]), settings)
    return first._replace(trunk=trunk, optimizers=(optimizer, first.optimizers[1]))


def _weights(trunk: Trunk) -> dict[str, Float32]:
    return {name: value.detach().float().cpu().numpy() for name, value in trunk.state_dict().items()}


@torch.no_grad()
def _load(trunk: Trunk, weights: Weights) -> None:
    for name, value in trunk.state_dict().items():
        value.copy_(torch.from_numpy(weights[name]))
