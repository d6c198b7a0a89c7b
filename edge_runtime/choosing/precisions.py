"""The precisions of a run's steps where they change by epoch: those of a step, and what that means in bytes.

A step's precisions are a function of its number alone, and each message tells its own. So nothing of them is kept, and
a process that goes on after a kill sends what the one before it would have sent.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec

from adc_edge.codec.by_epoch import PrecisionsByEpoch
from adc_edge.codec.precision import Precision, encoded_bytes
from adc_edge.edge_runtime.settings import StepSettings
from adc_edge.method.ratio import Shape
from adc_edge.planning.message_sizes import sizes_of_messages


class _Images(Protocol):
    """The training images, as a loader has them."""

    @property
    def steps_per_epoch(self) -> int: ...


def with_epochs(settings: StepSettings, by_epoch: PrecisionsByEpoch, images: _Images) -> StepSettings:
    """Return the settings with the precisions of each epoch of the images, as they are if all epochs have the same."""
    if not by_epoch.changes:
        return settings
    return msgspec.structs.replace(settings, by_epoch=by_epoch, steps_per_epoch=images.steps_per_epoch)


def settings_of_step(settings: StepSettings, step: int) -> StepSettings:
    """Return the settings with the precisions of a step; those after the last step have its own."""
    if settings.by_epoch is None:
        return settings
    last = max(0, settings.planned_steps - 1)
    up, down = settings.by_epoch.of_step(min(step, last), settings.steps_per_epoch)
    return msgspec.structs.replace(settings, precision=up, gradient_precision=down)


def all_precisions(settings: StepSettings, frozen: bool) -> set[Precision]:
    """Return the precisions of all epochs of a run that does not follow its link.

    Args:
        settings: of its steps.
        frozen: whether no gradients come.
    """
    listed = settings.by_epoch
    up, down = (listed.up, listed.down) if listed else ((settings.precision,), (settings.gradient_precision,))
    return {*up, *(() if frozen else down)}


def largest_precision(by_epoch: PrecisionsByEpoch, shape: Shape, dim: int) -> Precision:
    """Return the precision of the largest messages that go up.

    Args:
        by_epoch: the precisions.
        shape: of a micro-batch.
        dim: channels of an activation.
    """
    sent = (shape.clusters, shape.kept, dim)
    return max(by_epoch.up, key=lambda precision: encoded_bytes(sent, precision))


def mean_bytes_up(by_epoch: PrecisionsByEpoch, steps: range, steps_per_epoch: int, shape: Shape, dim: int) -> int:
    """Return the mean bytes of a micro-batch's message in some steps, as a whole number.

    Args:
        by_epoch: the precisions.
        steps: that are sent, at least one.
        steps_per_epoch: of the data.
        shape: of a micro-batch.
        dim: channels of an activation.
    """
    sizes = {precision: sizes_of_messages(shape, dim, (precision, None))[0] for precision in by_epoch.up}
    return round(sum(sizes[by_epoch.of_step(step, steps_per_epoch)[0]] for step in steps) / len(steps))


def reported(by_epoch: PrecisionsByEpoch) -> dict[str, list[Precision]]:
    """Return the report's entries about precisions that change by epoch, if they do."""
    if not by_epoch.changes:
        return {}
    return {"precision_by_epoch": list(by_epoch.up), "gradient_precision_by_epoch": list(by_epoch.down)}


class StepPrecisions(NamedTuple):
    """The precisions of activations (up) and gradients (down) from a step on; ``down`` None: no gradients come."""

    first_step: int
    up: Precision
    down: Precision | None


def precisions_of(settings: StepSettings, frozen: bool) -> list[StepPrecisions]:
    """Return the precisions of a run's first step, and those of each step from which on they are others.

    Args:
        settings: of a step.
        frozen: the trunk never learns.
    """
    epochs = 1 if settings.by_epoch is None else len(settings.by_epoch.pairs())
    changing = {epoch * settings.steps_per_epoch for epoch in range(1, epochs)}
    if settings.frozen_from is not None:
        changing.add(settings.frozen_from)
    found: list[StepPrecisions] = []
    for step in [0, *sorted(step for step in changing if step < settings.planned_steps)]:
        sent = settings_of_step(settings, step)
        down = None if frozen or settings.is_frozen_at(step) else sent.gradient_precision
        if not found or found[-1][1:] != (sent.precision, down):
            found.append(StepPrecisions(step, sent.precision, down))
    return found


def sent_bytes(settings: StepSettings, frozen: bool) -> int:
    """Return the bytes of all steps of a run, both ways.

    Args:
        settings: of a step.
        frozen: the trunk never learns.
    """
    pieces = precisions_of(settings, frozen)
    ends = [*(piece.first_step for piece in pieces[1:]), settings.planned_steps]
    return settings.micro_batches * sum(
        (end - piece.first_step) * sum(sizes_of_messages(settings.shape, settings.dim, (piece.up, piece.down)))
        for piece, end in zip(pieces, ends, strict=True)
    )
