"""plan.json: the setting that `adc-edge plan` chose, with what it was chosen from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from adc_edge.defaults import Precision
from adc_edge.errors import SettingError
from adc_edge.files import read_json
from adc_edge.method.ratio import Ratio
from adc_edge.planning.accuracy.frontier import Estimate
from adc_edge.planning.choice import Candidate

PLAN_FORMAT = 1


class PlannedValue(msgspec.Struct, frozen=True):
    """Accuracy or SSIM of a setting, and the measured settings that it comes from."""

    value: float
    spread: float | None
    settings: tuple[str, ...]
    source: str


class PlannedStep(msgspec.Struct, frozen=True, omit_defaults=True):
    """A setting of `serve`, and what its step is expected to take and to give."""

    split: int
    batch_size: int
    ratio: Ratio
    precision: Precision
    gradient_precision: Precision | None  # None: the trunk is frozen
    micro_batches: int
    window: int
    trunk: Literal["train", "frozen"]
    freeze_first: int
    clusters: int  # T of a micro-batch
    kept: int  # k
    seconds: float
    bytes_up: int
    bytes_down: int
    memory_bytes: int  # 0: not known
    accuracy: PlannedValue | None  # points above uncompressed training; None: not measured
    ssim: PlannedValue | None
    few_rows: bool = False
    extrapolated: bool = False  # the device has not measured all blocks of this split


class PlannedGoal(msgspec.Struct, frozen=True):
    """A limit that was asked for, as the plan counts it: seconds or bytes of a step, points, or SSIM."""

    option: str
    quantity: str
    limit: float


class PlannedWay(msgspec.Struct, frozen=True):
    """A way to make a whole training, with the bytes that its steps send for each training image.

    ``options`` of `serve` are added to the chosen command. Seconds are None where they are not known.
    """

    options: list[str]
    epochs_alone: int  # that the trainer does without the device
    bytes_up_an_image: float
    bytes_down_an_image: float
    seconds: float | None  # until everything is sent
    seconds_alone: float | None  # of the trainer after that


class PlannedTraining(msgspec.Struct, frozen=True):
    """Bytes and time of a whole training on the planned link; its accuracy is not predicted."""

    epochs: int
    steps_per_epoch: int | None  # None: the number of images is not known
    ways: list[PlannedWay]  # the chosen setting as it is, then others
    pictures: dict[str, float]  # bytes of a training image as a picture that is sent once, by kind


class PlanFile(msgspec.Struct, frozen=True):
    """Contents of plan.json."""

    format: int
    version: str  # of adc-edge
    inputs: dict[str, str]  # SHA-256 of each file that was read; of the bundle its digest
    trainer: str
    compute_known: bool  # False: without a profile, the step's time is that of the link alone
    goals: list[PlannedGoal]
    chosen: PlannedStep
    why: str
    serve: list[str]  # the command, word by word
    front: list[PlannedStep]
    other_splits: list[PlannedStep]
    training: PlannedTraining | msgspec.UnsetType = msgspec.UNSET  # left out by 0.13 and earlier


def read_plan(path: Path) -> PlanFile:
    """Return the plan in a file; raises SettingError if it holds none."""
    expected = "a plan that `adc-edge plan --json` of this version wrote"
    remedy = f"adc-edge plan --bundle BUNDLE --link FILE --json {path}"
    plan = read_json(path, PlanFile, expected, remedy)
    if plan.format != PLAN_FORMAT:
        raise SettingError(f"{path}: format {plan.format}", expected, remedy)
    return plan


def planned_step(one: Candidate, images: int) -> PlannedStep:
    """Return a candidate as plan.json has it; ``images`` is B."""
    plan, found = one.plan, one.prediction
    return PlannedStep(
        split=plan.split,
        batch_size=images,
        ratio=one.ratio,
        precision=plan.precision,
        gradient_precision=plan.gradient_precision,
        micro_batches=plan.micro_batches,
        window=plan.window,
        trunk="frozen" if plan.gradient_precision is None else "train",
        freeze_first=plan.freeze_first,
        clusters=plan.shape.clusters,
        kept=plan.shape.kept,
        seconds=found.seconds,
        bytes_up=found.bytes_up,
        bytes_down=found.bytes_down,
        memory_bytes=found.memory_bytes,
        accuracy=_value_of(one.accuracy),
        ssim=_value_of(one.ssim),
        few_rows=one.few_rows,
        extrapolated=found.extrapolated,
    )


def _value_of(found: Estimate | None) -> PlannedValue | None:
    return None if found is None else PlannedValue(*found)
