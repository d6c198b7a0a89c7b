"""The optimizer of trunk or head in torch: AdamW, Adam or SGD, with clipping and the schedule of `settings.py`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from adc_edge.arrays import Arrays
from adc_edge.errors import CheckpointError
from adc_edge.optimizer.settings import OptimizerSettings, learning_rate

_UNDECAYED = {"cls_token", "dist_token", "reg_token", "pos_embed"}  # timm's convention, with all 1-d parameters


class Optimizer:
    """A torch optimizer with its clipping and schedule; frozen parameters are left out."""

    def __init__(self, module: nn.Module, settings: OptimizerSettings) -> None:
        self.settings = settings
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self._parameters = [p for _, p in named]
        self._torch = _make(_groups(named, settings.weight_decay), settings)

    def step(self, step: int, planned_steps: int) -> None:
        """Clip, update every parameter, and clear the gradients."""
        if self.settings.clip_norm > 0:
            nn.utils.clip_grad_norm_(self._parameters, self.settings.clip_norm)
        for group in self._torch.param_groups:
            group["lr"] = learning_rate(self.settings, step, planned_steps)
        self._torch.step()
        self._torch.zero_grad(set_to_none=True)

    def fill(self) -> None:
        """Make the state of every parameter that has none, as a first step would find it."""
        adam = self.settings.name != "sgd"
        for parameter in self._parameters:
            if self._torch.state[parameter] or not (adam or self.settings.momentum):
                continue
            names = ("exp_avg", "exp_avg_sq") if adam else ("momentum_buffer",)
            made = {name: torch.zeros_like(parameter, requires_grad=False) for name in names}
            if adam:
                made = {"step": torch.zeros((), device=parameter.device)} | made
            self._torch.state[parameter].update(made)

    def state(self) -> list[torch.Tensor]:
        """Return the tensors of the state, in a fixed order, to be read and overwritten; ``fill`` comes before."""
        states = (self._torch.state[parameter] for parameter in self._parameters)
        return [value for state in states for _, value in sorted(state.items()) if isinstance(value, torch.Tensor)]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the optimizer's state as arrays named ``INDEX.KEY``."""
        state = self._torch.state_dict()["state"]
        return {
            f"{index}.{key}": np.asarray(value.detach().cpu())
            for index, values in state.items()
            for key, value in values.items()
            if value is not None
        }

    def restore(self, arrays: Arrays) -> None:
        """Restore the state that ``arrays`` returned.

        Raises:
            CheckpointError: the state has parameters that this optimizer does not have.
        """
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in arrays.items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = torch.from_numpy(np.array(value))
        if max(state, default=-1) >= len(self._parameters):
            raise CheckpointError(
                "an optimizer state of another model", f"{len(self._parameters)} parameters", "use the run's own bundle"
            )
        self._torch.load_state_dict({"state": state, "param_groups": self._torch.state_dict()["param_groups"]})


def _groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in named:
        (plain if parameter.ndim < 2 or name.rpartition(".")[2] in _UNDECAYED else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _make(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=True)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, fused=True)
