"""TensorBoard's event files read back, with the checksums and protocol buffers of tensorboardX."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from struct import unpack
from typing import Any

from tensorboardX.crc32c import crc32c  # type: ignore[import-untyped]
from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]


def masked(data: bytes) -> int:
    crc = int(crc32c(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(file: Path) -> Iterator[Any]:
    """The events of one file, whose checksums are right."""
    data = file.read_bytes()
    while data:
        size = unpack("<Q", data[:8])[0]
        body, rest = data[12 : 12 + size], data[12 + size :]
        assert unpack("<I", data[8:12])[0] == masked(data[:8])
        assert unpack("<I", rest[:4])[0] == masked(body)
        yield Event.FromString(body)
        data = rest[4:]


def points(directory: Path) -> list[tuple[str, int, float, float]]:
    """Return tag, place, value and time of each scalar that TensorBoard would show, in the order of writing."""
    found: list[tuple[str, int, float, float]] = []
    for file in sorted(directory.glob("events.out.tfevents.*")):
        assert next(events(file)).file_version == "brain.Event:2"
        for event in events(file):
            if event.HasField("session_log"):
                assert event.session_log.status == event.session_log.START
                found = [point for point in found if point[1] < event.step]
            found += [(value.tag, event.step, value.simple_value, event.wall_time) for value in event.summary.value]
    return found
