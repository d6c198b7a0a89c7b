"""The settings, the versions and the hardware that all ranks must have in common, or their heads come apart."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch

from adc_edge import __version__
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.errors import RunError

_LIKE = "the same on all hosts: with another one the same step has other last bits, and heads come apart"
_REMEDIES = {
    "adc-edge": "install one version of adc-edge on all hosts",
    "torch": "install one version of torch on all hosts",
    "bundle": "give all hosts the same bundle",
    "device": "give --device cpu, or cuda, to all ranks",
    "gpu": f"use GPUs of one type, {_LIKE}; or --device cpu",
    "bf16": "give --amp off to all ranks",
    "compiled": "give --compile off to all ranks",
    "architecture": f"use processors of one architecture, {_LIKE}",
    "cpu capability": f"use like processors, {_LIKE}; or export ATEN_CPU_CAPABILITY=default, on every host",
    "key": "give all hosts the same --keys directory: devices trust one key of the trainer",
}
_OTHERWISE = "start all ranks with the same options"


def common(settings: Mapping[str, Any], training: HeadTraining, key: str | None) -> bytes:
    """Return the part of this rank in what ``check_agreed`` compares, as JSON.

    Args:
        settings: by name.
        training: the head, on its device.
        key: fingerprint of the trainer's public key; None: there are no keys.
    """
    device = training.device.type
    return msgspec.json.encode(
        {
            **settings,
            "adc-edge": __version__,
            "torch": torch.__version__.partition("+")[0],
            "device": device,
            "gpu": torch.cuda.get_device_name(training.device) if device == "cuda" else None,
            "bf16": training.bf16,
            "compiled": training.compiled,
            "architecture": platform.machine(),
            # With the optimizer on a GPU the processor only decodes and encodes, for its own devices.
            "cpu capability": torch.backends.cpu.get_cpu_capability() if device == "cpu" else None,
            "key": key,
        }
    )


def check_agreed(told: Sequence[bytes]) -> None:
    """Raise RunError unless all ranks were started alike, on like hosts; ``told``: each one's part, as JSON."""
    first = msgspec.json.decode(told[0], type=dict[str, Any])
    for rank, part in enumerate(told):
        other = msgspec.json.decode(part, type=dict[str, Any])
        for name in (key for key in first | other if first.get(key) != other.get(key)):
            raise RunError(
                f"rank {rank} with {name} {other.get(name)!r}",
                f"{first.get(name)!r}, as rank 0",
                _REMEDIES.get(name, _OTHERWISE),
            )
