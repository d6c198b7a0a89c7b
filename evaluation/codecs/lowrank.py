"""Low rank: a batch's activations as a product of two thin factors, and its gradients too.

After NSC-SL (arXiv 2602.02696: rank from the bandwidth, alternating orthogonal iteration, residual feedback) and
PowerSGD (arXiv 1905.13727). The tokens of a batch are the rows of a matrix X ``[M, D]``. The sender starts from the
basis of its last batch, makes two rounds of orthogonal iteration, and encodes the left factor P. The right factor Q is
the least-squares fit to P as it arrives, so the error of P's rounding is fed back into Q. With ``feedback``
(``lowrank-ef``) all that the factors miss is also added to the next batch, row by row, as PowerSGD does with gradients
of weights. Here rows of two batches belong to different images.

Different from NSC-SL, of which only the abstract was at hand: the rank follows from the share of the bytes alone, not
from the spectrum and a changing bandwidth as well. Its precision of the factors and the place where its residual is fed
back are not known from the abstract, so fp32, fp16 and int8, and both kinds of feedback are offered.

Letters: as in `adc_edge.evaluation.codecs.base`; M = B*N rows, r the rank.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from adc_edge.arrays import Arrays, Float32
from adc_edge.codec.precision import VALUE_PRECISIONS, Precision, decode, encode, encoded_bytes
from adc_edge.errors import SettingError
from adc_edge.evaluation.codecs.matrix import MatrixCodec
from adc_edge.evaluation.codecs.sparse import check_share
from adc_edge.machine.threads import limit_blas

_FLOAT_BYTES = 4
_ROUNDS = 2


def factor_bytes(rows: int, dim: int, rank: int, precision: Precision) -> int:
    """Bytes of both factors ``[r, M]`` and ``[r, D]``."""
    return encoded_bytes((rank, rows), precision) + encoded_bytes((rank, dim), precision)


def rank_of(rows: int, dim: int, share: float, precision: Precision) -> int:
    """Largest rank whose factors take at most ``share`` of the fp32 bytes of ``[M, D]``; at least 1."""
    budget, rank = share * _FLOAT_BYTES * rows * dim, 1
    while rank < min(rows, dim) and factor_bytes(rows, dim, rank + 1, precision) <= budget:
        rank += 1
    return rank


class FactorCoder:
    """Encodes matrices of one direction; its state is its basis, and what its factors missed in the last batch.

    Args:
        dim: D, the channels.
        share: share of the fp32 bytes that the factors may take.
        precision: of the factors, one scale for each factor's column where it has scales.
        feedback: share of the missed part that is added to the next batch; 0: none.
    """

    def __init__(self, dim: int, share: float, precision: Precision, feedback: float) -> None:
        self.dim = dim
        self.share, self.precision, self.feedback = share, precision, feedback
        self._basis: Float32 | None = None  # [D, r]
        self._missed: Float32 | None = None  # [M, D]

    def encode(self, x: Float32) -> bytes:
        """Encode ``[M, D]`` as two factors."""
        limit_blas()
        rows, dim = x.shape
        rank = rank_of(rows, dim, self.share, self.precision)
        if self.feedback and self._missed is not None and self._missed.shape == x.shape:
            x = x + np.float32(self.feedback) * self._missed
        basis = self._basis
        if basis is None or basis.shape != (dim, rank):
            basis = np.random.default_rng(0).standard_normal((dim, rank)).astype(np.float32)
        for _ in range(_ROUNDS):
            left = np.linalg.qr(x @ basis)[0]  # [M, r]
            basis = x.T @ left
        head = bytes(encode(np.ascontiguousarray(left.T), self.precision))
        arrived = decode(memoryview(head), (rank, rows), self.precision)  # [r, M]
        right = np.linalg.lstsq(arrived @ arrived.T, arrived @ x, rcond=None)[0]  # [r, D]
        body = head + bytes(encode(right.astype(np.float32), self.precision))
        self._basis = basis
        if self.feedback:
            self._missed = x - self.decode(memoryview(body), rows)
        return body

    def decode(self, data: memoryview, rows: int) -> Float32:
        """Multiply the factors: ``[rows, D]``.

        Raises:
            ProtocolError: the length is wrong, or a value is not finite.
        """
        limit_blas()
        rank = rank_of(rows, self.dim, self.share, self.precision)
        cut = encoded_bytes((rank, rows), self.precision)
        left = decode(data[:cut], (rank, rows), self.precision)
        product: Float32 = left.T @ decode(data[cut:], (rank, self.dim), self.precision)
        return product

    def arrays(self) -> dict[str, Any]:
        """Return basis and missed part as arrays, as far as there are any."""
        state = {"basis": self._basis, "missed": self._missed}
        return {name: value for name, value in state.items() if value is not None}

    def restore(self, arrays: Arrays) -> None:
        """Restore what ``arrays`` returned."""
        self._basis, self._missed = arrays.get("basis"), arrays.get("missed")


class LowRank(MatrixCodec):
    """Sends activations and gradients as two factors each.

    Args:
        classes: C, the number of classes.
        share: share of the uncompressed bytes that the factors take, in their precisions; the rank is at least 1.
        dim: D, the channels.
        precision: precision of the activations' factors.
        gradient_precision: precision of the gradients' factors.
        feedback: share of the error that is added to the next activations and gradients; 0: none.

    Raises:
        SettingError: a share outside (0, 1], or a precision that is low rank itself.
    """

    def __init__(
        self,
        classes: int,
        share: float,
        dim: int,
        precision: Precision,
        gradient_precision: Precision,
        feedback: float = 0.0,
    ) -> None:
        check_share(share, "low rank")
        for chosen in (precision, gradient_precision):
            if chosen not in VALUE_PRECISIONS:
                raise SettingError(
                    f"factors in {chosen}", f"one of {', '.join(VALUE_PRECISIONS)}", "for example lowrank@0.01/fp16"
                )
        up = FactorCoder(dim, share, precision, feedback)
        down = FactorCoder(dim, share, gradient_precision, feedback)
        super().__init__(classes, share, precision, gradient_precision, up, down)
