"""Bytes and time of a whole training on the planned link: as chosen, with a trunk that freezes, and the pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from adc_edge.calibration.plan.make import Made
from adc_edge.calibration.plan.result import setting_text
from adc_edge.planning.choice import Candidate
from adc_edge.planning.plan_file import PlannedTraining, PlannedWay
from adc_edge.planning.step_model import predict, served_seconds

FREEZE_AFTER, SENT_AFTER = 3, 2  # epochs that are offered: E of --freeze-after, K of --send-epochs
_FROZEN_SENT = 1  # K of --send-epochs, of a trunk that is frozen from the start


class TrainingWay(NamedTuple):
    """A way to make all epochs of a training: so many with a trunk that trains, sent frozen, and by the trainer alone.

    ``options`` are added to the chosen command of `serve`, ``suffix`` to its setting in `evaluate`.
    """

    options: tuple[str, ...]
    suffix: str
    trained: int
    frozen: int
    alone: int


def ways(made: Made, epochs: int) -> list[TrainingWay]:
    """Return the chosen setting as it is, and what else `serve` offers in so many epochs."""
    sent = ("--send-epochs",)
    if made.choice.candidate.plan.gradient_precision is None:
        found = [TrainingWay((), "+freeze0", 0, epochs, 0)]
        alone = TrainingWay((*sent, str(_FROZEN_SENT)), "+freeze0", 0, _FROZEN_SENT, epochs - _FROZEN_SENT)
    else:
        found = [TrainingWay((), "", epochs, 0, 0)]
        left = epochs - FREEZE_AFTER - SENT_AFTER
        late = ("--freeze-after", str(FREEZE_AFTER), *sent, str(SENT_AFTER))
        suffix = f"+freeze{FREEZE_AFTER}x{SENT_AFTER}"
        found += [TrainingWay(late, suffix, FREEZE_AFTER, SENT_AFTER, left)] if left > 0 else []
        options = ("--trunk", "frozen", *sent, str(_FROZEN_SENT))
        alone = TrainingWay(options, "+freeze0", 0, _FROZEN_SENT, epochs - _FROZEN_SENT)
    return [*found, alone] if alone.alone > 0 else found


def planned_training(
    made: Made, epochs: int, steps_per_epoch: int | None, pictures: Mapping[str, float]
) -> PlannedTraining:
    """Return what each way takes.

    Args:
        made: the plan.
        epochs: of the training.
        steps_per_epoch: None: the number of images is not known, so bytes are those of an image, and no time is.
        pictures: bytes of an image by name of the kind of picture.
    """
    trains, frozen = made.choice.candidate, _frozen(made)
    found = [_planned(way, made, trains, frozen, steps_per_epoch) for way in ways(made, epochs)]
    return PlannedTraining(epochs, steps_per_epoch, found, dict(pictures))


def _frozen(made: Made) -> Candidate:
    """The chosen setting with a frozen trunk."""
    one = made.choice.candidate
    plan = one.plan._replace(gradient_precision=None)
    return one._replace(plan=plan, prediction=predict(plan, made.task.link, made.task.profile))


def _planned(way: TrainingWay, made: Made, trains: Candidate, frozen: Candidate, steps: int | None) -> PlannedWay:
    parts = ((way.trained, trains.prediction), (way.frozen, frozen.prediction))
    up, down = (sum(epochs * getattr(one, f"bytes_{side}") for epochs, one in parts) for side in ("up", "down"))
    images, trainer = made.task.batch_size, made.task.profile.trainer
    seconds = None if steps is None else steps * sum(epochs * one.seconds for epochs, one in parts)
    alone = None
    if steps is not None and trainer is not None and way.alone:
        alone = steps * way.alone * served_seconds(frozen.plan, frozen.prediction.costs, trainer)
    return PlannedWay(list(way.options), way.alone, up / images, down / images, seconds, alone)


def settings_to_measure(made: Made, epochs: int) -> Iterator[str]:
    """Yield each way as a setting of `evaluate`.

    None where `evaluate` has none, for a trunk with frozen blocks; nor for a trunk that is frozen from the start: all
    its ways are one setting.
    """
    plan = made.choice.candidate.plan
    if not plan.freeze_first and plan.gradient_precision is not None:
        chosen = setting_text(made.choice.candidate).partition(",")[0]
        yield from dict.fromkeys(f"{chosen}{way.suffix}" for way in ways(made, epochs))
