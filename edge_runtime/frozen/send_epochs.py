"""``serve --send-epochs K``: the device sends K epochs, and the trainer does the other steps of the run without it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from adc_edge.errors import RefusedError, SettingError
from adc_edge.planning.message_sizes import evaluation_messages, sizes_of_messages
from adc_edge.storage.position import Position
from adc_edge.wire.fleet_messages import SentSteps
from adc_edge.wire.messages import Hello, Welcome

if TYPE_CHECKING:
    from adc_edge.edge_runtime.choosing.cut import RunCut
    from adc_edge.edge_runtime.settings import ServeSettings
    from adc_edge.storage.bundle import Manifest

UNPARTED = "the trainer did not acknowledge that it has all that this device sends"

logger = logging.getLogger(__name__)


class RunLength(msgspec.Struct, frozen=True):
    """Steps of a run: those that are ``planned``, and those of them that the device sends."""

    planned: int
    sent: int

    @property
    def alone(self) -> int:
        """Steps that the trainer does alone."""
        return self.planned - self.sent

    def report(self) -> dict[str, int]:
        """Return the report's entry about them, if there are any."""
        return {"steps_alone": self.alone} if self.alone else {}

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


def check_send_epochs(settings: ServeSettings) -> None:
    """Raise SettingError for a run that cannot go on without its device."""
    epochs = settings.send_epochs
    if not epochs:
        return
    wishes = {
        "--trunk train": (settings.trunk != "frozen", "a trunk that does not change", "add --trunk frozen"),
        f"--augment {settings.augment}": (
            epochs == 1 and settings.augment not in ("", "none"),
            "no augmentation: the trainer would see one view of each image, again and again",
            "leave --augment out, or send several views of each: --send-epochs 2 or more",
        ),
        "--plan": (settings.plan is not None, "settings that stay", "leave --plan out"),
        "--keep-best": (settings.keep_best, "a run that ends with its last step", "leave --keep-best out"),
        f"--stop-after {settings.stop_after}": (
            settings.stop_after > 0,
            "a run whose length is known",
            "leave --stop-after out",
        ),
    }
    for wish, (given, expected, remedy) in wishes.items():
        if given:
            raise SettingError(f"--send-epochs {epochs} with {wish}", expected, remedy)


def run_length(settings: ServeSettings, steps_per_epoch: int) -> RunLength:
    """Return the steps of a run; raises SettingError if the device sends all of them, and is not to."""
    planned = settings.total_steps(steps_per_epoch)
    sent = settings.send_epochs * steps_per_epoch
    if not sent:
        return RunLength(planned, planned)
    if planned <= sent:
        raise SettingError(
            f"--send-epochs {settings.send_epochs} of a run of {planned} steps, and {sent} are sent",
            "steps that are left for the trainer",
            f"choose --epochs above {settings.send_epochs}, or leave --send-epochs out",
        )
    return RunLength(planned, sent)


def sent_steps(
    settings: ServeSettings, cut: RunCut, manifest: Manifest, length: RunLength, test_images: int
) -> SentSteps | UnsetType:
    """Return the wish that the Hello tells; UNSET: the device sends every step.

    Args:
        settings: of the run.
        cut: of its steps.
        manifest: the bundle's.
        length: of the run.
        test_images: of the data.
    """
    if not settings.send_epochs:
        return UNSET
    up, _ = sizes_of_messages(cut.shape, manifest.dim, (settings.precisions(manifest)[0], None))
    images = min(test_images, settings.evaluate_images or test_images)
    at_once = min(cut.shape.images, test_images)
    evaluation = evaluation_messages(manifest.tokens, manifest.dim, images, at_once, settings.evaluate_precision)
    sent_bytes = length.sent * cut.micro_batches * up + sum(evaluation.body_bytes)
    return SentSteps(length.sent, sent_bytes, settings.evaluate_every)


def check_keeps(hello: Hello, welcome: Welcome) -> None:
    """Raise RefusedError if the device sends its images once, and the trainer does not go on as the device wishes."""
    if not hello.sends:
        return
    if welcome.stored is UNSET:
        raise RefusedError(
            "version",
            f"a trainer of version {welcome.trainer}, which keeps no activations (--send-epochs)",
            "version 0.13 or later",
            "upgrade the trainer, or leave --send-epochs out",
        )
    if welcome.stored == hello.sends.steps and hello.steps < welcome.applied:
        raise RefusedError(
            "order",
            f"a run of {hello.steps} steps, which has come to step {welcome.applied} without this device",
            f"{welcome.applied} steps or more: no step is taken back",
            "choose more --epochs or --steps, or start both sides over with --fresh",
        )


def where_trainer_stands(sends: SentSteps | UnsetType, welcome: Welcome) -> Position:
    """Return the first position that the trainer needs from the device.

    A trainer that has all that the device sends may have come back older than its end. It does those steps itself,
    and refuses them from the device.
    """
    learned = Position(welcome.applied, welcome.learned)
    return max(learned, Position(sends.steps)) if sends and welcome.stored == sends.steps else learned
