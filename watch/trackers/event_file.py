"""TensorBoard's event files, written without a library: records of protocol buffers, each with its checksums.

tensorboardX imports torch where it is installed (seconds, 300 MB), and its writer blocks for ever once a full disk has
ended its thread. The few fields of tensorboard/compat/proto/event.proto that scalars need are written here.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected
_START = 1  # SessionLog.START


class EventFile:
    """One event file in ``directory``, which is created if absent.

    Args:
        first: TensorBoard forgets what older files have at this step or later ones.
    """

    def __init__(self, directory: Path, first: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        now = time.time()  # TensorBoard reads the files in the order of their names
        name = f"events.out.tfevents.{now:017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (directory / name).open("xb")
        self._record(_double(1, now) + _bytes(3, b"brain.Event:2"))
        self._record(_double(1, now) + _integer(2, first) + _bytes(7, _integer(1, _START)))

    def write(self, step: int, moment: float, values: Mapping[str, float]) -> None:
        """Write values by tag, at a place of the x axis and a Unix time."""
        found = (_bytes(1, name.encode("utf-8", "replace")) + _float(2, value) for name, value in values.items())
        summary = b"".join(_bytes(1, value) for value in found)
        self._record(_double(1, moment) + _integer(2, step) + _bytes(5, summary))

    def flush(self) -> None:
        """Hand everything to the kernel; raises OSError."""
        self._file.flush()

    def close(self) -> None:
        """Write everything and close the file; raises OSError."""
        self._file.close()

    def _record(self, data: bytes) -> None:
        length = struct.pack("<Q", len(data))
        self._file.write(length + _masked_crc(length) + data + _masked_crc(data))


def _table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [(crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0) for crc in table]
    return table


_TABLE = _table()


def _masked_crc(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
    try:
        packed = struct.pack("<f", value)
    except OverflowError:  # beyond what a float32 holds
        packed = struct.pack("<f", float("inf") if value > 0 else float("-inf"))
    return _varint(field << 3 | 5) + packed
