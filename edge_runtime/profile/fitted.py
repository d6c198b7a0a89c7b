"""Measured micro-batches -> seconds of each part of the trunk for an image, and of a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from adc_edge.edge_runtime.profile.parts import PassSeconds
from adc_edge.method.ratio import Shape
from adc_edge.method.spec import TrunkSpec
from adc_edge.planning.profile import BlockSeconds, LastBlockSeconds, Line
from adc_edge.planning.timing import fit
from adc_edge.planning.work import last_work

_NONE = Line(0.0, 0.0)


class TrunkSeconds(NamedTuple):
    """Seconds of a call, and of each part for an image."""

    forward_call: float
    embedding: BlockSeconds
    blocks: list[BlockSeconds]
    last: LastBlockSeconds
    recompute_call: float = 0.0
    backward_call: float = 0.0


class _Phase(NamedTuple):
    """Seconds of one phase: of a call, and for an image of each whole part and of the last block."""

    call: float
    whole: list[float]
    last: Line


def fit_forward(
    spec: TrunkSpec, shapes: Sequence[Shape], seconds: Sequence[float], shares: Sequence[float]
) -> TrunkSeconds:
    """Fit measured forwards of whole micro-batches.

    Args:
        spec: the trunk's architecture.
        shapes: of the micro-batches, the first one at the ratio that counts.
        seconds: of each.
        shares: of embedding and blocks 1..split in a forward at that ratio, which add up to 1.
    """
    images, works = [shape.images for shape in shapes], [_work(spec, shape) for shape in shapes]
    columns = ([1.0] * len(shapes), images, [b * w for b, w in zip(images, works, strict=True)])
    call, base, each = fit(columns, seconds)
    image = base + each * works[0]
    whole = [share * image for share in shares[:-1]]
    each = min(each, shares[-1] * image / works[0])
    last = Line(shares[-1] * image - each * works[0], each)
    blocks = [BlockSeconds(s, 0.0, 0.0) for s in (*whole[1:], last.seconds(works[0]))]
    return TrunkSeconds(call, BlockSeconds(whole[0], 0.0, 0.0), blocks, LastBlockSeconds(last, _NONE, _NONE))


def fit_passes(
    spec: TrunkSpec,
    shapes: Sequence[Shape],
    passes: Sequence[PassSeconds],
    graph_bytes: Sequence[int],
    forward: TrunkSeconds,
) -> TrunkSeconds:
    """Add recomputation and backward to ``forward``.

    Args:
        spec: the trunk's architecture.
        shapes: as in ``fit_forward``.
        passes: of each micro-batch.
        graph_bytes: of embedding and blocks 1..split, for an image.
        forward: the fitted forwards.
    """
    works = [_work(spec, shape) for shape in shapes]
    recompute, backward = (_phase(shapes, works, parts) for parts in zip(*passes, strict=True))
    parts = [forward.embedding, *forward.blocks]
    seconds = [[*phase.whole, phase.last.seconds(works[0])] for phase in (recompute, backward)]
    found = [BlockSeconds(part.forward, *more) for part, *more in zip(parts, *seconds, graph_bytes, strict=True)]
    last = LastBlockSeconds(forward.last.forward, recompute.last, backward.last)
    return TrunkSeconds(forward.forward_call, found[0], found[1:], last, recompute.call, backward.call)


def _phase(shapes: Sequence[Shape], works: Sequence[float], parts: Sequence[Sequence[float]]) -> _Phase:
    """Fit one phase; ``parts`` holds the seconds of each part, for each micro-batch."""
    images = [shape.images for shape in shapes]
    ones = [1.0] * len(shapes)
    *whole, last = zip(*parts, strict=True)
    lines = [fit((ones, images), seconds) for seconds in whole]
    call, base, each = fit((ones, images, [b * w for b, w in zip(images, works, strict=True)]), last)
    return _Phase(call + sum(fixed for fixed, _ in lines), [slope for _, slope in lines], Line(base, each))


def _work(spec: TrunkSpec, shape: Shape) -> float:
    return last_work(shape, spec.embed_dim, spec.mlp_dim)
