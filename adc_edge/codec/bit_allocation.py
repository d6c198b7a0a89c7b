"""Who gets how many bits of a low-rank message (`lowrank.py`): reverse water-filling, in integers.

Everything counts in units: 64 more mean twice the magnitude. A coordinate's bits follow from its component's level,
less 32 for each class that its row is below the first, against the message's threshold: each bit goes where it saves
the most squared error. A vector's entries get theirs like the coordinates of one more row, as large as all rows
together over D, for their errors meet every row; ``basis`` is how far that row ranks below one of class 0. The rows'
mean is a vector too, whose coordinate is the same in all rows. What decides is in integers, so that both sides decide
alike on any processor.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from adc_edge.arrays import Float32, Float64, Int64, UInt8
from adc_edge.codec import lloyd_max as normal
from adc_edge.codec.casts import parts

CLASS_BITS = 4
LEVEL = np.dtype("<i2")  # of a message

_UNIT = 64
_CLASSES = np.arange(2**CLASS_BITS)
_CLASS_UNITS = 32  # half a bit, 3 dB
_FAINTEST = -60 * _UNIT  # the level of nothing at all
_NEVER = 2**15 - 1  # a threshold at which nothing has a bit
# How far above the threshold a coordinate gets each bit: where that bit saves as much as the first one does at the
# threshold.
_RISES = np.array([0, 44, 94, 149, 208, 269, 332, 395])
_PLACES = np.arange(-1, _RISES[-1] + _CLASS_UNITS * len(_CLASSES))  # above the threshold; beyond, nothing changes
_SPAN = 24 * _UNIT  # the threshold is sought so far below the highest level,
_STRIDE = 32  # in steps of so much at first
_SLACK_BITS = 8 * 16  # what sixteen planes may lose to whole bytes


class BitAllocation(NamedTuple):
    """What a message says before its codes: all widths follow."""

    threshold: int
    basis: int
    levels: Int64  # [1 + rank], the mean's first
    classes: UInt8  # [rows], the largest row's 0
    has_classes: bool  # else all are 0, and do not travel

    def widths(self) -> UInt8:
        """Bits ``[rows, rank]`` of the coordinates."""
        by_class = _bits(self.levels[1:] - _CLASS_UNITS * _CLASSES[:, None] - self.threshold)
        return by_class[self.classes]

    def entry_widths(self) -> UInt8:
        """Bits ``[1 + rank]`` of each entry of the mean and of the vectors."""
        above = self.levels - self.threshold
        return np.concatenate((_bits(above[:1] - self.basis), _entry_bits(above[1:], self.basis)))

    def scales(self) -> Float32:
        """Magnitudes ``[rows, 1]`` of the rows beside those of class 0."""
        return _magnitudes(-_CLASS_UNITS * self.classes.astype(np.int64))[:, None]

    def lengths(self) -> Float32:
        """``[1 + rank]``: the mean's, and the components' deviations in rows of class 0."""
        lengths = _magnitudes(self.levels)
        lengths[0] *= math.sqrt(np.square(self.scales(), dtype=np.float64).sum() / max(1, len(self.classes)))
        return lengths

    def overhead_bytes(self) -> int:
        """Of levels and classes."""
        return LEVEL.itemsize * len(self.levels) + (CLASS_BITS * -(-len(self.classes) // 8) if self.has_classes else 0)


class AllocationCandidate(NamedTuple):
    """A plan that fits, and the squared error to expect of it."""

    error: float
    plan: BitAllocation
    vectors: Float32  # [rank, D], of length one


def empty_allocation(rows: int) -> BitAllocation:
    """Of rows of zeros."""
    return BitAllocation(_NEVER, 0, np.full(1, _FAINTEST), np.zeros(rows, np.uint8), False)


def allocation_candidates(rows: Float32, mean: Float32, room: int) -> list[AllocationCandidate]:
    """Plans without classes, with them, and of the mean alone, the most promising first.

    Args:
        rows: ``[rows, D]``, less their mean.
        mean: ``[D]``.
        room: bytes for levels, classes and codes; enough for the mean at 8 bits.
    """
    vectors = np.linalg.eigh((rows.T @ rows).astype(np.float64))[1].astype(np.float32)
    classes = _classes(rows)
    members = (classes == _CLASSES[:, None]).astype(np.float32)
    energy = np.zeros((len(_CLASSES), len(vectors)))
    for part in parts(*rows.shape):
        energy += members[:, part] @ np.square(rows[part] @ vectors)
    power = len(rows) * float(np.square(mean, dtype=np.float64).sum())
    alike = empty_allocation(len(rows))
    found = [
        _mean_alone(alike, energy, power, vectors),
        _fit(alike, energy.sum(axis=0)[None], power, vectors, room),
        _fit(alike._replace(classes=classes, has_classes=True), energy, power, vectors, room),
    ]
    return sorted(found, key=lambda candidate: candidate.error)


def _classes(rows: Float32) -> UInt8:
    """Classes of rows by their magnitudes."""
    squares = np.einsum("nd,nd->n", rows, rows)
    largest = squares.max()
    shares = np.divide(squares, largest, out=np.ones_like(squares), where=largest > 0)
    classes: UInt8 = np.rint(-np.log2(np.maximum(shares, np.float32(2.0 ** -(len(_CLASSES) - 1))))).astype(np.uint8)
    return classes


def _mean_alone(plan: BitAllocation, energy: Float64, power: float, vectors: Float32) -> AllocationCandidate:
    basis, levels = _basis_units(len(plan.classes), len(vectors)), _levels(np.array([power / len(plan.classes)]))
    threshold = int(levels[0]) - basis - int(_RISES[-1])
    error = float(energy.sum()) + power * float(normal.ERRORS[-1])
    return AllocationCandidate(error, plan._replace(threshold=threshold, basis=basis, levels=levels), vectors[:0])


def _fit(plan: BitAllocation, energy: Float64, power: float, vectors: Float32, room: int) -> AllocationCandidate:
    """Levels, threshold and components of the least error expected, for the classes in ``plan``.

    Args:
        plan: with classes.
        energy: ``[classes, D]``, the sum of the coordinates' squares.
        power: squares of the mean, in all rows together.
        vectors: ``[D, D]``, a column for each component.
        room: bytes.
    """
    counts, size = np.bincount(plan.classes, minlength=len(energy)), len(vectors)
    scales = np.exp2(-0.5 * np.arange(len(energy)))
    weight = float(counts @ np.square(scales))
    # Rows weigh by magnitude: half way between all alike and by energy, which leaves the least error in the end.
    variances = (1 / scales) @ energy / (counts @ scales)
    order = np.argsort(-variances, kind="stable")
    levels, basis = _levels(np.append(power / weight, variances[order])), _basis_units(weight, size)
    present = np.flatnonzero(counts)
    counts, energy = counts[present], energy[present][:, order]
    # By place above the threshold: bits that a component takes in all, and the share that it saves of each class.
    widths, entry_widths = _bits(_PLACES - _CLASS_UNITS * present[:, None]), _entry_bits(_PLACES, basis)
    taken = counts @ widths + entry_widths.astype(np.int64) * size + 8 * LEVEL.itemsize
    saved = np.where(widths > 0, 1 - normal.ERRORS[widths] - normal.ERRORS[entry_widths], 0.0)
    room_bits = 8 * (room - plan.overhead_bytes()) - _SLACK_BITS

    def search(thresholds: Int64) -> tuple[float, int, int]:
        """Error saved, threshold and rank of the best one; as many components as fit, from the largest on."""
        places = np.clip(levels[1:] - thresholds[:, None] + 1, 0, len(_PLACES) - 1)  # [thresholds, D]
        mean_widths = _bits(levels[0] - basis - thresholds)
        mean_bits = mean_widths.astype(np.int64) * size
        ranks = ((taken[places].cumsum(axis=1) + mean_bits[:, None] <= room_bits) & (places > 0)).sum(axis=1)
        gains = np.zeros((len(thresholds), 1 + size))
        np.einsum("ck,ctk->tk", energy, saved[:, places]).cumsum(axis=1, out=gains[:, 1:])
        whole = gains[np.arange(len(ranks)), ranks] + power * (1 - normal.ERRORS[mean_widths])
        whole[mean_bits > room_bits] = -math.inf
        best = int(whole.argmax())
        return float(whole[best]), int(thresholds[best]), int(ranks[best])

    _, near, _ = search(np.arange(levels[1] + _STRIDE, levels[1] - _SPAN, -_STRIDE))
    gain, threshold, rank = search(np.arange(near + _STRIDE, near - _STRIDE, -1))
    plan = plan._replace(threshold=threshold, basis=basis, levels=levels[: 1 + rank])
    return AllocationCandidate(float(energy.sum()) + power - gain, plan, vectors.T[order[:rank]])


def _bits(above: npt.NDArray[Any]) -> UInt8:
    """Bits of coordinates so far above the threshold."""
    return np.searchsorted(_RISES, above, side="right").astype(np.uint8)


def _entry_bits(above: npt.NDArray[Any], basis: int) -> UInt8:
    """Bits of vectors' entries: one at least where rows of class 0 have a coordinate, and none elsewhere."""
    return np.where(above >= 0, np.maximum(_bits(above - basis), 1), 0).astype(np.uint8)


def _basis_units(weight: float, size: int) -> int:
    """How far below a row of class 0 a vector ranks, whose errors meet rows that weigh so much together."""
    return round(-0.5 * _UNIT * math.log2(weight / size))


def _levels(variances: Float64) -> Int64:
    with np.errstate(divide="ignore"):
        return np.rint(np.maximum(0.5 * _UNIT * np.log2(variances), _FAINTEST)).astype(np.int64)


def _magnitudes(levels: Int64) -> Float32:
    return np.exp2(levels / _UNIT).astype(np.float32)
