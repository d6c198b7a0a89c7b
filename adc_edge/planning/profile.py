"""The measured speed of a device and of its trainer, as JSON: what the model of a step (`step_model.py`) computes with.

`adc-edge profile` writes it; `adc-edge plan` reads it. Times grow with a count and have a part that does not: the cost
of a call, of Python, of eigenvectors. So most of them are lines through two measurements or more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from adc_edge.errors import SettingError


class Line(msgspec.Struct, frozen=True):
    """Seconds that grow with a count: ``fixed + each * count``."""

    fixed: float
    each: float

    def seconds(self, count: float) -> float:
        """Return the seconds of ``count`` things."""
        return self.fixed + self.each * count


class BlockSeconds(msgspec.Struct, frozen=True):
    """Seconds of one block of the trunk for one image with all its tokens."""

    forward: float
    recompute: float  # with autograd
    backward: float


class CodecSeconds(msgspec.Struct, frozen=True):
    """Seconds of a message in one precision, by its number of rows (tokens)."""

    encode: Line
    decode: Line


class DeviceProfile(msgspec.Struct, frozen=True):
    """The speed of a device with one bundle."""

    machine: dict[str, Any]  # `describe_machine`, with threads
    bundle: str  # SHA-256 of manifest.json
    model: str
    split: int
    tokens: int  # N
    dim: int  # D
    engine: str
    compute: str
    keeps_graph: bool  # the engine's forward serves the backward, so that nothing is recomputed
    images: int  # of the largest micro-batch that was measured
    call_seconds: float  # of a forward, whatever the number of images
    embedding: BlockSeconds
    blocks: list[BlockSeconds]  # 1..split; the last one with ADC, at the bundle's ratio
    update_seconds: float  # optimizer and refresh of the engine, each step
    data_seconds: float  # to read and decode an image
    codec: dict[str, CodecSeconds]  # by precision


class TrainerProfile(msgspec.Struct, frozen=True):
    """The speed of a trainer's head, as the trainer tells it."""

    device: str
    split: int
    step: Line  # forward and backward, by rows (T * k)
    update_seconds: float  # optimizer, each step
    codec: dict[str, CodecSeconds]


class Profile(msgspec.Struct, frozen=True):
    """What `adc-edge profile` writes."""

    device: DeviceProfile
    trainer: TrainerProfile | None = None  # None: no trainer was asked


def read_profile(path: Path) -> Profile:
    """Return the profile in a file.

    Raises:
        SettingError: the file cannot be read, or holds something else.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Profile)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise SettingError(
            f"{path}: {why}",
            "a profile that `adc-edge profile` wrote",
            f"adc-edge profile --bundle BUNDLE --json {path}",
        ) from None
