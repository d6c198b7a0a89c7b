"""Optimizer settings and the learning-rate schedule, for devices without torch too."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from adc_edge.defaults import LEARNING_RATE, MOMENTUM, LearningRateSchedule, OptimizerName


class OptimizerSettings(msgspec.Struct, frozen=True):
    """Settings of one half's optimizer. ``clip_norm`` applies to that half's gradients alone; 0 means no clipping."""

    name: OptimizerName = "adamw"
    lr: float = LEARNING_RATE
    weight_decay: float = 0.0
    momentum: float = MOMENTUM
    clip_norm: float = 0.0
    schedule: LearningRateSchedule = "constant"
    warmup_steps: int = 0
    schedule_steps: int = 0  # length of the cosine; 0: as many steps as the device plans


def learning_rate(settings: OptimizerSettings, step: int, planned_steps: int) -> float:
    """Return the learning rate of ``step``: linear warm-up, then constant or a half cosine down to zero."""
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    total = settings.schedule_steps or planned_steps
    if settings.schedule == "constant" or total <= settings.warmup_steps:
        return settings.lr
    done = min(1.0, (step - settings.warmup_steps) / (total - settings.warmup_steps))
    return settings.lr * 0.5 * (1.0 + math.cos(math.pi * done))


def take_settings(options: dict[str, Any]) -> OptimizerSettings:
    """Remove the optimizer settings from a command's ``options`` and return them."""
    names = {"optimizer" if field == "name" else field: field for field in OptimizerSettings.__struct_fields__}
    return msgspec.convert({field: options.pop(option) for option, field in names.items()}, OptimizerSettings)
