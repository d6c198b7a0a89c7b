"""FedLite: activations by vector quantization, with gradient correction (arXiv 2201.11865).

A token's D channels are cut into q subvectors of d channels. k-means finds L codewords, either one codebook for all
subvectors of a token (the paper's R = 1) or one for each place in it (R = q). The codebooks are made anew for each
batch and sent with it. The head computes with the codewords. The gradient that comes back is that at the codewords; the
device adds LAMBDA times (activation - codeword), the gradient of ½·LAMBDA·|activation - codeword|² a mean image, which
draws activations towards their codewords.

Only uplink bytes are saved by the paper: its gradient is fp32, ``fedlite@0.0078/fp16:fp32``. Another DOWN makes a
comparison at equal bytes possible. Different from the paper: d, R and L are chosen by the least error on the first
batch among those that fit the share; LAMBDA is one value for all settings, while the paper tunes it; a transformer's
tokens are cut instead of a CNN's flattened features.

A body holds d (uint16), whether each place has a codebook, and the bits of an index (uint8 each), the codewords
``[R*L, d]``, the indices, and the labels.

Letters: as in `adc_edge.evaluation.codecs.base`; M = B*N rows, G = R codebooks, n subvectors for each.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from adc_edge.arrays import Arrays, Float32, Int64
from adc_edge.codec.precision import VALUE_PRECISIONS, Precision, decode, encode, encoded_bytes
from adc_edge.errors import SettingError
from adc_edge.evaluation.codecs.base import (
    Arrived,
    Codec,
    CodecBatch,
    EncodedBatch,
    Header,
    own_labels,
    read_labels,
    split_body,
)
from adc_edge.evaluation.codecs.packing import bad_bytes, pack_indices, unpack_indices
from adc_edge.evaluation.codecs.sparse import check_share
from adc_edge.machine.threads import limit_blas
from adc_edge.method.trunk import Trunk

LAMBDA = 1e-3
_HEAD = struct.Struct("<HBB")
_FLOAT_BYTES = 4
_MOST_BITS = 8
_ITERATIONS, _TRIAL_ITERATIONS = 8, 2


class Cut(NamedTuple):
    """Sizes of subvectors, codebooks and indices."""

    width: int  # d
    grouped: bool  # a codebook for each place
    bits: int  # of an index; L = 2**bits

    def books(self, dim: int) -> int:
        """G, the number of codebooks."""
        return dim // self.width if self.grouped else 1

    def bytes_of(self, rows: int, dim: int, precision: Precision) -> int:
        """Bytes of the head, the codewords and the indices."""
        words = encoded_bytes((self.books(dim) << self.bits, self.width), precision)
        return _HEAD.size + words + -(-rows * (dim // self.width) * self.bits // 8)


def cuts(rows: int, dim: int, share: float, precision: Precision) -> Iterator[Cut]:
    """For each width of a subvector and both kinds of codebook, the most codewords that fit the share."""
    budget = share * _FLOAT_BYTES * rows * dim
    for width in (w for w in range(2, dim + 1) if dim % w == 0):
        for grouped in (False, True):
            fitting = [Cut(width, grouped, bits) for bits in range(1, _MOST_BITS + 1)]
            fitting = [cut for cut in fitting if cut.bytes_of(rows, dim, precision) <= budget]
            # k-means starts from distinct subvectors: there must be as many.
            fitting = [cut for cut in fitting if rows * (dim // width) // cut.books(dim) >= 1 << cut.bits]
            if fitting:
                yield fitting[-1]


def k_means(points: Float32, words: int, iterations: int, rng: np.random.Generator) -> tuple[Float32, Int64]:
    """Cluster the points of each codebook by Lloyd's k-means, ``[G, n, d]``, n >= L.

    Returns:
        Codewords ``[G, L, d]``, and the index ``[G, n]`` of each point's. An empty cluster keeps its codeword.
    """
    books = points[:, rng.permutation(points.shape[1])[:words]].copy()  # [G, L, d]
    index = nearest(points, books)
    for _ in range(iterations):
        for book, own, chosen in zip(books, points, index, strict=True):
            counts = np.bincount(chosen, minlength=words)
            sums = np.stack([np.bincount(chosen, own[:, c], words) for c in range(own.shape[1])], 1)
            book[counts > 0] = sums[counts > 0] / counts[counts > 0, None]
        index = nearest(points, books)
    return books, index


def nearest(points: Float32, books: Float32) -> Int64:
    """Index ``[G, n]`` of each point's nearest codeword."""
    products = points @ books.transpose(0, 2, 1)  # [G, n, L]
    found: Int64 = (np.square(books).sum(2)[:, None] - 2 * products).argmin(2)
    return found


