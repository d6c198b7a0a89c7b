"""Integers of known classes <-> bytes: a few outliers, the lower bits of large values, and a range coder's stream."""

from __future__ import annotations

import struct

import numpy as np

from adc_edge.arrays import Int64
from adc_edge.codec.transform import rans
from adc_edge.codec.transform.models import LARGEST, lower_bits, model_of, models
from adc_edge.errors import ProtocolError

_COUNT = struct.Struct("<H")
COUNT_BYTES = _COUNT.size
_OUTLIER = np.dtype([("place", "<u4"), ("value", "<i4")])
_MOST_OUTLIERS = 2**16 - 1
_INT32 = 2**31 - 1


def pack_symbols(values: Int64, classes: Int64, lanes: int) -> bytes:
    """Return the bytes of ``values``; of more than 65,535 outliers the largest are kept, the others are cut.

    Args:
        values: ``[n]``.
        classes: the class of each value, 0 to ``LARGEST_CLASS``.
        lanes: of the range coder.
    """
    inside, lower = _inside(values, classes), lower_bits(classes)
    (beyond,) = np.nonzero(inside != values)
    if len(beyond) > _MOST_OUTLIERS:
        beyond = np.sort(beyond[np.argsort(-np.abs(values[beyond]), kind="stable")[:_MOST_OUTLIERS]])
    outliers = np.empty(len(beyond), _OUTLIER)
    outliers["place"], outliers["value"] = beyond, np.clip(values[beyond], -_INT32, _INT32)
    packed = b"".join(
        np.packbits(
            ((inside[lower == width, None] >> np.arange(width)) & 1).astype(np.uint8), bitorder="little"
        ).tobytes()
        for width in range(1, int(lower.max(initial=0)) + 1)
    )
    stream = rans.encode_symbols(model_of(classes), (inside >> lower) + LARGEST, lanes)
    return _COUNT.pack(len(beyond)) + outliers.tobytes() + packed + stream


def read_symbols(data: memoryview, classes: Int64, lanes: int) -> Int64:
    """Return the values that ``pack_symbols`` wrote; bytes after them are ignored.

    Raises:
        ProtocolError: no encoder writes these bytes.
    """
    if len(data) < _COUNT.size:
        raise broken("a message that ends before its symbols")
    (count,) = _COUNT.unpack_from(data)
    end = _COUNT.size + count * _OUTLIER.itemsize
    lower = lower_bits(classes)
    widths = range(1, int(lower.max(initial=0)) + 1)
    places = [np.flatnonzero(lower == width) for width in widths]
    starts = end + np.cumsum([0, *(-(-len(place) * width // 8) for place, width in zip(places, widths, strict=True))])
    if starts[-1] > len(data):
        raise broken(f"{count} outliers and the lower bits of {int((lower > 0).sum())} values in {len(data)} bytes")
    outliers = np.frombuffer(data, _OUTLIER, count, _COUNT.size)
    if count and outliers["place"].max() >= len(classes):
        raise broken(f"an outlier at {outliers['place'].max()} of {len(classes)} values")
    try:
        values = rans.decode_symbols(data[starts[-1] :], model_of(classes), lanes).astype(np.int64) - LARGEST
    except rans.BrokenStreamError:
        raise broken("a range coder's stream that does not end as it should") from None
    values <<= lower
    for place, width, start in zip(places, widths, starts, strict=False):
        bits = np.unpackbits(np.frombuffer(data, np.uint8, -(-len(place) * width // 8), start), bitorder="little")
        values[place] += (bits[: len(place) * width].reshape(-1, width).astype(np.int64) << np.arange(width)).sum(1)
    values[outliers["place"]] = outliers["value"]
    return values


def broken(what: str) -> ProtocolError:
    """Return the refusal of a message that no encoder writes."""
    return ProtocolError(
        what, "a tensor as it was encoded", "install the same version of adc-edge on both sides", "size"
    )


def _inside(values: Int64, classes: Int64) -> Int64:
    """The values, cut to those that have symbols."""
    lower, largest = lower_bits(classes), models().largest[model_of(classes)]
    return np.clip(values, -largest << lower, ((largest + 1) << lower) - 1)
