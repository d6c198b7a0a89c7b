"""Top-K and RandTopK (arXiv 2305.18469): each sample's largest activations are sent, and their gradients come back.

A body holds the values ``[B, K]`` in their precision, then the places of these values in each sample's flattened
``[N*D]`` activations, then the labels. Places are in ascending order, as a bitmap or as packed numbers, whichever is
smaller; each sample's places start on a byte. The gradient ``[B, K]`` is sent without places: both sides know them.

Letters: as in `adc_edge.evaluation.codecs.base`; n = N*D values of a sample, K of them kept.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import torch
from torch import Tensor

from adc_edge.arrays import Int64
from adc_edge.codec.precision import Precision, encode, encoded_bytes
from adc_edge.errors import ProtocolError, SettingError
from adc_edge.evaluation.codecs.base import (
    Arrived,
    Codec,
    CodecBatch,
    EncodedBatch,
    Header,
    decode_tensor,
    own_labels,
    read_labels,
    split_body,
)
from adc_edge.method.trunk import Trunk

_FLOAT_BYTES = 4


def check_share(share: float, method: str) -> float:
    """Return the share if it is in (0, 1].

    Raises:
        SettingError: outside (0, 1].
    """
    if not 0.0 < share <= 1.0:
        raise SettingError(f"a share of {share} for {method}", "more than 0, at most 1", "for example 0.1")
    return share


def place_bytes(count: int, total: int) -> int:
    """Bytes of the places of ``count`` among a sample's ``total`` values: packed numbers or a bitmap."""
    return -(-min(count * _place_bits(total), total) // 8)


def _place_bits(total: int) -> int:
    """Bits of a number in ``[0, total)``."""
    return (total - 1).bit_length()


def _is_bitmap(count: int, total: int) -> bool:
    return count * _place_bits(total) >= total


def pack_places(places: Int64, total: int) -> bytes:
    """Write ``places`` ``[B, K]``, ascending in ``[0, total)``, as ``B * place_bytes(K, total)`` bytes."""
    rows, count = places.shape
    if _is_bitmap(count, total):
        bits = np.zeros((rows, total), np.uint8)
        np.put_along_axis(bits, places, 1, axis=1)
    else:
        width = _place_bits(total)
        bits = (places[:, :, None] >> np.arange(width) & 1).astype(np.uint8)  # [B, K, width]
        bits = bits.reshape(rows, count * width)
    return np.packbits(bits, axis=1, bitorder="little").tobytes()


def unpack_places(data: memoryview, rows: int, count: int, total: int) -> Int64:
    """Read places ``[rows, count]`` back.

    Raises:
        ProtocolError: the length is wrong, or a row has not ``count`` ascending places in ``[0, total)``.
    """
    if len(data) != rows * place_bytes(count, total):
        raise _bad_places(f"{len(data)} bytes of places", f"{rows * place_bytes(count, total)} bytes")
    packed = np.frombuffer(data, np.uint8).reshape(rows, -1)
    if _is_bitmap(count, total):
        bits = np.unpackbits(packed, axis=1, count=total, bitorder="little")  # [B, n]
        found = bits.sum(axis=1, dtype=np.int64)
        if (found != count).any():
            raise _bad_places(f"a bitmap of {found[found != count][0]} places", f"{count}")
        return np.nonzero(bits)[1].reshape(rows, count)
    width = _place_bits(total)
    bits = np.unpackbits(packed, axis=1, count=count * width, bitorder="little").reshape(rows, count, width)
    places: Int64 = bits.astype(np.int64) @ (1 << np.arange(width, dtype=np.int64))  # [B, K]
    if places.max(initial=0) >= total or (np.diff(places, axis=1) <= 0).any():
        raise _bad_places("places out of range or out of order", f"ascending places below {total}")
    return places


def _bad_places(received: str, expected: str) -> ProtocolError:
    return ProtocolError(
        received, expected, "install the same version of adc-edge on both sides, and use one share", "size"
    )


class TopK(Codec):
    """Sends each sample's K activations of largest magnitude; prefix tokens are not treated apart.

    RandTopK sends the top K - R, and R = round(outside * K) values drawn uniformly, without replacement, from outside
    the top K. Only training is random: test activations are those of Top-K.

    Args:
        classes: C, the number of classes.
        share: share of the 8*N*D bytes that plain fp32 sends up and down for a sample. K is the largest number whose
            K values, K places and K gradients fit into it in fp32. Labels come in addition, as they do there.
        tokens: N, the tokens of an image.
        dim: D, the channels.
        precision: precision of the activations; where it has scales (int8 and below), one a sample.
        gradient_precision: precision of the gradients.
        outside: share of the K that is drawn from outside, RandTopK's alpha; 0: Top-K.

    Raises:
        SettingError: a share outside (0, 1], or too small for a single value; ``outside`` is not in [0, 1].
    """

    def __init__(
        self,
        classes: int,
        share: float,
        tokens: int,
        dim: int,
        precision: Precision,
        gradient_precision: Precision,
        outside: float = 0.0,
    ) -> None:
        super().__init__(classes, precision, gradient_precision)
        self.tokens, self.dim, self.total = tokens, dim, tokens * dim
        budget = check_share(share, "Top-K") * 2 * _FLOAT_BYTES * self.total
        self.kept = bisect_right(range(1, self.total + 1), budget, key=self._sample_bytes)
        if not self.kept:
            least = self._sample_bytes(1) / (2 * _FLOAT_BYTES * self.total)
            raise SettingError(f"a share of {share}", f"at least {least:.2g}, one value a sample", "raise the share")
        if not 0.0 <= outside <= 1.0:
            raise SettingError(f"a share of {outside} from outside the top", "0 to 1", "for example 0.1, the paper's")
        self.outside, self.drawn = outside, min(round(outside * self.kept), self.total - self.kept)

    def _sample_bytes(self, count: int) -> int:
        """Bytes of a sample in fp32, both directions, with ``count`` values kept."""
        return 2 * _FLOAT_BYTES * count + place_bytes(count, self.total)

    def ratio(self, images: int) -> float:
        """K / n."""
        return self.kept / self.total

    def choose(self, flat: Tensor, rng: np.random.Generator) -> Tensor:
        """Places to send for each sample of ``flat`` ``[B, n]``: int64 ``[B, K]``, ascending."""
        if not self.outside:
            return self.largest(flat)
        top = flat.detach().abs().topk(self.kept, dim=1).indices  # [B, K], the largest first
        others = torch.ones(flat.shape, dtype=torch.bool).scatter(1, top.cpu(), False).numpy()
        drawn = [rng.choice(np.flatnonzero(row), self.drawn, replace=False, shuffle=False) for row in others]
        places = torch.cat([top[:, : self.kept - self.drawn], torch.from_numpy(np.stack(drawn)).to(top.device)], dim=1)
        return places.sort(dim=1).values

    def largest(self, flat: Tensor) -> Tensor:
        """Places of the K largest magnitudes of each sample of ``flat`` ``[B, n]``: int64 ``[B, K]``, ascending."""
        return flat.detach().abs().topk(self.kept, dim=1, sorted=False).indices.sort(dim=1).values

    def compress(self, trunk: Trunk, batch: CodecBatch) -> EncodedBatch:
        """Encode the chosen activations ``[B, K]`` and their places."""
        flat = trunk(batch.images).float().flatten(1)  # [B, n]
        where = self.choose(flat, batch.rng)
        tensor = flat.gather(1, where)  # [B, K]; its backward scatters the gradient into zeros
        labels = own_labels(batch.labels, self.classes)
        header = Header(len(batch.labels), tuple(tensor.shape), len(labels), self.precision)
        tail = pack_places(where.cpu().numpy(), self.total) + labels.tobytes()
        return EncodedBatch(header, encode(tensor.detach().float().cpu().numpy(), self.precision, tail), tensor, where)

    def extract(self, header: Header, body: memoryview) -> Arrived:
        """Decode the values ``[B, K]``, and put them at their places in zeros ``[B, N, D]``.

        Raises:
            ProtocolError: the body is not as the header says.
        """
        data, labels = split_body(header, body)
        cut = encoded_bytes(header.shape, header.precision)
        values = decode_tensor(data[:cut], header.shape, header.precision).to(self.place).requires_grad_()
        rows, count = header.shape
        where = torch.from_numpy(unpack_places(data[cut:], rows, count, self.total)).to(self.place)
        soft = read_labels(labels, header.images, self.classes, header.images).to(self.place)
        return Arrived(values, self.spread(values, where), soft, where)

    def spread(self, values: Tensor, where: Tensor) -> Tensor:
        """Put ``values`` ``[B, K]`` at their places in zeros ``[B, N, D]``."""
        flat = values.new_zeros(len(values), self.total).scatter(1, where, values)
        return flat.view(len(values), self.tokens, self.dim)

    def through(self, features: Tensor) -> Tensor | None:
        """Test activations ``[B, N, D]`` with all but each sample's K largest set to zero, not quantized."""
        flat = features.flatten(1)
        where = self.largest(flat)
        return self.spread(flat.gather(1, where), where)
