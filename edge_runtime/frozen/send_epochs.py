"""``serve --send-epochs K``: the device sends K epochs, and the trainer does the other steps of the run without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET, UnsetType

from adc_edge.edge_runtime.choosing.precisions import mean_bytes_up
from adc_edge.errors import RefusedError, SettingError
from adc_edge.planning.message_sizes import evaluation_messages
from adc_edge.storage.position import Position
from adc_edge.wire.fleet_messages import SentSteps
from adc_edge.wire.messages import Hello, Welcome

if TYPE_CHECKING:
    from adc_edge.edge_runtime.choosing.cut import RunCut
    from adc_edge.edge_runtime.frozen.length import RunLength
    from adc_edge.edge_runtime.settings import ServeSettings
    from adc_edge.storage.bundle import Manifest

UNPARTED = "the trainer did not acknowledge that it has all that this device sends"


def check_send_epochs(settings: ServeSettings) -> None:
    """Raise SettingError for a run that cannot go on without its device, or with a trunk that is frozen on the way."""
    epochs, late = settings.send_epochs, settings.freeze_after
    if not epochs and late is None:
        return
    wishes = {
        "--trunk train": (
            late is None and settings.trunk != "frozen",
            "a trunk that does not change",
            "add --trunk frozen, or --freeze-after E for a trunk that learns for E epochs first",
        ),
        "--trunk frozen": (
            late is not None and settings.trunk == "frozen",
            "a trunk that learns first",
            "leave one of them out: a frozen trunk is one that is frozen after 0 epochs",
        ),
        f"--augment {settings.augment}": (
            late is None and epochs == 1 and settings.augment not in ("", "none"),
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
    given = f"--freeze-after {late:g}" if late is not None else f"--send-epochs {epochs}"
    for wish, (refused, expected, remedy) in wishes.items():
        if refused:
            raise SettingError(f"{given} with {wish}", expected, remedy)


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
    steps, by_epoch = range(length.first_kept, length.sent), settings.by_epoch(manifest)
    up = mean_bytes_up(by_epoch, steps, len(steps) // settings.send_epochs, cut.shape, manifest.dim)
    images = min(test_images, settings.evaluate_images or test_images)
    at_once = min(cut.shape.images, test_images)
    evaluation = evaluation_messages(manifest.tokens, manifest.dim, images, at_once, settings.evaluate_precision)
    kept_bytes = len(steps) * cut.micro_batches * up + sum(evaluation.body_bytes)
    return SentSteps(length.sent, kept_bytes, settings.evaluate_every, length.first_kept)


def check_keeps(hello: Hello, welcome: Welcome) -> None:
    """Raise RefusedError if the device sends its images once, and the trainer does not go on as the device wishes."""
    if not hello.sends:
        return
    if welcome.stored is not UNSET and (welcome.keeps_from or 0) != hello.sends.first:
        raise RefusedError(
            "version",
            f"a trainer of version {welcome.trainer}, which would learn again from what a trunk sent while it learned "
            "(--freeze-after with --send-epochs)",
            "version 0.14 or later",
            "upgrade the trainer, or leave --send-epochs out",
        )
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
