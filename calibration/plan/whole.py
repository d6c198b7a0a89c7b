"""Bytes and time of a whole training on the planned link: as chosen, with a trunk that freezes, and the pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from adc_edge.calibration.plan.make import Made
from adc_edge.calibration.plan.result import setting_text
from adc_edge.codec.by_epoch import PrecisionsByEpoch
from adc_edge.planning.candidates import known_precisions
from adc_edge.planning.plan_file import PlannedTraining, PlannedWay
from adc_edge.planning.step_model import StepPlan, predict, served_seconds

FREEZE_AFTER, SENT_AFTER = 3, 2  # epochs that are offered: E of --freeze-after, K of --send-epochs
COARSE_AFTER, COARSE_SENT = 2, 2  # the same in fewer bytes, as docs/results/ten-epochs.md has measured it
COARSE = PrecisionsByEpoch(up=("pca0.5", "pca0.5", "pca1"), down=("pca0.125",))
_FROZEN_SENT = 1  # K of --send-epochs, of a trunk that is frozen from the start


class TrainingWay(NamedTuple):
    """A way to make all epochs of a training: so many with a trunk that trains, sent frozen, and by the trainer alone.

    ``options`` are added to the chosen command of `serve`, ``suffix`` to its setting in `evaluate`. ``precisions``
    take the place of its own in both.
    """

    options: tuple[str, ...]
    suffix: str
    trained: int
    frozen: int
    alone: int
    precisions: PrecisionsByEpoch | None = None

    def plans(self, chosen: StepPlan) -> Iterator[StepPlan]:
        """Yield the plan of a step in each epoch that the device sends."""
        for epoch in range(self.trained + self.frozen):
            up, down = chosen.precision, chosen.gradient_precision
            if self.precisions is not None:
                up, down = self.precisions.of_epoch(epoch)
            yield chosen._replace(precision=up, gradient_precision=down if epoch < self.trained else None)

    def setting(self, chosen: str) -> str:
        """Return the setting of `evaluate`, of the chosen one."""
        method = chosen.partition("/")[0]
        own = chosen if self.precisions is None else f"{method}/{':'.join(self.precisions.texts)}"
        return f"{own}{self.suffix}"


def ways(made: Made, epochs: int) -> list[TrainingWay]:
    """Return the chosen setting as it is, and what else `serve` offers in so many epochs."""
    sent = ("--send-epochs",)
    if made.choice.candidate.plan.gradient_precision is None:
        found = [TrainingWay((), "+freeze0", 0, epochs, 0)]
        alone = TrainingWay((*sent, str(_FROZEN_SENT)), "+freeze0", 0, _FROZEN_SENT, epochs - _FROZEN_SENT)
    else:
        found = [TrainingWay((), "", epochs, 0, 0)]
        offered = [_late(FREEZE_AFTER, SENT_AFTER, epochs)]
        if {*COARSE.up, *COARSE.down} <= known_precisions(made.task.profile):
            offered.append(_late(COARSE_AFTER, COARSE_SENT, epochs, COARSE))
        found += [way for way in offered if way.alone > 0]
        options = ("--trunk", "frozen", *sent, str(_FROZEN_SENT))
        alone = TrainingWay(options, "+freeze0", 0, _FROZEN_SENT, epochs - _FROZEN_SENT)
    return [*found, alone] if alone.alone > 0 else found


def _late(trained: int, sent: int, epochs: int, precisions: PrecisionsByEpoch | None = None) -> TrainingWay:
    """A trunk that trains first, then sends each image so often, and the trainer does the other epochs."""
    options = ["--freeze-after", str(trained), "--send-epochs", str(sent)]
    if precisions is not None:
        up, down = precisions.texts
        options += ["--precision", up, "--gradient-precision", down]
    return TrainingWay(tuple(options), f"+freeze{trained}x{sent}", trained, sent, epochs - trained - sent, precisions)


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
    found = [_planned(way, made, steps_per_epoch) for way in ways(made, epochs)]
    return PlannedTraining(epochs, steps_per_epoch, found, dict(pictures))


def _planned(way: TrainingWay, made: Made, steps: int | None) -> PlannedWay:
    plans = list(way.plans(made.choice.candidate.plan))
    predicted = {plan: predict(plan, made.task.link, made.task.profile) for plan in set(plans)}
    sent = [predicted[plan] for plan in plans]
    up, down = sum(one.bytes_up for one in sent), sum(one.bytes_down for one in sent)
    images, trainer = made.task.batch_size, made.task.profile.trainer
    seconds = None if steps is None else steps * sum(one.seconds for one in sent)
    alone = None
    if steps is not None and trainer is not None and way.alone:
        alone = steps * way.alone * served_seconds(plans[-1], sent[-1].costs, trainer)
    return PlannedWay(list(way.options), way.alone, up / images, down / images, seconds, alone)


def settings_to_measure(made: Made, epochs: int) -> Iterator[str]:
    """Yield each way as a setting of `evaluate`.

    None where `evaluate` has none, for a trunk with frozen blocks; nor for a trunk that is frozen from the start: all
    its ways are one setting.
    """
    plan = made.choice.candidate.plan
    if not plan.freeze_first and plan.gradient_precision is not None:
        chosen = setting_text(made.choice.candidate).partition(",")[0]
        yield from dict.fromkeys(way.setting(chosen) for way in ways(made, epochs))
