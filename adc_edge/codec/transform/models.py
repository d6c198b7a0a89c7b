"""Probabilities of rounded coefficients: two-sided geometric distributions, as integer frequencies.

Both sides must have the same frequencies, whatever their processor. So they come from whole numbers alone: fixed-point
numbers with 60 bits after the point, and whole square roots. Floats are in ``bits`` only, which no decoder reads.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from adc_edge.arrays import Float32, Float64, Int64, UInt8, UInt32

SCALE_BITS = 14
SLOTS = 1 << SCALE_BITS  # the frequencies of a model add up to this
LARGEST = 127  # magnitude of a symbol in any model
SYMBOLS = 2 * LARGEST + 1
STEPS_PER_OCTAVE = 4  # class c has a mean magnitude of 2**((c - UNIT) / 4)
UNIT = 32
MODELS = UNIT + 3 * STEPS_PER_OCTAVE + 1  # classes with a model, up to a mean of 8; of larger ones see ``lower_bits``
LARGEST_CLASS = MODELS - 1 + 20 * STEPS_PER_OCTAVE
_LOWER_BITS = np.maximum(0, -((MODELS - 1 - np.arange(LARGEST_CLASS + 1)) // STEPS_PER_OCTAVE))
_MODEL_OF = np.arange(LARGEST_CLASS + 1) - STEPS_PER_OCTAVE * _LOWER_BITS
_ONE = 1 << 60  # of a fixed-point number
_RAREST = _ONE >> 20  # magnitudes rarer than this have no symbol


class Models(NamedTuple):
    """Frequencies of all models, and what a decoder finds at each slot."""

    largest: Int64  # [MODELS], magnitude that has a symbol
    frequencies: UInt32  # [MODELS * SYMBOLS]
    starts: UInt32  # [MODELS * SYMBOLS], sums of the frequencies before
    bits: Float32  # [MODELS * SYMBOLS], what a symbol costs
    slot_symbols: UInt8  # [MODELS * SLOTS], symbol + LARGEST
    slots: UInt32  # [MODELS * SLOTS], frequency of its symbol in the upper half, and slot less the symbol's start


@functools.cache
def models() -> Models:
    """Return the tables; they are made once for each process."""
    frequencies = np.array([_frequencies(_mean(model)) for model in range(MODELS)], np.int64)
    starts = np.cumsum(frequencies, axis=1) - frequencies
    each, begin = frequencies.reshape(-1), starts.reshape(-1)
    offsets = np.tile(np.arange(SLOTS), MODELS) - np.repeat(begin, each)
    return Models(
        np.count_nonzero(frequencies, axis=1) // 2,
        each.astype(np.uint32),
        begin.astype(np.uint32),
        (SCALE_BITS - np.log2(np.maximum(each, 1))).astype(np.float32),
        np.repeat(np.tile(np.arange(SYMBOLS), MODELS), each).astype(np.uint8),
        (np.repeat(each, each) << 16 | offsets).astype(np.uint32),
    )


def _mean(model: int) -> int:
    """The mean magnitude of a model, ``2**((model - UNIT) / STEPS_PER_OCTAVE)``, in fixed point."""
    exponent = 60 * STEPS_PER_OCTAVE + model - UNIT
    return math.isqrt(math.isqrt(1 << exponent))  # the fourth root, rounded down


def _frequencies(mean: int) -> list[int]:
    """Frequencies of ``p(q) = (1 - θ) / (1 + θ) * θ**|q|``, whose mean magnitude is ``mean``, in fixed point."""
    theta = (math.isqrt(_ONE * _ONE + mean * mean) - _ONE) * _ONE // mean
    share = (_ONE - theta) * _ONE // (_ONE + theta)
    shares: list[int] = []
    while share >= _RAREST and len(shares) <= LARGEST:
        shares.append(share)
        share = share * theta // _ONE
    spread = SLOTS - (2 * len(shares) - 1)  # each symbol has one slot at least
    half = [1 + (share * spread + _ONE // 2) // _ONE for share in shares]
    half[0] += SLOTS - half[0] - 2 * sum(half[1:])  # what rounding left
    half += [0] * (LARGEST + 1 - len(half))
    return half[:0:-1] + half


def class_of(means: Float64) -> Int64:
    """Return the class of each mean magnitude above 0; it may lie outside of those that can be coded."""
    classes: Int64 = np.rint(STEPS_PER_OCTAVE * np.log2(means)).astype(np.int64) + UNIT
    return classes


def model_of(classes: Int64) -> Int64:
    """Return the model of each class: that of the upper part where lower bits travel as they are."""
    found: Int64 = _MODEL_OF[classes]
    return found


def lower_bits(classes: Int64) -> Int64:
    """Return how many lower bits of a value travel as they are, so that the model's symbol is its upper part."""
    found: Int64 = _LOWER_BITS[classes]
    return found
