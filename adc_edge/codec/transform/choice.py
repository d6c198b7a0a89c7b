"""Which components and which step fill a message: bits and errors of Laplace variables that are rounded to one step.

The encoder alone uses this, so nothing of it must be the same on another processor.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from adc_edge.arrays import Float32, Float64, Int64
from adc_edge.codec.transform.head import FINEST_QUARTERS
from adc_edge.codec.transform.models import STEPS_PER_OCTAVE

DEAD_ZONE = 0.36  # a magnitude is rounded up from a rest of 1 - 0.36 steps on; .30 and .42 leave .1 to .5 % more error
_SLOPE = 0.15  # squared steps of error that a bit saves where a step is best; .10 leaves 2 % more error, .22 as much
_LOWEST, _HIGHEST, _PER_OCTAVE = -5, 14, 16  # of log2 of deviation over step
_SPAN, _ROUNDS = 26, 12  # octaves in which a step is looked for, and how often they are halved
_VECTOR = 2.4  # bits of a vector's entry of fineness 0: its entropy is 2.1, but few rows do better with fewer vectors
_NO_BITS = 0.27  # symbols of an entry that takes hardly any
_FINEST = -22.0  # log2 of a step; the largest value is near 1


class Statistics(NamedTuple):
    """Coefficients of one layout of the tokens, as far as their bits and errors depend on them."""

    images: int
    deviations: Float32  # [N, R] of the coefficients around their mean over the images
    means: Float32  # [N, R] of the coefficients over the images
    width: int  # D
    mean_size: float  # root mean square of the mean vector's entries, times its symbols to a step


class ComponentChoice(NamedTuple):
    """A step, and the components worth their vectors."""

    step: float
    components: Int64  # [rank]
    quarters: Int64  # [rank], fineness of the vectors
    error: float  # squared error that is expected


class _Curves(NamedTuple):
    bits: Float64  # of a variable, by log2 of deviation over step
    errors: Float64  # squared error over the squared step


def choose(statistics: Statistics, budget_bits: float) -> ComponentChoice:
    """Return the smallest step whose message has ``budget_bits``, as far as deviations tell."""
    images, deviations, means, width, mean_size = statistics
    # What a mean of many images saves or costs, all of them have.
    lifted = np.abs(means) * np.float32(math.sqrt(images))
    both = np.concatenate((deviations, lifted))
    weights = np.repeat(np.array([images, 1.0]), len(deviations))
    energies = weights @ np.square(both, dtype=np.float64)
    with np.errstate(divide="ignore"):
        logarithms = np.log2(both)
    top = float(logarithms.max(initial=-126.0))
    high = max(top + 2, _FINEST + 1)
    best = ComponentChoice(2.0**high, np.empty(0, np.int64), np.empty(0, np.int64), float(energies.sum()))
    low = max(high - _SPAN, _FINEST)
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        needed, choice = _at(middle, logarithms, weights, energies, width)
        if needed + _mean_bits(mean_size / 2.0**middle, width) > budget_bits:
            low = middle
        else:
            high, best = middle, choice
    return best


def _at(
    log_step: float, logarithms: Float32, weights: Float64, energies: Float64, width: int
) -> tuple[float, ComponentChoice]:
    """Bits of all components that are worth them at one step, and these components."""
    curves, step = _curves(), 2.0**log_step
    ratios = logarithms - np.float32(log_step)
    place = np.clip(np.rint((ratios - _LOWEST) * _PER_OCTAVE), 0, len(curves.bits) - 1).astype(np.int32)
    quarters = _quarters(energies, step, width)
    bits = weights @ curves.bits[place] + width * (quarters / STEPS_PER_OCTAVE + _VECTOR)
    errors = np.minimum(weights @ curves.errors[place] * (step * step), energies)
    worth = energies - errors > _SLOPE * step * step * bits
    error = float(errors[worth].sum() + energies[~worth].sum())
    return float(bits[worth].sum()), ComponentChoice(step, np.flatnonzero(worth), quarters[worth], error)


def _mean_bits(size: float, width: int) -> float:
    """Bits of the mean vector whose entries are so many symbols large."""
    return width * (math.log2(size + _NO_BITS) + 2)


def _quarters(energies: Float64, step: float, width: int) -> Int64:
    """Quarter octaves by which the step of a vector's entries is below their deviation.

    An error of an entry is in all rows. So the entries of a component of some energy (summed over the rows) may be off
    by ``step * sqrt(D / energy)`` deviations where a coefficient is off by ``step``.
    """
    exact = STEPS_PER_OCTAVE / 2 * np.log2(np.maximum(energies, 1e-300) / (step * step * width))
    return np.clip(np.rint(exact), 0, FINEST_QUARTERS).astype(np.int64)


@functools.cache
def _curves() -> _Curves:
    ratios = np.arange(_LOWEST, _HIGHEST + 1 / _PER_OCTAVE, 1 / _PER_OCTAVE)
    rate = math.sqrt(2) / 2.0**ratios  # of the magnitude, in steps: exponential
    edge = 1 - DEAD_ZONE  # smaller magnitudes become 0
    some, tail = np.exp(-rate * edge), np.exp(-rate)
    zero, ends = -np.expm1(-rate * edge), -np.expm1(-rate)
    entropy = -(_times_log2(zero) + _times_log2(some))
    beyond = -np.log2(ends) + tail / ends * rate / math.log(2)  # of a magnitude beyond 1, geometric
    inside = 2 / rate**2 - some * (edge**2 + 2 * edge / rate + 2 / rate**2)
    in_bin = np.where(rate < 0.02, 1 / 12, 1 / rate**2 - tail / ends**2)
    bits, errors = entropy + some * (1 + beyond), np.maximum(inside, 0) + some * in_bin
    bits[0] = 0.0  # all that lies below, too
    return _Curves(bits, errors)


def _times_log2(share: Float64) -> Float64:
    return share * np.log2(np.maximum(share, 1e-300))
