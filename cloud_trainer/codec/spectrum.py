"""The spectrum of rows on a device: only its small arrays leave the device."""

from __future__ import annotations

import torch
from torch import Tensor

from adc_edge.arrays import Float64
from adc_edge.codec.spectrum import ROW_CLASSES


class TensorSpectrum:
    """The spectrum (`adc_edge/codec/spectrum.py`) of a tensor of rows less their mean, ``[rows, D]``, rows >= D."""

    def __init__(self, rows: Tensor) -> None:
        self.shape = rows.shape[0], rows.shape[1]
        variances, vectors = torch.linalg.eigh((rows.T @ rows).double())
        self.variances, self.vectors = variances.cpu().numpy(), vectors.float()  # [n] and [D, n]
        self._rows, self._squares = rows, (rows * rows).sum(1)
        self.classes = _classes(self._squares)  # int64 [rows]
        self._members = torch.nn.functional.one_hot(self.classes, len(ROW_CLASSES)).float()
        self.counts = self._members.sum(0, dtype=torch.float64).long().cpu().numpy()

    def saved_bits(self) -> float:
        """Bits that classes save in each coordinate."""
        squares = self._squares.double()
        return float(squares.mean().log2() - squares.log2().mean()) / 2

    def energies(self, sample: int) -> Float64:
        """Sums of the squares of each class's coordinates, ``[classes, n]``: of all rows, a single product here."""
        squares = (self._rows @ self.vectors).square_()
        energies: Float64 = (self._members.T @ squares).double().cpu().numpy()
        return energies


def _classes(squares: Tensor) -> Tensor:
    shares = (squares / squares.max()).nan_to_num_(1.0)  # all rows are zero: class 0
    return shares.clamp_(min=2.0 ** -(len(ROW_CLASSES) - 1)).log2_().neg_().round_().long()
