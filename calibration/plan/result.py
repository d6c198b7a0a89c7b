"""The goals of a plan, plan.json, and the error for goals that nothing meets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adc_edge import __version__
from adc_edge.calibration.plan.inputs import PlanInputs
from adc_edge.calibration.plan.make import Made
from adc_edge.errors import RunError, SettingError
from adc_edge.files import json_bytes
from adc_edge.planning.choice import Candidate, Goal
from adc_edge.planning.plan_file import PLAN_FORMAT, PlanFile, PlannedGoal, PlannedTraining, planned_step


def goals_of(options: Mapping[str, Any], inputs: PlanInputs) -> list[Goal]:
    """Return the limits that the options ask for.

    Raises:
        SettingError: ``--max-mb-per-epoch`` without the number of images.
    """
    found = [
        ("--target-step-time", "seconds", options["target_step_time"]),
        ("--max-bytes-per-step", "bytes", options["max_bytes_per_step"]),
        ("--max-mb-per-epoch", "bytes", _bytes_of_epoch(options["max_mb_per_epoch"], inputs.steps_per_epoch)),
        ("--min-accuracy", "accuracy", options["min_accuracy"]),
        ("--max-ssim", "ssim", options["max_ssim"]),
    ]
    return [Goal(option, quantity, float(limit)) for option, quantity, limit in found if limit is not None]  # type: ignore[arg-type]


def _bytes_of_epoch(most_mb: float | None, steps: int | None) -> float | None:
    if most_mb is None:
        return None
    if steps is None:
        raise SettingError(
            f"--max-mb-per-epoch {most_mb:g} without a number of images",
            "--images N, or --data SRC, whose images are counted",
            "add one of them, or give --max-bytes-per-step",
        )
    return most_mb * 1e6 / steps


def unmet(made: Made) -> RunError:
    """Return the error for goals that no setting meets, with the nearest setting."""
    one, other = made.choice.candidate, made.choice.unmeasured
    missed = [goal for goal in made.goals if goal.excess(one)]
    reached = ", ".join(_reached(goal, one) for goal in missed)
    remedy = "loosen a goal, choose another --batch-size, or measure a faster link"
    if other is not None:
        how = " by `evaluate`: measure it, then add --study" if other.plan.gradient_precision else ""
        remedy += f"; {setting_text(other)} would keep the goals, but its accuracy was not measured{how}"
    return RunError(
        f"no setting of known accuracy keeps {' and '.join(goal.option for goal in made.goals)}; the nearest, "
        f"{setting_text(one)}, has {reached}",
        " and ".join(f"{goal.option}: {_limit(goal)}" for goal in missed),
        remedy,
    )


def setting_text(one: Candidate) -> str:
    """Return a setting as `evaluate` takes it, and what is frozen."""
    plan, ratio = one.plan, one.ratio
    at = f"{ratio.xi:g}" if ratio.xi is not None else f"{ratio.batch:g}x{ratio.token:g}"
    method = "none" if at in ("1", "1x1") else f"adc@{at}"
    down = plan.gradient_precision or plan.precision
    frozen = ", trunk frozen" if plan.gradient_precision is None else ""
    frozen = frozen or (f", blocks 1..{plan.freeze_first} frozen" if plan.freeze_first else "")
    return f"{method}/{plan.precision}:{down}{frozen}"


def _limit(goal: Goal) -> str:
    number = f"{goal.limit:+.3g} points" if goal.quantity == "accuracy" else _spelt(goal, goal.limit)
    return f"at {'least' if goal.quantity == 'accuracy' else 'most'} {number}"


def _reached(goal: Goal, one: Candidate) -> str:
    if goal.quantity in ("accuracy", "ssim"):
        found = one.accuracy if goal.quantity == "accuracy" else one.ssim
        return f"no measured {goal.quantity}" if found is None else _spelt(goal, found.value)
    return _spelt(goal, one.prediction.seconds if goal.quantity == "seconds" else one.bytes)


def _spelt(goal: Goal, value: float) -> str:
    texts = {
        "seconds": f"{value:.3g} s a step",
        "bytes": f"{value:,.0f} bytes a step",
        "accuracy": f"{value:+.1f} points",
        "ssim": f"SSIM {value:.2f}",
    }
    return texts[goal.quantity]


def plan_bytes(made: Made, inputs: PlanInputs, words: Sequence[str], training: PlannedTraining) -> bytes:
    """Return plan.json."""
    images = made.task.batch_size
    return json_bytes(
        PlanFile(
            format=PLAN_FORMAT,
            version=__version__,
            inputs=inputs.digests,
            trainer=inputs.trainer,
            compute_known=made.compute_known,
            goals=[PlannedGoal(*goal) for goal in made.goals],
            chosen=planned_step(made.choice.candidate, images),
            why=made.choice.reason,
            serve=list(words),
            front=[planned_step(one, images) for one in made.front],
            other_splits=[planned_step(one, images) for one in made.splits],
            training=training,
        )
    )
