"""Bit planes of the codes of a low-rank message (`lowrank.py`): plane j has bit j of every code wider than j bits.

Rows of one class have codes of the same widths, so a plane takes the same components of each of them. Rows are
therefore packed by class: copies of whole columns, where a choice value by value would cost several times as much.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from adc_edge.arrays import Int64, UInt8
from adc_edge.codec.bit_allocation import BitAllocation
from adc_edge.codec.casts import row_slices

_PIECE_VALUES = 262_144
Places = slice | Int64  # of rows or columns: a range where they lie side by side, because that is faster


class Block(NamedTuple):
    """Rows of one class: their coordinates have the same widths."""

    rows: Places
    scale: np.float32  # magnitude of the rows as a share of class 0's
    components: Places  # those with bits
    widths: UInt8  # [n], of their codes
    wider: tuple[Places, ...]  # for each plane, the places in ``widths`` of the codes that have a bit in it

    def pieces(self, width: int) -> Iterator[Block]:
        """Yield the block in pieces that stay in the cache, of rows with ``width`` values."""
        for part in row_slices(_size(self.rows), width, _PIECE_VALUES):
            yield self._replace(rows=part if isinstance(self.rows, slice) else self.rows[part])


def blocks_of(allocation: BitAllocation, classes: UInt8) -> list[Block]:
    """Return the rows of each class, together; ``classes`` are those of the rows, ``[rows]``."""
    scales = allocation.class_scales()
    if not allocation.has_classes:
        return [_block(slice(0, len(classes)), scales[0], allocation.class_widths()[0])]
    members = [np.flatnonzero(classes == index) for index in range(len(scales))]
    found = zip(members, scales, allocation.class_widths(), strict=True)
    return [_block(rows, scale, widths) for rows, scale, widths in found if len(rows)]


def _block(rows: Places, scale: np.float32, widths: UInt8) -> Block:
    if (widths[1:] > widths[:-1]).any():  # our encoder writes no such message
        components = np.flatnonzero(widths)
        widths = widths[components]
        return Block(rows, scale, components, widths, tuple(np.flatnonzero(widths > bit) for bit in range(max(widths))))
    wider = np.bincount(widths, minlength=1)[:0:-1].cumsum()[::-1].tolist()  # how many are wider than each bit
    first = slice(0, wider[0] if wider else 0)
    return Block(rows, scale, first, widths[first], tuple(slice(0, count) for count in wider))


def _size(places: Places) -> int:
    return places.stop - places.start if isinstance(places, slice) else len(places)


def _within(inner: Places, outer: Places) -> Places:
    """Where the places ``inner`` stand in the list of places ``outer``, which holds them all."""
    return inner if isinstance(inner, slice) or isinstance(outer, slice) else np.searchsorted(outer, inner)


class CodePlanes:
    """The planes of the coordinates' codes, row after row in each plane; here with a byte for each bit."""

    def __init__(self, blocks: list[Block], rows: int) -> None:
        counts = np.zeros((max((len(block.wider) for block in blocks), default=0), rows), np.intp)
        for block in blocks:
            for bit, columns in enumerate(block.wider):
                counts[bit, block.rows] = _size(columns)
        ends = counts.cumsum(axis=1)
        self._starts = ends - counts
        self._bits = [np.empty(end, np.uint8) for end in ends[:, -1:].reshape(-1)]

    def write(self, block: Block, codes: UInt8) -> None:
        """Take the codes ``[rows, n]`` of a block or of a piece of it."""
        for bit, columns in enumerate(block.wider):
            chosen = codes[:, columns] & np.uint8(1 << bit)
            places = self._places(block, bit, chosen.shape[1])
            self._bits[bit][places] = chosen.reshape(-1) if isinstance(places, slice) else chosen

    def read(self, block: Block) -> UInt8:
        """Return the codes ``[rows, n]`` of a block or of a piece of it."""
        codes = np.zeros((_size(block.rows), 0), np.uint8)
        for bit in reversed(range(len(block.wider))):
            columns = block.wider[bit]
            found = self._bits[bit][self._places(block, bit, _size(columns))].reshape(len(codes), -1)
            if codes.size:
                found[:, _within(block.wider[bit + 1], columns)] |= codes << np.uint8(1)
            codes = found
        return codes

    def pack(self) -> bytes:
        """Return the planes, eight bits to a byte."""
        return b"".join(np.packbits(bits, bitorder="little").tobytes() for bits in self._bits)

    def unpack(self, data: memoryview, at: int) -> None:
        """Fill the planes from packed ones at offset ``at``."""
        for bits in self._bits:
            plane = np.frombuffer(data, np.uint8, -(-len(bits) // 8), at)
            bits[:] = np.unpackbits(plane, count=len(bits), bitorder="little")
            at += len(plane)

    def _places(self, block: Block, bit: int, count: int) -> Places:
        starts = self._starts[bit]
        if isinstance(block.rows, slice):
            first = int(starts[block.rows.start])
            return slice(first, first + count * (block.rows.stop - block.rows.start))
        places: Int64 = starts[block.rows][:, None] + np.arange(count)
        return places
