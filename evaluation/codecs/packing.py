"""Small whole numbers as bytes: their bits without gaps, or compressed by zstd where that is shorter."""

from __future__ import annotations

import struct

import numpy as np
import zstandard

from adc_edge.arrays import Array, Int64, UInt8
from adc_edge.errors import ProtocolError

_PACKED, _COMPRESSED = 0, 1
_LENGTH = struct.Struct("<I")
_LEVEL = 3


def pack_indices(indices: Array, bits: int) -> bytes:
    """Write indices below ``2**bits``, lowest bit first, without gaps."""
    spread = (indices.reshape(-1, 1) >> np.arange(bits, dtype=indices.dtype) & 1).astype(np.uint8)
    return np.packbits(spread, bitorder="little").tobytes()


def unpack_indices(data: memoryview, count: int, bits: int) -> Int64:
    """Read ``count`` indices back.

    Raises:
        ProtocolError: the length is wrong.
    """
    if len(data) != -(-count * bits // 8):
        raise bad_bytes(f"{len(data)} bytes of indices", f"{-(-count * bits // 8)} bytes")
    spread = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits, bitorder="little").reshape(count, bits)
    return spread.astype(np.int64) @ (1 << np.arange(bits, dtype=np.int64))


def section(numbers: UInt8, bits: int) -> bytes:
    """Write numbers below ``2**bits``, at most 8 bits: a flag byte, then what is shorter.

    0: the packed bits. 1: a length (uint32) and a zstd frame of a byte a number, whose Huffman codes make few bits of
    numbers that are not equally frequent.
    """
    packed = pack_indices(numbers, bits)
    frame = zstandard.ZstdCompressor(level=_LEVEL).compress(numbers.tobytes())
    if _LENGTH.size + len(frame) < len(packed):
        return bytes([_COMPRESSED]) + _LENGTH.pack(len(frame)) + frame
    return bytes([_PACKED]) + packed


class Sections:
    """Reads sections, one after the other.

    Args:
        data: what ``section`` wrote, without gaps.
    """

    def __init__(self, data: memoryview) -> None:
        self._rest = data

    def read(self, count: int, bits: int) -> UInt8:
        """Read the next section of ``count`` numbers below ``2**bits``.

        Raises:
            ProtocolError: the bytes are not those of such a section.
        """
        flag = self._take(1)[0]
        if flag == _PACKED:
            return unpack_indices(self._take(-(-count * bits // 8)), count, bits).astype(np.uint8)
        if flag != _COMPRESSED:
            raise bad_bytes(f"flag {flag}", f"{_PACKED} or {_COMPRESSED}")
        (length,) = _LENGTH.unpack(self._take(_LENGTH.size))
        numbers = np.frombuffer(_decompress(self._take(length), count), np.uint8)
        if int(numbers.max(initial=0)) >= 1 << bits:
            raise bad_bytes(f"a number of {numbers.max()}", f"numbers of {bits} bits")
        return numbers

    def close(self) -> None:
        """Raise ProtocolError if bytes are left."""
        if len(self._rest):
            raise bad_bytes(f"{len(self._rest)} bytes after the last section", "none")

    def _take(self, count: int) -> memoryview:
        if len(self._rest) < count:
            raise bad_bytes(f"{len(self._rest)} bytes", f"at least {count}")
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken


def _decompress(data: memoryview, expected: int) -> bytes:
    try:
        announced = zstandard.get_frame_parameters(data).content_size
        if announced != expected:
            raise bad_bytes(f"{announced} bytes after decompression", f"{expected}")
        found = zstandard.ZstdDecompressor().decompress(data, max_output_size=expected)
    except zstandard.ZstdError as error:
        raise bad_bytes(f"a frame that zstd refuses: {error}", "a zstd frame") from None
    if len(found) != expected:
        raise bad_bytes(f"{len(found)} bytes after decompression", f"{expected}")
    return found


def bad_bytes(received: str, expected: str) -> ProtocolError:
    """The error of a body that no encoder of this version writes."""
    return ProtocolError(received, expected, "install the same version of adc-edge on both sides", "size")
