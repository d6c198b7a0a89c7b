"""The measured speed of a device and of its trainer, as JSON: what the model of a step (`step_model.py`) computes with.

`adc-edge profile` writes it; `adc-edge plan` reads it. Times grow with a count and have a part that does not: the cost
of a call, of Python, of eigenvectors. So most of them are lines through two measurements or more.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from adc_edge.errors import SettingError
from adc_edge.files import read_json

if TYPE_CHECKING:  # every message imports this module
    from adc_edge.storage.bundle import Bundle

_Part = Annotated[float, msgspec.Meta(gt=0, le=1)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
_SAME_MACHINE = ("processor", "cores")  # of `describe_machine`: versions change speeds a little, another processor much


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
    graph_bytes: int = 0  # held for the backward, for an image


class LastBlockSeconds(msgspec.Struct, frozen=True):
    """Seconds of the last block with ADC for one image, by its share of a whole block's work (`work.py`)."""

    forward: Line
    recompute: Line
    backward: Line


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
    blocks: list[BlockSeconds]  # 1..split; the last one with ADC, at the ratio that was measured
    update_seconds: float  # optimizer and refresh of the engine, each step
    data_seconds: float  # to read and decode an image, beside the computation
    codec: dict[str, CodecSeconds]  # by precision
    last: LastBlockSeconds | None = None  # the last block at any ratio; None: it takes as long at each
    mlp_dim: int = 0  # m; 0: 4 D
    recompute_call_seconds: float = 0.0  # of a recomputation of all blocks, whatever the number of images
    backward_call_seconds: float = 0.0
    batch_seconds: float = 0.0  # to put an image into a batch, before the computation
    trains: bool = True  # False: recomputation and backward were not measured, because the trunk is frozen


class TrainerProfile(msgspec.Struct, frozen=True):
    """The speed of a trainer's head, as the trainer tells it."""

    device: str
    split: int
    step: Line  # forward and backward, by rows (T * k)
    update_seconds: float  # optimizer, each step
    codec: dict[str, CodecSeconds]
    depth: int = 0  # blocks of the whole model; 0: not told
    cores: int = 0  # of its machine
    rows: int = 0  # of the largest message that was measured


class TrainerShare(msgspec.Struct, frozen=True, omit_defaults=True):
    """A device's share of a trainer that others use too, as the trainer tells it. All of it is of the last seconds."""

    share: _Part  # of the trainer's time that the others leave, or would have to leave
    wait_s: _Seconds  # expected of a message, before its turn
    devices: Annotated[int, msgspec.Meta(ge=1, le=65536)]  # at work, this one among them
    rest_s: _Seconds = 0.0  # optimizer and log of this device, for each of its messages
    waited_s: _Seconds | UnsetType = UNSET  # of the message that is answered; only where the kernel tells its arrival

    @property
    def waited_or_expected_s(self) -> float:
        """Return how long the answered message waited for other devices, as far as it is known."""
        return self.wait_s if self.waited_s is UNSET else self.waited_s

    def expected(self) -> TrainerShare:
        """Return what holds for any message."""
        return msgspec.structs.replace(self, waited_s=UNSET)


def share_text(share: TrainerShare) -> str:
    """Return a share in words."""
    return (
        f"the trainer works for {share.devices - 1} other device{'s' * (share.devices != 2)} too: "
        f"{100 * share.share:.0f} % of its time is this one's, and a message waits {1e3 * share.wait_s:.0f} ms"
    )


class Profile(msgspec.Struct, frozen=True):
    """The content of a file that `adc-edge profile` writes."""

    device: DeviceProfile
    trainer: TrainerProfile | None = None  # None: no trainer was asked, or it does not tell
    share: TrainerShare | UnsetType = UNSET  # of a trainer that was at work for others while it was asked


def read_profile(path: Path) -> Profile:
    """Return the profile in a file.

    Raises:
        SettingError: the file cannot be read, or holds something else.
    """
    remedy = f"adc-edge profile --bundle BUNDLE --json {path}"
    return read_json(path, Profile, "a profile that `adc-edge profile` wrote", remedy)


def check_profile(profile: Profile, bundle: Bundle, machine: Mapping[str, Any] | None = None) -> None:
    """Check that a profile was measured with this bundle, and on this machine.

    Args:
        profile: as read.
        bundle: the bundle to plan for.
        machine: `describe_machine` of the machine that is planned for; None: any, as for a plan that is made elsewhere.

    Raises:
        SettingError: the profile is of another model, bundle or machine.
    """
    device, manifest = profile.device, bundle.manifest
    received = ""
    if (device.model, device.split) != (manifest.model, manifest.split):
        received = f"a profile of {device.model}, split {device.split}"
        expected = f"one of {manifest.model}, split {manifest.split}"
    elif device.bundle != bundle.digest:
        received = f"a profile of another export of {device.model} (bundle {device.bundle[:12]}…)"
        expected = f"one of {bundle.path} (bundle {bundle.digest[:12]}…)"
    elif machine is not None and (other := _other_machine(device.machine, machine)):
        received, expected = f"a profile of a machine with {other[0]}", f"one of this machine, {other[1]}"
    if received:
        raise SettingError(
            received, expected, f"measure on the device: adc-edge profile --bundle {bundle.path} --json FILE"
        )


def check_trains(profile: Profile) -> None:
    """Raise SettingError for a profile of a frozen trunk: it does not tell what training takes."""
    if not profile.device.trains:
        raise SettingError(
            "a profile of a frozen trunk",
            "one of a trunk that trains: the accuracy of frozen trunks was not measured, so none is planned",
            "adc-edge profile without --trunk frozen",
        )


def _other_machine(measured: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[str, str] | None:
    """Both machines in words, if they differ."""
    there, this = ([machine.get(name) for name in _SAME_MACHINE] for machine in (measured, here))
    if there == this:
        return None
    return f"{there[0]}, {there[1]} cores", f"{this[0]}, {this[1]} cores"
