"""A device's change of its trunk as it came, encoded: each tensor is decoded when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from adc_edge.arrays import Body, Float32
from adc_edge.codec.trunk_changes import Shapes, changes_bytes, decode_changes
from adc_edge.defaults import FleetPrecision
from adc_edge.errors import ProtocolError

_MOST = 1e30  # magnitude of a value: sums with it stay finite in float32


class EncodedChange(Mapping[str, Float32]):
    """The tensors of a change by name. Memory holds the encoded bytes alone, so that many devices' changes fit.

    Args:
        body: what ``encode_changes`` made.
        shapes: of every tensor.
        precision: the encoding.

    Raises:
        ProtocolError: code ``size``: another length; code ``nan``: a value is not finite, or so large that a trunk
            would not stay finite.
    """

    def __init__(self, body: Body, shapes: Shapes, precision: FleetPrecision) -> None:
        self._body, self._shapes, self._precision = memoryview(body), shapes, precision
        for name, value in decode_changes(self._body, shapes, precision).items():
            if value.size and float(np.abs(value).max()) > _MOST:
                received = f"a change of {name} with values beyond {_MOST:g}"
                raise ProtocolError(received, "a change that a trunk can take", "lower --lr on the device", "nan")
        self._places: dict[str, tuple[int, int]] = {}
        start = 0
        for name in sorted(shapes):
            end = start + changes_bytes({name: shapes[name]}, precision)
            self._places[name], start = (start, end), end

    @property
    def nbytes(self) -> int:
        """Size of the encoded change."""
        return self._body.nbytes

    def __getitem__(self, name: str) -> Float32:
        start, end = self._places[name]
        return decode_changes(self._body[start:end], {name: self._shapes[name]}, self._precision)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Contribution(NamedTuple):
    """A session's change that is in no round yet."""

    step: int
    images: int
    change: EncodedChange
    last: bool
    learned: int  # images that the head has learned of the session until then
