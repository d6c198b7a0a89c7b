"""Bit allocation of a low-rank message (`lowrank.py`): reverse water-filling, in integers.

Magnitudes are *levels*: ``level = 64 * log2(magnitude)``. Each bit goes where it saves the most squared error. A
coordinate's bits follow from its *excess*: its component's level, less 32 for each class that its row lies below the
largest row, less the message's threshold. The entries of the basis vectors and of the mean are quantised too, and an
error in a vector enters every row. So vectors get bits like the coordinates of one more row, whose energy is that of
all rows together over D; ``vector_offset`` is how far its level lies below class 0's. Both sides decide in integers,
and therefore alike on any processor. `docs/codec.md` works an example.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from adc_edge.arrays import Float32, Float64, Int64, UInt8
from adc_edge.codec import lloyd_max
from adc_edge.codec.spectrum import CLASS_BITS, ROW_CLASSES, SURE, Spectrum

LEVEL_DTYPE = np.dtype("<i2")

# 64 levels a doubling (0.09 dB): rounding a level costs at most 0.2 % more error, and every level fits in 16 bits.
_UNIT = 64
_CLASS_UNITS = _UNIT // 2  # 3 dB, half a bit: rows within a class cost at most 7 % more error
_LOWEST_LEVEL = -60 * _UNIT  # stands for log2(0): far below float32's rounding of values near 1
_LARGEST_THRESHOLD = 2**15 - 1  # above every level, so that nothing has a bit
# The excess at which a coordinate gets each of its 8 bits. Bit b saves the error e[b-1] - e[b] (lloyd_max.ERRORS) of
# a variance 4**(excess / 64). It is due where that equals what bit 1 saves at excess 0:
# round(32 * log2((e[0] - e[1]) / (e[b-1] - e[b]))). Literals, because log2 may round differently elsewhere.
_BIT_EXCESS = np.array([0, 44, 94, 149, 208, 269, 332, 395])
_EXCESSES = np.arange(-1, _BIT_EXCESS[-1] + _CLASS_UNITS * len(ROW_CLASSES))  # the widths are the same above and below
_SEARCH_SPAN = 24 * _UNIT  # below the highest level: a weaker component lies under float32's 24 bits of precision
_SAMPLE = 1024  # rows whose coordinates tell the energies of all classes, at one bit a value or less
_FEW_COMPONENTS = 16  # where hardly any fits without classes, more may fit with them
_SEARCH_STRIDES = (32, 1)  # the first one is less than the 44 between two bits of a coordinate
_SLACK_BITS = 2 * lloyd_max.LARGEST_WIDTH * 8  # 8 planes of vectors and 8 of coordinates each end in a partial byte


class BitAllocation(NamedTuple):
    """The part of a message before its codes; the width of every code follows from it."""

    threshold: int
    vector_offset: int
    levels: Int64  # [1 + rank], the mean's first
    counts: Int64  # [classes], rows of each class, those of the largest rows first
    has_classes: bool  # if not, all rows are of class 0, and classes are not sent

    def class_widths(self) -> UInt8:
        """Bits of the coordinates in rows of each class, ``[classes, rank]``."""
        return _bits(self.levels[1:] - _CLASS_UNITS * ROW_CLASSES[:, None] - self.threshold)

    def entry_widths(self) -> UInt8:
        """Bits of each entry of the mean and of the vectors, ``[1 + rank]``."""
        excess = self.levels - self.threshold
        return np.concatenate((_bits(excess[:1] - self.vector_offset), _entry_bits(excess[1:], self.vector_offset)))

    def class_scales(self) -> Float32:
        """Magnitudes of the rows of each class as shares of class 0's, ``[classes]``."""
        return _magnitudes(-_CLASS_UNITS * ROW_CLASSES)

    def lengths(self) -> Float32:
        """Length of the mean, and standard deviations of the components in rows of class 0, ``[1 + rank]``."""
        lengths = _magnitudes(self.levels)
        square_scales = float(self.counts @ np.square(self.class_scales(), dtype=np.float64))
        lengths[0] *= math.sqrt(square_scales / max(1, self.rows))
        return lengths

    @property
    def rows(self) -> int:
        """Rows of all classes."""
        return int(self.counts.sum())

    def coordinates_bytes(self) -> int:
        """Bytes of the planes of the coordinates' codes."""
        wider = (self.class_widths()[:, :, None] > np.arange(lloyd_max.LARGEST_WIDTH)).sum(axis=1)
        return int((-(-(self.counts @ wider) // 8)).sum())

    def overhead_bytes(self) -> int:
        """Bytes of the levels and classes."""
        class_bytes = CLASS_BITS * -(-self.rows // 8) if self.has_classes else 0
        return LEVEL_DTYPE.itemsize * len(self.levels) + class_bytes


class AllocationCandidate(NamedTuple):
    """An allocation that fits into the message, and the squared error to expect of it."""

    error: float
    allocation: BitAllocation
    components: Int64  # [rank], their places in the spectrum, the largest first


def empty_allocation(rows: int) -> BitAllocation:
    """Return the allocation of a message without codes: all ``rows`` rows are zero."""
    counts = np.zeros(len(ROW_CLASSES), np.int64)
    counts[0] = rows
    return BitAllocation(_LARGEST_THRESHOLD, 0, np.full(1, _LOWEST_LEVEL), counts, False)


def allocation_candidates(spectrum: Spectrum, mean_energy: float, budget: int) -> list[AllocationCandidate]:
    """Return allocations without classes, with classes, and of the mean alone, the least expected error first.

    Args:
        spectrum: of the rows less their mean, ``[rows, D]``.
        mean_energy: squares of the mean, in all rows together.
        budget: bytes for levels, classes and codes; enough for the mean at 8 bits.
    """
    (rows, size), variances = spectrum.shape, spectrum.variances
    known = bool((variances > SURE * variances.max()).all())
    sample = int(_SAMPLE * max(1.0, 8 * budget / (rows * size)))  # wide codes need exact levels
    energy = variances[None] if known else spectrum.energies(sample)
    one_class = empty_allocation(rows)
    alike = _fit(one_class, energy.sum(axis=0)[None], mean_energy, size, budget)
    found = [_mean_alone(one_class, energy, mean_energy, size), alike]
    if not spectrum.saved_bits() * max(len(alike.components), _FEW_COMPONENTS) < CLASS_BITS:  # true for NaN, too
        energy = spectrum.energies(sample) if known else energy
        by_class = one_class._replace(counts=spectrum.counts, has_classes=True)
        found.append(_fit(by_class, energy, mean_energy, size, budget))
    return sorted(found, key=lambda candidate: candidate.error)


def _mean_alone(allocation: BitAllocation, energy: Float64, mean_energy: float, size: int) -> AllocationCandidate:
    """The mean at 8 bits and no component."""
    rows = allocation.rows
    offset, levels = _vector_offset(rows, size), _levels(np.array([mean_energy / rows]))
    threshold = int(levels[0]) - offset - int(_BIT_EXCESS[-1])
    error = float(energy.sum()) + mean_energy * float(lloyd_max.ERRORS[-1])
    allocation = allocation._replace(threshold=threshold, vector_offset=offset, levels=levels)
    return AllocationCandidate(error, allocation, np.empty(0, np.int64))


def _fit(allocation: BitAllocation, energy: Float64, mean_energy: float, size: int, budget: int) -> AllocationCandidate:
    """Levels, threshold and components of the least error expected, for the classes in ``allocation``.

    Args:
        allocation: its classes are kept.
        energy: sum of the squares of each class's coordinates, ``[classes, n]``.
        mean_energy: squares of the mean, in all rows together.
        size: D.
        budget: bytes for levels, classes and codes.
    """
    counts = allocation.counts[: len(energy)]
    scales = np.exp2(-0.5 * np.arange(len(energy)))
    weight = float(counts @ np.square(scales))
    # A row weighs by its magnitude: between equal weights and weights by energy, and with less error than either.
    variances = (1 / scales) @ energy / (counts @ scales)
    order = np.argsort(-variances, kind="stable")
    levels, offset = _levels(np.append(mean_energy / weight, variances[order])), _vector_offset(weight, size)
    present = np.flatnonzero(counts)
    counts, energy = counts[present], energy[present][:, order]
    # By excess: the bits that a component takes in all, and the error that each component saves, [n, excesses].
    widths, entry_widths = _widths_by_class()[present], _entry_bits(_EXCESSES, offset)
    taken = counts @ widths + entry_widths.astype(np.int64) * size + 8 * LEVEL_DTYPE.itemsize
    saved = energy.T @ np.where(widths > 0, 1 - lloyd_max.ERRORS[widths] - lloyd_max.ERRORS[entry_widths], 0.0)
    budget_bits = 8 * (budget - allocation.overhead_bytes()) - _SLACK_BITS

    def search(thresholds: Int64) -> tuple[float, int, int]:
        """Error saved, threshold and rank of the best one; as many components as fit, the largest first."""
        places = np.clip(levels[1:] - thresholds[:, None] + 1, 0, len(_EXCESSES) - 1)  # [thresholds, n]
        mean_widths = _bits(levels[0] - offset - thresholds)
        mean_bits = mean_widths.astype(np.int64) * size
        ranks = ((taken[places].cumsum(axis=1) + mean_bits[:, None] <= budget_bits) & (places > 0)).sum(axis=1)
        gains = np.zeros((len(thresholds), len(levels)))
        saved[np.arange(len(saved)), places].cumsum(axis=1, out=gains[:, 1:])
        total = gains[np.arange(len(ranks)), ranks] + mean_energy * (1 - lloyd_max.ERRORS[mean_widths])
        total[mean_bits > budget_bits] = -math.inf
        best = int(total.argmax())
        return float(total[best]), int(thresholds[best]), int(ranks[best])

    start, end = levels[1] + _SEARCH_STRIDES[0], levels[1] - _SEARCH_SPAN
    for stride in _SEARCH_STRIDES:
        gain, threshold, rank = search(np.arange(start, end, -stride))
        start, end = threshold + stride, threshold - stride
    allocation = allocation._replace(threshold=threshold, vector_offset=offset, levels=levels[: 1 + rank])
    return AllocationCandidate(float(energy.sum()) + mean_energy - gain, allocation, order[:rank])


@functools.cache
def _widths_by_class() -> UInt8:
    """Bits of the coordinates in rows of each class by the excess of class 0, ``[classes, excesses]``."""
    return _bits(_EXCESSES - _CLASS_UNITS * ROW_CLASSES[:, None])


def _bits(excess: npt.NDArray[Any]) -> UInt8:
    """Bits of coordinates by their excess over the threshold."""
    return np.searchsorted(_BIT_EXCESS, excess, side="right").astype(np.uint8)


def _entry_bits(excess: npt.NDArray[Any], offset: int) -> UInt8:
    """Bits of vectors' entries: at least one where rows of class 0 have a coordinate, and none elsewhere."""
    return np.where(excess >= 0, np.maximum(_bits(excess - offset), 1), 0).astype(np.uint8)


def _vector_offset(weight: float, size: int) -> int:
    """Level of a class 0 row, less that of the vectors' row; all rows together weigh ``weight`` rows of class 0."""
    return round(-0.5 * _UNIT * math.log2(weight / size))


def _levels(variances: Float64) -> Int64:
    with np.errstate(divide="ignore"):
        return np.rint(np.maximum(0.5 * _UNIT * np.log2(variances), _LOWEST_LEVEL)).astype(np.int64)


def _magnitudes(levels: Int64) -> Float32:
    return np.exp2(levels / _UNIT).astype(np.float32)
