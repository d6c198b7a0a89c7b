"""The smallest step whose message has at most so many bytes: rounding, the levels that describe it, and its size."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from adc_edge.arrays import Float32, Float64, Int64
from adc_edge.codec.transform.choice import DEAD_ZONE
from adc_edge.codec.transform.grid import Grid
from adc_edge.codec.transform.head import NO_LEVEL, TransformHead, lanes_for, mean_steps
from adc_edge.codec.transform.models import (
    LARGEST,
    LARGEST_CLASS,
    MODELS,
    SYMBOLS,
    UNIT,
    class_of,
    lower_bits,
    model_of,
    models,
)
from adc_edge.codec.transform.rans import most_bytes
from adc_edge.codec.transform.symbols import COUNT_BYTES, pack_symbols

_TRIES = 8
_ROUNDS = 60  # in which a step grows
_SPAN = 8.0  # most octaves of a step at once
_FULL = 0.992  # of the bytes; a closer fit saves less error than another try costs time
_OCTAVES, _MOST_OCTAVES = 1.5, 10.0  # of the step that halve a message by a rough guess, and at most
_GIVE_WAY = 1.01  # of the step, for each percent of bytes too many, which outliers need
_MOST_GIVEN = 4.0  # of the step at once
_FINEST = 2.0**-22  # a step, as a share of the largest coefficient: float32 has no more, and a class holds them
_FINEST_MEAN = 2.0**-30  # the same of the mean vector, whose symbols are 32 bits
_LEAST, _COARSEST = 2.0**-40, 2.0**30  # steps for a tensor of zeros, and in which all symbols are zero


class TransformedTensor(NamedTuple):
    """A tensor's components and coefficients, before they are rounded."""

    exponent: int
    grid: Grid
    mean: Float32  # [D]
    vectors: Int64  # [rank, D], symbols
    quarters: Int64  # [rank]
    coefficients: Float32  # [B, N, rank]
    means: Float32  # [N, rank], of the coefficients over the images

    def finest_step(self) -> float:
        """Return the step below which a symbol would be too large for its class."""
        images, tokens, _ = self.coefficients.shape
        each = max(_largest(self.coefficients), math.sqrt(images) * _largest(self.means))
        return max(_FINEST * each, _FINEST_MEAN * mean_steps(images * tokens) * _largest(self.mean), _LEAST)

    def without_components(self) -> TransformedTensor:
        """Return the mean vector alone."""
        return self._replace(
            vectors=self.vectors[:0],
            quarters=self.quarters[:0],
            coefficients=self.coefficients[..., :0],
            means=self.means[..., :0],
        )


def fitting_message(parts: TransformedTensor, step: float, size: int) -> bytes:
    """Return the message of the smallest step found that has at most ``size`` bytes.

    Outliers cost more than is expected, so that a message may still be too long; its step then grows. Where that does
    not help, the message has the mean vector alone.

    Args:
        parts: components and coefficients.
        step: at which the search begins.
        size: of the longest message.
    """
    step = _searched(parts, step, size)
    for tried in range(1, _ROUNDS):
        message = _Rounded(parts, step, size).pack()
        if len(message) <= size:
            return message
        percent = 1 + 100 * (len(message) / size - 1)
        step = min(step * min(_GIVE_WAY ** min(percent * tried, 1000.0), _MOST_GIVEN), _COARSEST)
    assert len(parts.vectors), "a mean vector in the coarsest step has less than a bit a channel"
    return fitting_message(parts.without_components(), step, size)


def _searched(parts: TransformedTensor, step: float, size: int) -> float:
    """The smallest step found whose message is expected to have at most ``size`` bytes.

    The size is nearly linear in the logarithm of the step, so the line through the last two guesses leads to the next.
    """
    finest, aim = parts.finest_step(), size * (1 + _FULL) / 2
    low, high, step = 0.0, math.inf, max(step, finest)  # steps that are too fine, and fine enough
    slope, before = -size / _OCTAVES, (0.0, 0.0)  # bytes for an octave; step and size of the last guess
    for tried in range(_TRIES):
        needed = _Rounded(parts, step, size).needed
        low, high = (step, high) if needed > size else (low, step)
        if needed <= size and (needed > _FULL * size or step <= finest):
            break
        if tried and step != before[0]:
            slope = min((needed - before[1]) / math.log2(step / before[0]), -size / _MOST_OCTAVES)
        before = step, needed
        guess = step * 2.0 ** max(min((aim - needed) / slope, _SPAN), -_SPAN)
        between = low < guess < high or not (low > 0 and high < math.inf)
        step = max(guess if between else math.sqrt(low * high), finest)
    return high if high < math.inf else step


