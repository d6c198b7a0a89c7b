"""The steps of a run: all of them, those that the device sends, and those in which its trunk learns."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from adc_edge.errors import CheckpointError, SettingError
from adc_edge.files import json_bytes
from adc_edge.storage.run_dir import has_begun_in
from adc_edge.storage.run_settings import SETTINGS, read_settings

if TYPE_CHECKING:
    from adc_edge.data.loader import Loader
    from adc_edge.edge_runtime.settings import ServeSettings

logger = logging.getLogger(__name__)

_FROZEN_FROM, _SENT = "frozen_from", "sent_steps"  # in the settings that a resumed run must share


class RunLength(msgspec.Struct, frozen=True):
    """Steps of a run: those that are ``planned``, those of them that are ``sent``, and those in which a trunk learns.

    ``frozen_from`` is the step from which on a trunk that has learned is frozen; None: it learns in all steps or none.
    """

    planned: int
    sent: int
    frozen_from: int | None = None

    @property
    def alone(self) -> int:
        """Steps that the trainer does alone."""
        return self.planned - self.sent

    @property
    def first_kept(self) -> int:
        """The first step whose messages the trainer keeps, if it does steps alone."""
        return self.frozen_from or 0

    def trunk_steps(self, step: int) -> int:
        """Return the steps that a trunk which learns has learned before ``step``."""
        return step if self.frozen_from is None else min(step, self.frozen_from)

    def is_final(self, step: int) -> bool:
        """Whether a trunk that has learned stays as it is from ``step`` on."""
        return is_frozen(self.frozen_from, step)

    def report(self) -> dict[str, int]:
        """Return the report's entries about them, if there are any."""
        late = {} if self.frozen_from is None else {"frozen_from": self.frozen_from}
        return late | ({"steps_alone": self.alone} if self.alone else {})

    def foretell(self) -> None:
        """Log what will be sent."""
        if self.alone:
            logger.info("once     %d of %d steps are sent; the trainer does the others alone", self.sent, self.planned)

    def announce(self, trainer_step: int) -> None:
        """Log that everything is sent, and what is left for a trainer that has come to ``trainer_step``."""
        if not self.alone:
            return
        if trainer_step >= self.planned:
            logger.info("all is sent, and the trainer has done all %d steps: nothing is left to do", self.planned)
            return
        left = self.planned - trainer_step
        logger.info("all is sent: the trainer does the other %d steps, up to %d, alone", left, self.planned)
        logger.info("this device may be switched off; the same command tells where the trainer stands")


def is_frozen(frozen_from: int | None, step: int) -> bool:
    """Return whether a trunk that is frozen from a step on is so in ``step``; None: it learns in all steps or none."""
    return frozen_from is not None and step >= frozen_from


def run_length(settings: ServeSettings, steps_per_epoch: int) -> RunLength:
    """Return the steps of a run.

    Raises:
        SettingError: no step is left for the trainer alone, or for a frozen trunk; or the trunk never learns.
    """
    planned = settings.total_steps(steps_per_epoch)
    frozen_from = None if settings.freeze_after is None else round(settings.freeze_after * steps_per_epoch)
    if frozen_from is not None:
        _check_freeze(settings, frozen_from, planned)
    sent = (frozen_from or 0) + settings.send_epochs * steps_per_epoch
    if not settings.send_epochs:
        return RunLength(planned, planned, frozen_from)
    if planned <= sent:
        late = "" if frozen_from is None else f" after step {frozen_from} (--freeze-after)"
        least = settings.send_epochs + (settings.freeze_after or 0)
        raise SettingError(
            f"--send-epochs {settings.send_epochs}{late} of a run of {planned} steps, and {sent} are sent",
            "steps that are left for the trainer",
            f"choose --epochs above {least:g}, or leave --send-epochs out",
        )
    return RunLength(planned, sent, frozen_from)


def _check_freeze(settings: ServeSettings, frozen_from: int, planned: int) -> None:
    """Raise SettingError unless the trunk learns for a while, and is frozen then."""
    after = f"--freeze-after {settings.freeze_after:g}"
    if not frozen_from:
        raise SettingError(
            f"{after}: the trunk learns in no step",
            "one step at least",
            "choose more epochs, or a trunk that never learns: --trunk frozen",
        )
    if frozen_from >= planned:
        raise SettingError(
            f"{after} of a run of {planned} steps: the trunk is frozen from step {frozen_from} on",
            "steps that are left for a frozen trunk",
            f"choose --epochs above {settings.freeze_after:g}, or leave --freeze-after out",
        )


def with_steps(settings: ServeSettings, fixed: dict[str, Any], length: RunLength) -> dict[str, Any]:
    """Return the settings that a resumed run must share, with the steps that follow from the number of images.

    A run of a version that did not keep these steps goes on without them.

    Args:
        settings: of the run.
        fixed: the other settings that it must share.
        length: as the data of now have it.

    Raises:
        CheckpointError: the run in ``--run`` began with other steps, and nothing else of it has changed.
    """
    steps = {} if length.frozen_from is None else {_FROZEN_FROM: length.frozen_from}
    steps |= {_SENT: length.sent} if settings.send_epochs else {}
    run = settings.run
    if not steps or run is None or settings.fresh or not (run / SETTINGS).exists() or not has_begun_in(run):
        return fixed | steps
    old = read_settings(run / SETTINGS).fixed
    before = {name: old[name] for name in steps if name in old}
    if before not in ({}, steps) and old == json.loads(json_bytes(fixed | before)):
        raise _moved(settings, run, before, steps)
    return fixed | (steps if before else {})


def _moved(settings: ServeSettings, run: Path, before: Mapping[str, int], now: Mapping[str, int]) -> CheckpointError:
    """The refusal of a run whose data have another number of images than when it began."""
    begun = [f"sends {before[_SENT]} steps (--send-epochs {settings.send_epochs})"] if _SENT in before else []
    then = [f"{now[_SENT]} steps"] if _SENT in before else []
    if _FROZEN_FROM in before:
        begun.insert(0, f"freezes its trunk at step {before[_FROZEN_FROM]} (--freeze-after {settings.freeze_after:g})")
        then.insert(0, f"step {now[_FROZEN_FROM]}")
    return CheckpointError(
        f"{run} holds a run that {' and '.join(begun)}, and with the data of now it would be {' and '.join(then)}",
        "the number of training images that the run began with: the steps of an epoch follow from it",
        f"restore the images of {settings.data}, or start both sides over with --fresh",
    )


def begin_epochs_anew(loader: Loader, settings: ServeSettings, length: RunLength) -> None:
    """Have a whole epoch begin where the trunk is frozen; its images are plain if each of them is sent once."""
    if length.frozen_from is not None:
        loader.begin_anew(length.frozen_from, augmented=settings.send_epochs != 1)
