"""Checkpoints of a run at its evaluations, so that a run that was cut short goes on from the last one."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open

from adc_edge.arrays import Arrays
from adc_edge.errors import CheckpointError
from adc_edge.evaluation.fleet.setting import StudyFleet
from adc_edge.evaluation.study.records import Point, Study
from adc_edge.evaluation.study.setting import Setting
from adc_edge.files import json_bytes
from adc_edge.storage.checkpoint import latest_checkpoint, save_checkpoint

if TYPE_CHECKING:  # torch, whose import takes seconds, and mistakes are told before
    from torch import nn

    from adc_edge.evaluation.fleet.devices import StudyDevices

_logger = logging.getLogger(__name__)
_RANDOM, _CUDA_RANDOM = "random", "random.cuda"
_FLEET, _CODEC = "fleet", "codec"


class Unfinished:
    """The checkpoints of one run that has not ended.

    A checkpoint holds all that the steps after it depend on: weights and buffers of both halves and of the codec, all
    that the codec remembers, both optimizers, torch's random state, and the evaluations so far with their bytes and
    seconds; of a fleet, every trunk with its optimizer, and the rounds. Checkpoints of another study, setting, seed or
    fleet are never used.

    Args:
        directory: made with the first checkpoint.
        study: the task.
        setting: the method.
        seed: the run's seed.
        fleet: the run's devices; None: one with all images.
    """

    def __init__(
        self, directory: Path, study: Study, setting: Setting, seed: int, fleet: StudyFleet | None = None
    ) -> None:
        self._directory = directory
        devices = {} if fleet is None else {"fleet": fleet}
        self._run = json_bytes({"study": study, "setting": str(setting), "seed": seed, **devices}).decode()

    def save(self, devices: StudyDevices, curve: Sequence[Point]) -> None:
        """Keep the state after the last evaluation. On a full disk the run goes on without it."""
        meta = {"run": self._run, "curve": msgspec.to_builtins(curve)}
        try:
            save_checkpoint(self._directory, curve[-1].step, _arrays(devices), meta)
        except OSError as error:
            _logger.warning("no checkpoint of step %d: %s; the run goes on", curve[-1].step, error)

    def kept(self) -> bool:
        """Return whether a state of this very run is kept; its weights are not verified."""
        try:
            with safe_open(next(self._directory.glob("checkpoint-*")), framework="numpy") as file:
                return bool(json.loads(file.metadata()["meta"])["run"] == self._run)
        except (StopIteration, OSError, SafetensorError, KeyError, ValueError):
            return False

    def restore(self, devices: StudyDevices) -> list[Point]:
        """Bring ``devices`` to the newest state that was kept; return the evaluations until then: none without one."""
        try:
            kept = latest_checkpoint(self._directory)
        except CheckpointError as error:
            _logger.warning("%s; the run starts again", error.received)
            kept = None
        if kept is None or kept.meta["run"] != self._run:
            self.delete()  # or the newest of another study would push out the first of this one
            return []
        _restore(devices, kept.arrays)
        return msgspec.convert(kept.meta["curve"], list[Point])

    def delete(self) -> None:
        """Delete all checkpoints, and the directory of all runs' if it is empty."""
        shutil.rmtree(self._directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._directory.parent.rmdir()


def _modules(devices: StudyDevices) -> Iterator[tuple[str, nn.Module]]:
    first, *others = devices.parts if devices.trains else devices.parts[:1]
    codec = first.codec
    named = {"trunk": first.trunk, "head": first.head, "device": codec.device, "trainer": codec.trainer}
    named |= {f"trunk{number}": parts.trunk for number, parts in enumerate(others, 1)}
    return ((name, module) for name, module in named.items() if module is not None)


def _arrays(devices: StudyDevices) -> dict[str, Any]:
    import torch

    arrays = {
        f"{side}.{name}": np.asarray(value.detach().cpu())
        for side, module in _modules(devices)
        for name, value in module.state_dict().items()
    }
    for number, optimizer in enumerate(devices.optimizers):
        arrays |= {f"optimizer{number}.{name}": value for name, value in optimizer.arrays().items()}
    arrays |= {f"{_FLEET}.{name}": value for name, value in devices.arrays().items()}
    arrays |= {f"{_CODEC}.{name}": value for name, value in devices.parts[0].codec.arrays().items()}
    arrays[_RANDOM] = torch.get_rng_state().numpy()
    place = devices.parts[0].place
    if place.type == "cuda":
        arrays[_CUDA_RANDOM] = torch.cuda.get_rng_state(place).numpy()
    return arrays


def _restore(devices: StudyDevices, arrays: Arrays) -> None:
    import torch

    for side, module in _modules(devices):
        module.load_state_dict({name: torch.from_numpy(value) for name, value in _under(arrays, side).items()})
    for number, optimizer in enumerate(devices.optimizers):
        optimizer.restore(_under(arrays, f"optimizer{number}"))
    if kept := _under(arrays, _FLEET):  # none in a checkpoint of 0.10
        devices.restore(kept)
    if state := _under(arrays, _CODEC):
        devices.parts[0].codec.restore_state(state)
    torch.set_rng_state(torch.from_numpy(arrays[_RANDOM]))
    if _CUDA_RANDOM in arrays:
        torch.cuda.set_rng_state(torch.from_numpy(arrays[_CUDA_RANDOM]), devices.parts[0].place)


def _under(arrays: Arrays, prefix: str) -> dict[str, Any]:
    """Return the arrays whose names begin with ``prefix.``, without it."""
    return {name[len(prefix) + 1 :]: value for name, value in arrays.items() if name.startswith(f"{prefix}.")}
