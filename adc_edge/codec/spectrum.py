"""Energies of a tensor's rows along their principal components: what the bit allocation asks of the rows."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from adc_edge.arrays import Float32, Float64, Int64, UInt8

CLASS_BITS = 4  # 16 classes, 3 dB each: rows that differ by up to 45 dB
ROW_CLASSES = np.arange(2**CLASS_BITS)
SURE = 1e-5  # of the largest component's energy: far above the rounding of a covariance in float32

_FEWEST = 64  # sampled rows in each class
_TINY = 1e-300  # keeps a quotient of zeros defined


class Spectrum(Protocol):
    """Rows less their mean, wherever they lie, and their classes: 0 for the largest row, one more each 3 dB below."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and D."""

    @property
    def variances(self) -> Float64:
        """Energies of the principal components, ``[n]``; n is the smaller of rows and D."""

    @property
    def counts(self) -> Int64:
        """Rows of each class, ``[classes]``."""

    def saved_bits(self) -> float:
        """Bits that classes save in each coordinate: half the logarithm of mean energy over its geometric mean."""

    def energies(self, sample: int) -> Float64:
        """Sums of the squares of each class's coordinates, ``[classes, n]``, from ``sample`` rows or more."""


class ArraySpectrum:
    """The spectrum of an array of rows less their mean, ``[rows, D]``."""

    def __init__(self, rows: Float32) -> None:
        self._rows = rows
        self.variances, self.vectors = components(rows)  # [n] and [D, n]
        self._squares: Float32 = np.einsum("nd,nd->n", rows, rows)
        self.classes = _classes(self._squares)
        self.counts = np.bincount(self.classes, minlength=len(ROW_CLASSES))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and D."""
        rows, size = self._rows.shape
        return rows, size

    def saved_bits(self) -> float:
        """Bits that classes save in each coordinate."""
        squares = self._squares
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.log2(squares.mean(dtype=np.float64)) - np.log2(squares).mean(dtype=np.float64)) / 2

    def energies(self, sample: int) -> Float64:
        """Sums of the squares of each class's coordinates, ``[classes, n]``, from ``sample`` rows or a few more."""
        rows, vectors, classes = self._rows, self.vectors, self.classes
        energy = np.zeros((len(ROW_CLASSES), vectors.shape[1]))
        weights = np.bincount(classes, np.sqrt(self._squares), len(ROW_CLASSES))
        most = np.maximum(sample * weights / max(weights.sum(), _TINY), _FEWEST if len(rows) > sample else sample)
        sampled = False
        for index in np.flatnonzero(np.bincount(classes)):
            members = np.flatnonzero(classes == index)
            some = _sample(members, int(most[index]))
            sampled |= len(some) < len(members)
            energy[index] = np.square(rows[some] @ vectors).sum(axis=0, dtype=np.float64) * (len(members) / len(some))
        if sampled:  # the components' energies are known, except small ones, which the covariance in float32 rounds
            sums = energy.sum(axis=0)
            known = (self.variances > SURE * self.variances.max()) & (sums > 0)
            energy *= np.divide(self.variances, sums, out=np.ones_like(sums), where=known)
        return energy


def components(rows: Float32) -> tuple[Float64, Float32]:
    """Return energies ``[n]`` and vectors ``[D, n]`` of the principal components; n is the smaller of rows and D.

    The strongest come last. Without enough variance for a direction, a vector is zero.

    Args:
        rows: less their mean, ``[rows, D]``.
    """
    if len(rows) >= rows.shape[1]:
        variances, vectors = np.linalg.eigh((rows.T @ rows).astype(np.float64))
        return variances, vectors.astype(np.float32)
    exact = rows.astype(np.float64)
    variances, coordinates = np.linalg.eigh(exact @ exact.T)  # smaller, and with the same energies
    vectors = exact.T @ coordinates
    lengths = np.sqrt(np.square(vectors).sum(axis=0))
    sure = lengths > SURE * lengths.max(initial=0.0)  # others are rounding errors along the large components
    return variances, np.divide(vectors, lengths, out=np.zeros_like(vectors), where=sure).astype(np.float32)


def _sample(members: Int64, most: int) -> Int64:
    """The same random members for the same number of them: regular ones could all be the same token of an image."""
    if len(members) <= most:
        return members
    return np.random.default_rng(0).choice(members, most, replace=False, shuffle=False)


def _classes(squares: Float32) -> UInt8:
    """Classes of rows by energy: ``round(-log2(energy / largest energy))``, 15 at most."""
    largest = squares.max()
    shares = np.divide(squares, largest, out=np.ones_like(squares), where=largest > 0)
    classes: UInt8 = np.rint(-np.log2(np.maximum(shares, np.float32(2.0 ** -(len(ROW_CLASSES) - 1))))).astype(np.uint8)
    return classes
