"""The lines that `serve` logs before a run: where and what it trains, what is sent, and how many bytes that takes.

Each line is a label of up to seven letters and a text, short enough for a terminal of 80 columns beside time and level.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rich.filesize import decimal

from adc_edge.defaults import Precision
from adc_edge.edge_runtime.choosing.precisions import (
    StepPrecisions,
    precisions_of,
    sent_bytes,
)
from adc_edge.edge_runtime.engines.base import Engine
from adc_edge.edge_runtime.settings import ServeSettings, StepSettings
from adc_edge.method.ratio import Shape
from adc_edge.planning.message_sizes import evaluation_messages, sizes_of_messages
from adc_edge.storage.bundle import Manifest


class PlannedBytes(NamedTuple):
    """Bytes that a run will send, in advance and therefore nearly: framing, repeats and noise are not known yet.

    ``training`` is of all steps, both ways, ``uncompressed`` what they would take in fp32, without gradients for a
    trunk that is frozen. ``evaluation`` is of one, which is sent in ``evaluated``.
    """

    training: int
    uncompressed: int
    evaluation: int
    evaluated: Precision
    evaluations: int

    @property
    def share(self) -> float:
        """Share of the uncompressed bytes that all steps send; 0 if there are none."""
        return self.training / self.uncompressed if self.uncompressed else 0.0

    @property
    def all_evaluations(self) -> int:
        """Bytes of all evaluations."""
        return self.evaluations * self.evaluation


def planned_bytes(settings: ServeSettings, manifest: Manifest, step: StepSettings, test_images: int) -> PlannedBytes:
    """Return the bytes of a whole run, whose evaluations take ``test_images`` each; ``step`` is any of its steps."""
    shape, frozen = step.shape, settings.trunk == "frozen"
    learning = 0 if frozen else step.planned_steps
    learning = learning if step.frozen_from is None else min(learning, step.frozen_from)
    one_way = 4 * shape.images * shape.tokens * manifest.dim
    at_once, chosen = min(shape.images, test_images), settings.evaluate_precision  # as `Serve` loads test images
    sent = evaluation_messages(manifest.tokens, manifest.dim, test_images, at_once, chosen, step.lasting_precision)
    return PlannedBytes(
        training=sent_bytes(step, frozen),
        uncompressed=step.micro_batches * one_way * (step.planned_steps + learning),
        evaluation=sum(sent.body_bytes),
        evaluated=sent.precision,
        evaluations=_evaluations(settings.evaluate_every, step.planned_steps),
    )


def _evaluations(every: int, steps: int) -> int:
    """Number of evaluations: every so many steps, and at the end."""
    return 1 + (max(0, steps - 1) // every if every else 0)


def banner(
    settings: ServeSettings,
    manifest: Manifest,
    step: StepSettings,
    test_images: int,
    congestion: str | None,
    device: str = "cpu",
) -> Iterator[str]:
    """Yield the lines before a run, but for that of the engine, which may not be chosen yet.

    Args:
        settings: of the run.
        manifest: the bundle's.
        step: what each step sends.
        test_images: images of an evaluation.
        congestion: the congestion control that the kernel sends by; None: it is not known.
        device: where a trunk that learns is trained.
    """
    sending = f", sending by {congestion}" if congestion else ""
    yield f"trainer  {settings.trainer}{', encrypted' if settings.keys else ''}{sending}"
    yield f"model    {manifest.model}, cut after block {manifest.split} of {manifest.depth}"
    until = "" if step.frozen_from is None else f", until step {step.frozen_from}; then frozen"
    yield f"trunk    {_trunk(settings, manifest, device)}{until}"
    if step.micro_batches > 1:
        yield f"batch    {step.micro_batches} messages of {step.shape.images} images, {step.window} in flight"
    yield f"sends    {kept_in_words(step.shape)}"
    yield from _byte_lines(planned_bytes(settings, manifest, step, test_images), settings, step, test_images)
    if settings.augment != "none":
        yield f"augment  {', '.join(settings.augment.split(','))}"
    if settings.seed:
        yield f"seed     {settings.seed}"
    if settings.noise.any:
        yield f"noise    {settings.noise.in_words}"


def engine_line(engine: Engine, why: str = "") -> str:
    """Return the line of the engine that computes; ``why`` it was chosen, by default what the engine tells of it."""
    where, _, reason = engine.description.partition(": ")
    because = why or reason
    return f"engine   {engine.name} on {where}{f' ({because})' if because else ''}"


def kept_in_words(shape: Shape) -> str:
    """Return what a message sends of its images and tokens: ξ, T and k."""
    if shape.xi == 1.0:
        return f"nothing merged or dropped: T={shape.clusters} images, k={shape.kept} tokens"
    merged = shape.clusters < shape.images
    images = f"{shape.images} images merged to T={shape.clusters}" if merged else f"all T={shape.clusters} images"
    tokens = f"k={shape.kept} of {shape.tokens}" if shape.kept < shape.tokens else f"all k={shape.kept}"
    return f"ξ={shape.xi:.3f}: {images}, {tokens} tokens"


def _trunk(settings: ServeSettings, manifest: Manifest, device: str) -> str:
    if settings.trunk == "frozen":
        return "frozen"
    if settings.freeze_first:
        first = settings.freeze_first + 1
        return f"blocks 1 to {first - 1} frozen, {first} to {manifest.split} trained here, on {device}"
    return f"blocks 1 to {manifest.split} trained here, on {device}"


def _byte_lines(planned: PlannedBytes, settings: ServeSettings, step: StepSettings, test_images: int) -> Iterator[str]:
    first, *later = precisions_of(step, settings.trunk == "frozen")
    yield f"step     {_step_in_words(step, first)}"
    for then in later:
        yield f"then     {_step_in_words(step, then)}, from {_first_in_words(step, then.first_step)} on"
    yield f"share    {percent(planned.share)} of the uncompressed bytes"
    often = f"every {settings.evaluate_every} steps, " if settings.evaluate_every else ""
    yield f"eval     {often}at the end: {test_images} images, {decimal(planned.evaluation)} up"
    training, judging = planned.training, planned.all_evaluations
    if training + judging:
        share = percent(judging / (training + judging))
        evaluations = f"evaluations {decimal(judging)} ({share}) in {planned.evaluated}"
        yield f"total    training {decimal(training)}, {evaluations}"


def _step_in_words(step: StepSettings, then: StepPrecisions) -> str:
    sizes = sizes_of_messages(step.shape, step.dim, (then.up, then.down))
    sent, answered = (decimal(step.micro_batches * size) for size in sizes)
    return f"{sent} up in {then.up}, {answered} down{f' in {then.down}' if then.down else ''}"


def _first_in_words(step: StepSettings, first: int) -> str:
    """Return the epoch that begins with the step ``first``; or else that step, counted from 0."""
    if step.by_epoch is None or first % step.steps_per_epoch:  # only lists need to know the steps of an epoch
        return f"step {first}"
    return f"epoch {first // step.steps_per_epoch + 1}"


def percent(share: float) -> str:
    """Return a share in per cent, with two digits where it is small."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
