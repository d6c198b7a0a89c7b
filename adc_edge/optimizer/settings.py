"""How a half learns, as settings and a schedule: what a device without torch must know of it too."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from adc_edge.defaults import LEARNING_RATE, MOMENTUM, LearningRateSchedule, OptimizerName


class OptimizerSettings(msgspec.Struct, frozen=True):
    """How one half learns. ``clip_norm`` 0 means no clipping; it sees this half's gradients alone."""

    name: OptimizerName = "adamw"
    lr: float = LEARNING_RATE
    weight_decay: float = 0.0
    momentum: float = MOMENTUM
    clip_norm: float = 0.0
    schedule: LearningRateSchedule = "constant"
    warmup_steps: int = 0
    schedule_steps: int = 0  # length of the cosine; 0: as many steps as the device plans


def learning_rate(settings: OptimizerSettings, step: int, planned_steps: int) -> float:
    """Learning rate of ``step``: linear warm-up, then constant or a half cosine down to zero."""
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    total = settings.schedule_steps or planned_steps
    if settings.schedule == "constant" or total <= settings.warmup_steps:
        return settings.lr
    done = min(1.0, (step - settings.warmup_steps) / (total - settings.warmup_steps))
    return settings.lr * 0.5 * (1.0 + math.cos(math.pi * done))


def take_settings(options: dict[str, Any]) -> OptimizerSettings:
    """The settings among a command's options, which are taken out of ``options``."""
    names = {"optimizer" if field == "name" else field: field for field in OptimizerSettings.__struct_fields__}
    return msgspec.convert({field: options.pop(option) for option, field in names.items()}, OptimizerSettings)
