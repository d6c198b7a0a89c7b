"""The change of a trunk <-> bytes on the wire: its tensors in sorted order of their names, each encoded alone.

Whoever adds the same bytes to the same trunk, with ``added``, has the same bits: device and trainer both do so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from adc_edge.arrays import Float32, Weights
from adc_edge.codec.precision import decode, encode, encoded_bytes
from adc_edge.defaults import FleetPrecision
from adc_edge.errors import ProtocolError

Shapes = Mapping[str, tuple[int, ...]]  # of a trunk's tensors, by name


def shapes_of(trunk: Weights) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor."""
    return {name: value.shape for name, value in trunk.items()}


def changes_bytes(shapes: Shapes, precision: FleetPrecision) -> int:
    """Return the size of an encoded change, in bytes."""
    return sum(size for _, _, size in _places(shapes, precision))


def encode_changes(changes: Weights, precision: FleetPrecision) -> bytes:
    """Encode the changes of a trunk's tensors.

    Args:
        changes: finite float32, by name.
        precision: the encoding; int8 has a scale for each row along the last axis.

    Returns:
        ``changes_bytes(shapes_of(changes), precision)`` bytes.

    Raises:
        ProtocolError: a value is NaN or infinite.
    """
    return b"".join(encode(np.atleast_1d(changes[name]), precision) for name in sorted(changes))


def decode_changes(body: Any, shapes: Shapes, precision: FleetPrecision) -> dict[str, Float32]:
    """Decode what ``encode_changes`` encoded.

    Args:
        body: a buffer (bytes, memoryview) of exactly ``changes_bytes(shapes, precision)`` bytes.
        shapes: of every tensor, by name.
        precision: the encoding.

    Returns:
        The tensors by name, in sorted order; they may share memory with ``body``.

    Raises:
        ProtocolError: ``body`` has another length (code size), or values that are not finite (code nan).
    """
    view = memoryview(body).cast("B")
    expected = changes_bytes(shapes, precision)
    if view.nbytes != expected:
        raise ProtocolError(
            f"{view.nbytes} bytes for the {precision} change of a trunk of {len(shapes)} tensors",
            f"{expected} bytes",
            "use the same bundle and the same version of adc-edge on both sides",
            "size",
        )
    changes, start = {}, 0
    for name, shape, size in _places(shapes, precision):
        changes[name] = decode(view[start : start + size], shape or (1,), precision).reshape(shape)
        start += size
    return changes


def added(trunk: Weights, changes: Weights) -> dict[str, Float32]:
    """Return ``trunk + changes``, added in float32."""
    return {name: np.add(value, changes[name], dtype=np.float32) for name, value in trunk.items()}


def _places(shapes: Shapes, precision: FleetPrecision) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Yield name, shape and encoded size of each tensor, in the order of the wire."""
    for name in sorted(shapes):
        yield name, shapes[name], encoded_bytes(shapes[name] or (1,), precision)
