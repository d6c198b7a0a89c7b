"""The plan: candidates, their front, the choice, and the command that takes it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from adc_edge.planning.candidates import (
    Task,
    bundle_candidate,
    candidates,
    other_splits,
    with_frozen_blocks,
    with_small_window,
)
from adc_edge.planning.choice import Candidate, Choice, Goal, choose, front
from adc_edge.planning.step_model import served_seconds

_GAIN = 0.05  # of a step's time, from which another split is worth an export
_SPLITS = 4
_LIMITS = 0.1  # of a step's time
_LOOPBACK = re.compile(r"tcp://(localhost|127\.[\d.]+|\[::1\]):")


class Made(NamedTuple):
    """A plan."""

    task: Task
    goals: list[Goal]
    choice: Choice
    front: list[Candidate]  # fastest first
    frozen: list[Candidate]  # the chosen setting with half of the trunk frozen, and with all of it
    bundle: Candidate  # the bundle's own setting in one message
    splits: list[Candidate]  # other splits at which a step is shorter, best first
    compute_known: bool


def make_plan(task: Task, goals: Sequence[Goal], compute_known: bool) -> Made:
    """Choose among all candidates.

    Args:
        task: the run.
        goals: limits, or none.
        compute_known: a profile was given.
    """
    trained = candidates(task)
    with_ssim = any(goal.quantity == "ssim" for goal in goals)
    best = front([one for one in trained if one.accuracy is not None] or trained, with_ssim)
    everything = trained + with_frozen_blocks(task, best)
    choice = choose(everything, goals)
    taken = with_small_window(task, choice.candidate) if compute_known else choice.candidate
    kept = [one for one in front(everything, with_ssim) if one != choice.candidate]
    splits = _better_splits(task, taken) if compute_known and task.profile.trainer is not None else []
    return Made(
        task,
        list(goals),
        choice._replace(candidate=taken),
        sorted([*kept, taken], key=lambda one: one.prediction.seconds),
        _frozen(task, taken),
        bundle_candidate(task),
        splits,
        compute_known,
    )


def _frozen(task: Task, taken: Candidate) -> list[Candidate]:
    found = with_frozen_blocks(task, [taken])
    half = [one for one in found if one.plan.freeze_first == task.manifest.split // 2 and one.plan.gradient_precision]
    return half + found[-1:]


def _better_splits(task: Task, taken: Candidate) -> list[Candidate]:
    most = taken.prediction.seconds * (1 - _GAIN)
    return [one for one in other_splits(task, taken) if one.prediction.seconds <= most][:_SPLITS]


def busy_part(task: Task, one: Candidate) -> tuple[str, float]:
    """Return what a step waits for most, and its part of the step: device, link, trainer, or one round trip."""
    costs, count, seconds = one.prediction.costs, one.plan.micro_batches, one.prediction.seconds
    places = {
        "the device is busy": count * (costs.forward + costs.recompute + costs.backward),
        "the link is busy": count * max(costs.up, costs.down),
        "the trainer is busy": count * costs.cloud / costs.share,
        "a round trip lasts": task.link.rtt_ms / 1e3,
    }
    place = max(places, key=lambda name: places[name])
    return place, min(1.0, places[place] / seconds) if seconds else 0.0


class TrainerLimit(NamedTuple):
    """The part of a step's load that its trainer bears."""

    devices: float  # of this kind that keep the trainer busy all the time, if their steps never met
    steps_s: float  # of this device at most
    up_mbit_s: float  # of its messages at that rate
    down_mbit_s: float
    limits: bool  # the step is as long as its work on the trainer takes


def trainer_limit(task: Task, one: Candidate) -> TrainerLimit | None:
    """Return what the trainer bears of a setting; None if its speed is not known."""
    trainer, found = task.profile.trainer, one.prediction
    if trainer is None:
        return None
    served = served_seconds(one.plan, found.costs, trainer)
    most = found.costs.share / served
    up, down = (8e-6 * most * size for size in (found.bytes_up, found.bytes_down))
    return TrainerLimit(found.seconds / served, most, up, down, found.seconds * most <= 1 + _LIMITS)


def serve_words(made: Made, bundle: Path, trainer: str, data: str | None) -> list[str]:
    """Return the command of `serve` that takes the chosen setting, word by word."""
    plan, ratio, manifest = made.choice.candidate.plan, made.choice.candidate.ratio, made.task.manifest
    words: list[object] = ["adc-edge", "serve", "--bundle", bundle, "--trainer", trainer]
    words += ["--data", data] if data else []
    words += [] if _LOOPBACK.match(trainer) else ["--keys", "keys/"]
    words += ["--batch-size", made.task.batch_size] if made.task.batch_size != manifest.batch_size else []
    if ratio.xi is not None:
        words += ["--ratio", f"{ratio.xi:g}"]
    else:
        words += ["--batch-ratio", f"{ratio.batch:g}", "--token-ratio", f"{ratio.token:g}"]
    words += ["--precision", plan.precision]
    words += (
        ["--trunk", "frozen"] if plan.gradient_precision is None else ["--gradient-precision", plan.gradient_precision]
    )
    words += ["--freeze-first", plan.freeze_first] if plan.freeze_first else []
    words += ["--micro-batches", plan.micro_batches]
    words += ["--window", plan.window] if plan.window else []
    device = made.task.profile.device
    words += ["--engine", device.engine] if device.engine not in ("", "onnxruntime") else []
    usual = "fp16" if device.engine == "tensorrt" else "fp32"
    words += ["--compute", device.compute] if device.compute not in ("", usual) else []
    return [str(word) for word in words]
