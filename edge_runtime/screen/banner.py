"""The lines that `serve` logs before a run: where and what it trains, what is sent, and how many bytes that takes.

Each line is a label of up to seven letters and a text, short enough for a terminal of 80 columns beside time and level.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rich.filesize import decimal

from adc_edge.codec.precision import encoded_bytes
from adc_edge.edge_runtime.engines.base import Engine
from adc_edge.edge_runtime.settings import ServeSettings, StepSettings
from adc_edge.method.ratio import Shape
from adc_edge.planning.message_sizes import sizes_of_messages
from adc_edge.storage.bundle import Manifest
from adc_edge.wire.messages import LABEL_BYTES


class PlannedBytes(NamedTuple):
    """Bytes that a run will send, in advance and therefore nearly: framing, repeats and noise are not known yet.

    ``up`` and ``down`` are of a step, ``uncompressed`` is what both would take in fp32, ``evaluation`` is of one.
    """

    up: int
    down: int
    uncompressed: int
    evaluation: int
    evaluations: int
    steps: int

    @property
    def share(self) -> float:
        """Share of the uncompressed bytes that a step sends."""
        return (self.up + self.down) / self.uncompressed

    @property
    def all_evaluations(self) -> int:
        """Bytes of all evaluations."""
        return self.evaluations * self.evaluation


def planned_bytes(settings: ServeSettings, manifest: Manifest, step: StepSettings, test_images: int) -> PlannedBytes:
    """Return the bytes of a whole run, whose evaluations take ``test_images`` each."""
    shape, frozen = step.shape, settings.trunk == "frozen"
    up, down = sizes_of_messages(shape, manifest.dim, (step.precision, None if frozen else step.gradient_precision))
    one_way = 4 * shape.images * shape.tokens * manifest.dim
    whole = (test_images, manifest.tokens, manifest.dim)
    return PlannedBytes(
        up=step.micro_batches * up,
        down=step.micro_batches * down,
        uncompressed=step.micro_batches * one_way * (1 if frozen else 2),
        evaluation=encoded_bytes(whole, settings.evaluate_precision or "pca4") + LABEL_BYTES * test_images,
        evaluations=_evaluations(settings.evaluate_every, step.planned_steps),
        steps=step.planned_steps,
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
    yield f"trunk    {_trunk(settings, manifest, device)}"
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
    up, down = f"{decimal(planned.up)} up in {step.precision}", f"{decimal(planned.down)} down"
    if settings.trunk != "frozen":
        down += f" in {step.gradient_precision}"
    yield f"step     {up}, {down}"
    yield f"share    {percent(planned.share)} of the uncompressed bytes"
    often = f"every {settings.evaluate_every} steps, " if settings.evaluate_every else ""
    yield f"eval     {often}at the end: {test_images} images, {decimal(planned.evaluation)} up"
    training, judging = planned.steps * (planned.up + planned.down), planned.all_evaluations
    if training + judging:
        share = percent(judging / (training + judging))
        yield f"total    training {decimal(training)}, evaluations {decimal(judging)}: {share} of all"


def percent(share: float) -> str:
    """Return a share in per cent, with two digits where it is small."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
