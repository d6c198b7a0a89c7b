"""Bits and bit planes on a device: plane j has bit j of every code wider than j bits, eight to a byte."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from adc_edge.arrays import Int64, UInt8


def pack_bits(bits: Tensor) -> Tensor:
    """Return ``[..., n]`` bytes of ``[..., 8 n]`` zeros and ones, the first one lowest; both are uint8."""
    eights = bits.reshape(*bits.shape[:-1], -1, 8)
    return (eights << _eight(bits.device)).sum(-1, dtype=torch.uint8)


def unpack_bits(data: Tensor) -> Tensor:
    """Return the bits ``[..., 8 n]`` of bytes ``[..., n]``."""
    return (data.unsqueeze(-1) >> _eight(data.device) & 1).flatten(-2)


def _eight(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)


class PlanePlaces:
    """Places of the bits of codes ``[rows, n]``, row after row in each plane. Rows of one kind have the same widths.

    Args:
        widths: bits of the codes in rows of each kind, ``[kinds, n]``.
        counts: rows of each kind, ``[kinds]``.
        kinds: int64, the kind of each row, ``[rows]``.
    """

    def __init__(self, widths: UInt8, counts: Int64, kinds: Tensor) -> None:
        planes = np.arange(widths.max(initial=0))[:, None, None]
        wider = widths > planes  # [planes, kinds, n]
        # Planes need the columns up to the last code that is wide enough in any row.
        self._columns = [int(np.flatnonzero(plane.any(axis=0))[-1]) + 1 for plane in wider]
        of_kind = wider.sum(axis=2)
        self._sizes = (of_kind @ counts).tolist()
        offsets = np.where(wider, wider.cumsum(axis=2) - 1, -1)
        self._kinds, self._offsets = kinds, torch.from_numpy(offsets).to(kinds.device)
        in_row = torch.from_numpy(of_kind).to(kinds.device)[:, kinds]
        self._starts = in_row.cumsum(dim=1) - in_row  # [planes, rows]
        self._same = len(widths) == 1 and bool((np.diff(widths[0].astype(int)) <= 0).all())
        self._width = widths.shape[1]

    def write(self, codes: Tensor, bits: Tensor, start: int) -> None:
        """Write the planes of codes ``[rows, n]``.

        Args:
            codes: int64.
            bits: uint8, a byte for each bit, and one more at the end that may be changed to anything.
            start: byte of the message at which the planes begin.
        """
        for plane, (size, columns) in enumerate(zip(self._sizes, self._columns, strict=True)):
            chosen = (codes[:, :columns] >> plane & 1).to(torch.uint8).reshape(-1)
            if self._same:
                bits[8 * start : 8 * start + size] = chosen
            else:
                bits.scatter_(0, self._places(plane, 8 * start, len(bits) - 1).reshape(-1), chosen)
            start += -(-size // 8)

    def read(self, bits: Tensor, start: int) -> Tensor:
        """Return the codes ``[rows, n]``, int64, whose planes begin at byte ``start``; the last of ``bits`` is zero."""
        codes = torch.zeros(len(self._kinds), self._width, dtype=torch.int64, device=bits.device)
        for plane, (size, columns) in enumerate(zip(self._sizes, self._columns, strict=True)):
            if self._same:
                found = bits[8 * start : 8 * start + size].view(-1, columns)
            else:
                found = bits[self._places(plane, 8 * start, len(bits) - 1)]
            codes[:, :columns] |= found.long() << plane
            start += -(-size // 8)
        return codes

    def _places(self, plane: int, first: int, nowhere: int) -> Tensor:
        """The place of each code's bit, ``[rows, columns]``; ``nowhere`` for codes that have no bit in the plane."""
        offsets = self._offsets[plane, :, : self._columns[plane]][self._kinds]
        places = self._starts[plane][:, None] + offsets + first
        return torch.where(offsets < 0, nowhere, places)


def vector_places(widths: UInt8, size: int, start: int, nowhere: int, device: torch.device) -> Tensor:
    """Return the place of each bit of vectors' codes, ``[planes, m, size]``; ``nowhere`` for bits that they lack.

    Args:
        widths: bits of each of a vector's codes, ``[m]``.
        size: D, codes of a vector.
        start: byte of the message at which the planes begin.
        nowhere: any place.
        device: where the places are made.
    """
    wider = widths > np.arange(widths.max(initial=0))[:, None]  # [planes, m]
    taken = -(-wider.sum(axis=1) * size // 8)
    starts = 8 * (start + taken.cumsum() - taken)
    first = np.where(wider, starts[:, None] + (wider.cumsum(axis=1) - 1) * size, -1)
    firsts = torch.from_numpy(first).to(device)[:, :, None]
    return torch.where(firsts < 0, nowhere, firsts + torch.arange(size, device=device))


def write_vectors(codes: Tensor, places: Tensor, bits: Tensor) -> None:
    """Write int64 codes ``[m, D]`` to ``bits``, a byte for each bit."""
    planes = torch.arange(len(places), device=bits.device)[:, None, None]
    bits.scatter_(0, places.reshape(-1), (codes >> planes & 1).to(torch.uint8).reshape(-1))


def read_vectors(bits: Tensor, places: Tensor) -> Tensor:
    """Return the int64 codes ``[m, D]`` whose bits are at ``places``."""
    planes = torch.arange(len(places), device=bits.device)[:, None, None]
    return (bits[places].long() << planes).sum(0)