class _Rounded:
    """A tensor's parts rounded to one step."""

    def __init__(self, parts: TransformedTensor, step: float, size: int) -> None:
        """Round to ``step``, and find the levels that describe the result."""
        self._parts, self._step = parts, float(np.float32(step))
        images, tokens, _ = parts.coefficients.shape
        self._mean = np.rint(parts.mean * (mean_steps(images * tokens) / self._step)).astype(np.int64)
        self._mean_image = _round(parts.means * np.float32(math.sqrt(images) / self._step))  # [N, rank]
        self._scaled = parts.coefficients * np.float32(1 / self._step)
        self._scaled -= self._mean_image * np.float32(1 / math.sqrt(images))
        self._rounded = _round(self._scaled)  # [B, N, rank]
        sums = np.abs(self._rounded).sum(axis=0, dtype=np.float32).astype(np.float64)
        mean_sums = np.abs(self._mean_image).astype(np.float64)
        component_means = (sums + mean_sums).sum(0) / max((images + 1) * tokens, 1)
        total, grid = max(float(component_means.sum()), 1e-30), parts.grid
        counts = np.bincount(grid.bands(), minlength=grid.band_count())
        self._head = TransformHead(
            parts.exponent,
            grid.side > 0,
            _class(np.abs(self._mean)),
            self._step,
            lanes_for(size),
            128,
            128,
            _levels(component_means),
            parts.quarters,
            _levels(np.bincount(grid.bands(), sums.sum(1), grid.band_count()) / (counts * images * total)),
            _levels(np.bincount(grid.bands(), mean_sums.sum(1), grid.band_count()) / (counts * total)),
        )
        every = self._head.all_classes(grid, 1, parts.vectors.shape[1])
        coded, coded_means = self._head.image_classes(grid) >= 0, self._head.mean_classes(grid) >= 0
        summed = np.concatenate(
            (np.abs(self._mean), np.abs(parts.vectors).reshape(-1), mean_sums[coded_means], sums[coded])
        )
        counted = np.ones(len(every))
        counted[len(every) - np.count_nonzero(coded) :] = images
        bits = counted @ _costs().fixed[every] + summed @ _costs().each[every]
        self.needed = len(self._head.pack()) + COUNT_BYTES + math.ceil(bits / 8) + most_bytes(self._head.lanes)

    def pack(self) -> bytes:
        """Return the message."""
        parts, magnitudes, rounded = self._parts, np.abs(self._scaled), np.abs(self._rounded)
        ones, others = rounded == 1, rounded > 1
        head = self._head._replace(
            ones=_in_128ths(magnitudes[ones], 1.0), others=_in_128ths(magnitudes[others] - rounded[others] + 1, 1.0)
        )
        images, coded, coded_means = len(rounded), head.image_classes(parts.grid), head.mean_classes(parts.grid)
        values = np.concatenate(
            (
                self._mean,
                parts.vectors.reshape(-1),
                self._mean_image[coded_means >= 0].astype(np.int64),
                self._rounded[:, coded >= 0].T.reshape(-1).astype(np.int64),
            )
        )
        return head.pack() + pack_symbols(values, head.all_classes(parts.grid, images, len(self._mean)), head.lanes)


def _largest(x: Float32) -> float:
    return max(float(x.max(initial=0.0)), -float(x.min(initial=0.0)))


def _round(x: Float32) -> Float32:
    """Whole steps of ``x``, which is in steps."""
    magnitudes = np.abs(x)
    magnitudes += np.float32(DEAD_ZONE)
    return np.copysign(np.floor(magnitudes, out=magnitudes), x, out=magnitudes)


def _class(magnitudes: Int64) -> int:
    mean = np.maximum(magnitudes.mean(keepdims=True), 1e-9)
    return min(max(int(class_of(mean)[0]), 0), LARGEST_CLASS)


def _levels(means: Float64) -> Int64:
    """Levels of mean magnitudes; ``NO_LEVEL`` where there is none."""
    return np.where(means > 0, np.clip(class_of(np.maximum(means, 1e-30)) - UNIT, NO_LEVEL + 1, 127), NO_LEVEL)


def _in_128ths(values: Float32, otherwise: float) -> int:
    return min(max(round(128 * (float(values.mean()) if len(values) else otherwise)), 0), 255)


class _Costs(NamedTuple):
    """Bits of a value by class: geometric models have bits that grow with the magnitude."""

    fixed: Float64
    each: Float64  # for each unit of magnitude


@functools.cache
def _costs() -> _Costs:
    every = np.arange(LARGEST_CLASS + 1)
    table = models().bits.reshape(MODELS, SYMBOLS).astype(np.float64)
    lower, model = lower_bits(every), model_of(every)
    zero, one, two = (table[model, LARGEST + magnitude] for magnitude in range(3))
    each = np.where(model < UNIT, one - zero, two - one)  # of narrow models hardly any symbol is 2
    return _Costs(np.where(model < UNIT, zero, one - each) + lower, each / 2.0**lower)
