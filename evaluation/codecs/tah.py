"""Rotated tiles in few bits, squeezed: activations and gradients after TAH-Quant (arXiv 2506.01352).

A token's channels are cut into tiles of up to 64. Each tile is multiplied by random signs that both sides know and by a
Hadamard matrix, so that outliers are spread over it. It has a scale of its own, and 0, 2, 3 or 4 bits a value. The
sender measures each tile's error with each number of bits and chooses those that make the error of all least within the
bytes that are allowed (Lagrange multiplier, by bisection on the true size). The codes of tiles of equal bits are packed
without gaps or compressed by zstd, whichever is shorter.

Different from the paper, of which only the abstract was at hand: bits are chosen by measured error instead of
entropy, all tiles are rotated with random signs instead of swapping pivots, and zstd is added. The paper's ways were
not built, so nothing is known about which of them are better. 0 bits are ours: with the paper's 2 to 4 bits the method
cannot go below 6 % of fp32's bytes.

A body is the exponent e of the scales (int32) and five sections (`packing.py`), then the labels. The sections are each
tile's place in BITS (2 bits), float16 scales of the tiles with bits, and the codes of the tiles with 2, 3 and 4 bits.

Letters: as in `adc_edge.evaluation.codecs.base`; M = B*N rows, t values of a tile, K tiles.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from adc_edge.arrays import Arrays, Float32, Float64, Int64, UInt8
from adc_edge.codec.precision import Precision
from adc_edge.errors import ProtocolError, SettingError
from adc_edge.evaluation.codecs.matrix import MatrixCodec
from adc_edge.evaluation.codecs.packing import Sections, bad_bytes, section
from adc_edge.evaluation.codecs.sparse import check_share
from adc_edge.machine.threads import limit_blas

BITS = (0, 2, 3, 4)
LARGEST_TILE = 64
_SCALE_BITS, _KIND_BITS, _FLOAT_BYTES = 16, 2, 4
_EXPONENT = np.dtype("<i4")
_LARGEST_EXPONENT = 149
_BISECTIONS = 14
_TINY = 1e-300  # below every squared float32


def hadamard(size: int) -> Float32:
    """Orthonormal Hadamard matrix (Sylvester's) of a power of two."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (matrix / math.sqrt(size)).astype(np.float32)


def tile_size(dim: int) -> int:
    """Largest power of two up to 64 that divides D."""
    return math.gcd(dim, LARGEST_TILE)


class _Coded(NamedTuple):
    """All tiles with one number of bits."""

    steps: Float32  # [K], the scale: a tile's value of largest magnitude over its lowest level
    codes: UInt8  # [K, t]
    errors: Float64  # [K], squared


class TileCoder:
    """Encodes a matrix in a number of bytes, and decodes it.

    Args:
        dim: D, the channels.
        share: share of the fp32 bytes that an encoded matrix may take.
        seed: random seed of the signs, the same on both sides.
    """

    def __init__(self, dim: int, share: float, seed: int) -> None:
        self.dim, self.share, self.size = dim, share, tile_size(dim)
        self._signs = np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), dim)
        self._matrix = hadamard(self.size)

    def rotate(self, x: Float32) -> Float32:
        """Rotated tiles ``[K, t]`` of ``[M, D]``."""
        tiles: Float32 = (x * self._signs).reshape(-1, self.size) @ self._matrix
        return tiles

    def turn_back(self, tiles: Float32) -> Float32:
        """Matrix ``[M, D]`` of its rotated tiles."""
        x: Float32 = (tiles @ self._matrix.T).reshape(-1, self.dim) * self._signs
        return x

    def encode(self, x: Float32) -> bytes:
        """Encode ``[M, D]`` in at most ``share`` of its fp32 bytes; in more if not even 0 bits fit.

        Raises:
            ProtocolError: a value is NaN or infinite.
        """
        limit_blas()
        tiles = self.rotate(x)
        if not np.isfinite(tiles).all():
            raise ProtocolError("values that are not finite", "finite values", "lower --lr", "nan")
        exponent = math.frexp(float(np.abs(tiles).max(initial=0.0)))[1]
        coded = {bits: _quantize(tiles, bits, exponent) for bits in BITS[1:]}
        errors = np.stack([np.square(tiles, dtype=np.float64).sum(1), *(c.errors for c in coded.values())])
        budget = self.share * _FLOAT_BYTES * x.size
        costs = np.array([bits * self.size + _SCALE_BITS * (bits > 0) for bits in BITS], np.float64)[:, None]

        def packed(log_price: float) -> bytes:
            return _pack((errors + 2.0**log_price * costs).argmin(0), coded, exponent)

        top = math.log2(max(float(errors[0].max(initial=0.0)), _TINY)) + 1  # here no tile is worth a bit
        low, high, best = top - 60.0, top, packed(top)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            body = packed(middle)
            if len(body) <= budget:
                high, best = middle, body
            else:
                low = middle
        return best

    def decode(self, data: memoryview, rows: int) -> Float32:
        """Decode ``[rows, D]``.

        Raises:
            ProtocolError: ``data`` is not what an encoder writes.
        """
        if len(data) < _EXPONENT.itemsize:
            raise bad_bytes(f"{len(data)} bytes", f"at least {_EXPONENT.itemsize}")
        exponent = int.from_bytes(data[: _EXPONENT.itemsize], "little", signed=True)
        if abs(exponent) > _LARGEST_EXPONENT:
            raise bad_bytes(f"an exponent of {exponent}", f"at most {_LARGEST_EXPONENT}, as in fp32")
        tiles, sections = rows * self.dim // self.size, Sections(data[_EXPONENT.itemsize :])
        bits = np.array(BITS)[sections.read(tiles, _KIND_BITS)]
        scales = sections.read(int((bits > 0).sum()) * _SCALE_BITS // 8, 8)
        steps = np.frombuffer(scales.tobytes(), "<f2").astype(np.float64) * 2.0**exponent
        found, used = np.zeros((tiles, self.size), np.float32), 0
        for number in BITS[1:]:
            places = np.flatnonzero(bits == number)
            codes = sections.read(len(places) * self.size, number).reshape(-1, self.size).astype(np.float64)
            found[places] = (codes - (1 << (number - 1))) * steps[used : used + len(places), None]
            used += len(places)
        sections.close()
        if not np.isfinite(found).all():
            raise bad_bytes("values that are not finite", "finite values")
        return self.turn_back(found)

    def arrays(self) -> dict[str, Any]:
        """Return nothing: batches are independent."""
        return {}

    def restore(self, arrays: Arrays) -> None:
        """Restore nothing."""


def _quantize(tiles: Float32, bits: int, exponent: int) -> _Coded:
    """Quantize tiles ``[K, t]`` as the wire does rows: the value of largest magnitude becomes the lowest level."""
    lowest = 1 << (bits - 1)
    peaks = np.take_along_axis(tiles, np.abs(tiles).argmax(1)[:, None], 1)[:, 0]
    units = (peaks / -lowest).astype(np.float64) * 2.0**-exponent
    steps = (units.astype("<f2").astype(np.float64) * 2.0**exponent).astype(np.float32)
    inverse = np.divide(1.0, steps, out=np.zeros_like(steps), where=steps != 0)
    levels = np.clip(np.rint(tiles * inverse[:, None]), -lowest, lowest - 1)
    errors = np.square(tiles - levels * steps[:, None], dtype=np.float64).sum(1)
    return _Coded(steps, (levels + lowest).astype(np.uint8), errors)


def _pack(kinds: Int64, coded: dict[int, _Coded], exponent: int) -> bytes:
    """Write the tiles with the bits that were chosen, ``kinds`` ``[K]`` places in BITS."""
    groups = [(number, np.flatnonzero(kinds == kind)) for kind, number in enumerate(BITS) if number]
    steps = np.concatenate([coded[number].steps[places] for number, places in groups])
    scales = (steps.astype(np.float64) * 2.0**-exponent).astype("<f2")
    codes = b"".join(section(coded[number].codes[places], number) for number, places in groups)
    head = np.array([exponent], _EXPONENT).tobytes() + section(kinds.astype(np.uint8), _KIND_BITS)
    return head + section(np.frombuffer(scales.tobytes(), np.uint8), 8) + codes


class Tah(MatrixCodec):
    """Sends activations and gradients as rotated tiles of 0 to 4 bits.

    Args:
        classes: C, the number of classes.
        share: share of the uncompressed bytes, each way, that the tiles may take.
        dim: D, the channels.
        precision: fp32 only: the share decides.
        gradient_precision: fp32 only.
        seed: random seed of the signs.

    Raises:
        SettingError: a share outside (0, 1], or another precision.
    """

    def __init__(
        self, classes: int, share: float, dim: int, precision: Precision, gradient_precision: Precision, seed: int
    ) -> None:
        if (precision, gradient_precision) != ("fp32", "fp32"):
            raise SettingError(
                f"tah@{share:g}/{precision}:{gradient_precision}", "a share alone", "for example tah@0.05"
            )
        up, down = (TileCoder(dim, check_share(share, "TAH-Quant"), side) for side in (2 * seed, 2 * seed + 1))
        super().__init__(classes, share, precision, gradient_precision, up, down)

    def through(self, features: Tensor) -> Tensor | None:
        """Test activations ``[B, N, D]`` as the trainer would decode them."""
        rows: Float32 = features.float().flatten(0, 1).cpu().numpy()
        coder = self.coders["up"]
        found = coder.decode(memoryview(coder.encode(rows)), len(rows))
        return torch.from_numpy(found).view(features.shape).to(features.device)