class FedLite(Codec):
    """Sends codebooks and indices up, and the gradient in its precision down.

    Args:
        classes: C, the number of classes.
        share: share of the uncompressed bytes of the activations that codebooks and indices may take.
        dim: D, the channels.
        precision: precision of the codewords.
        gradient_precision: precision of the gradients; the paper's is fp32.
        correction: LAMBDA; 0: no gradient correction.

    Raises:
        SettingError: a share outside (0, 1], or codewords in a precision that is low rank.
    """

    def __init__(
        self,
        classes: int,
        share: float,
        dim: int,
        precision: Precision,
        gradient_precision: Precision,
        correction: float = LAMBDA,
    ) -> None:
        super().__init__(classes, precision, gradient_precision)
        if precision not in VALUE_PRECISIONS:
            raise SettingError(
                f"codewords in {precision}", f"one of {', '.join(VALUE_PRECISIONS)}", "for example fedlite@0.01/fp16"
            )
        self.share, self.dim, self.correction = check_share(share, "FedLite"), dim, correction
        self._cut: Cut | None = None  # chosen at the first batch

    def ratio(self, images: int) -> float:
        """The share of the bytes that go up."""
        return self.share

    def compress(self, trunk: Trunk, batch: CodecBatch) -> EncodedBatch:
        """Encode codebooks and indices of the activations ``[B, N, D]``."""
        limit_blas()
        tensor = trunk(batch.images).float()
        rows: Float32 = tensor.detach().flatten(0, 1).cpu().numpy()
        self._cut = self._cut or self.choose(rows, batch.rng)
        coded = self.encode(rows, self._cut, _ITERATIONS, batch.rng)
        labels = own_labels(batch.labels, self.classes)
        header = Header(len(batch.labels), tuple(tensor.shape), len(labels), self.precision)
        words = torch.from_numpy(self.decode(memoryview(coded), len(rows))).view(tensor.shape)
        return EncodedBatch(header, memoryview(coded + labels.tobytes()), tensor, words.to(tensor.device))

    def choose(self, rows: Float32, rng: np.random.Generator) -> Cut:
        """Return the cut of the least error for ``rows`` ``[M, D]`` among those that fit the share.

        Raises:
            SettingError: none fits.
        """
        fitting = list(cuts(len(rows), self.dim, self.share, self.precision))
        if not fitting:
            raise SettingError(f"a share of {self.share:g} for FedLite", "room for two codewords", "raise the share")

        def error(cut: Cut) -> float:
            coded = self.encode(rows, cut, _TRIAL_ITERATIONS, rng)
            return float(np.square(rows - self.decode(memoryview(coded), len(rows))).sum())

        return min(fitting, key=error)

    def encode(self, rows: Float32, cut: Cut, iterations: int, rng: np.random.Generator) -> bytes:
        """Encode ``[M, D]`` as head, codewords and indices."""
        words = 1 << cut.bits
        parts = rows.reshape(len(rows), -1, cut.width)  # [M, q, d]
        points = parts.transpose(1, 0, 2) if cut.grouped else parts.reshape(1, -1, cut.width)
        books, _ = k_means(np.ascontiguousarray(points), words, iterations, rng)
        book = encode(books.reshape(-1, cut.width), self.precision)
        arrived = decode(book, (len(points) * words, cut.width), self.precision).reshape(books.shape)
        index = nearest(points, arrived)
        return _HEAD.pack(*cut) + bytes(book) + pack_indices(index.T if cut.grouped else index, cut.bits)

    def decode(self, data: memoryview, rows: int) -> Float32:
        """Look the codewords of ``[rows, D]`` up.

        Raises:
            ProtocolError: ``data`` is not what an encoder writes.
        """
        if len(data) < _HEAD.size:
            raise bad_bytes(f"{len(data)} bytes", f"at least {_HEAD.size}")
        width, grouped, bits = _HEAD.unpack(data[: _HEAD.size])
        cut = Cut(width, bool(grouped), bits)
        if not (0 < width <= self.dim and self.dim % width == 0 and 1 <= bits <= _MOST_BITS):
            raise bad_bytes(f"{2**bits} codewords of {width} channels", f"a divisor of {self.dim}")
        books, places = cut.books(self.dim), self.dim // width
        shape = (books << bits, width)
        end = _HEAD.size + encoded_bytes(shape, self.precision)
        words = decode(data[_HEAD.size : end], shape, self.precision)
        index = unpack_indices(data[end:], rows * places, bits).reshape(rows, places)
        offset = (np.arange(places) << bits) if cut.grouped else 0
        return words[index + offset].reshape(rows, self.dim)

    def extract(self, header: Header, body: memoryview) -> Arrived:
        """Decode the activations.

        Raises:
            ProtocolError: the body is not as the header says.
        """
        data, labels = split_body(header, body)
        found = torch.from_numpy(self.decode(data, header.shape[0] * header.shape[1]))
        values = found.view(header.shape).to(self.place).requires_grad_()
        soft = read_labels(labels, header.images, self.classes, header.images)
        return Arrived(values, values, soft.to(self.place))

    def extract_gradient(self, sent: EncodedBatch, body: memoryview) -> Tensor:
        """Decode the gradient, and correct it."""
        gradient = super().extract_gradient(sent, body)
        missed: Tensor = sent.tensor.detach() - sent.where
        return gradient + self.correction / sent.header.images * missed

    def through(self, features: Tensor) -> Tensor | None:
        """Test activations ``[B, N, D]`` as codewords of a codebook made for them, the same at each call.

        A batch with fewer subvectors than codewords is repeated for k-means.
        """
        limit_blas()
        rows: Float32 = features.float().flatten(0, 1).cpu().numpy()
        rng = np.random.default_rng(0)
        cut = self._cut or self.choose(rows, rng)
        points = len(rows) * (self.dim // cut.width) // cut.books(self.dim)
        repeated = np.tile(rows, (-(-(1 << cut.bits) // points), 1))
        found = self.decode(memoryview(self.encode(repeated, cut, _ITERATIONS, rng)), len(repeated))[: len(rows)]
        return torch.from_numpy(found).view(features.shape).to(features.device)

    def arrays(self) -> dict[str, Any]:
        """Return the cut as an array, once it is chosen."""
        return {} if self._cut is None else {"cut": np.array(self._cut, np.int64)}

    def restore_state(self, arrays: Arrays) -> None:
        """Restore what ``arrays`` returned."""
        width, grouped, bits = arrays["cut"].tolist()
        self._cut = Cut(width, bool(grouped), bits)
