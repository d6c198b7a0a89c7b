"""Range asymmetric numeral systems (Duda, arXiv 1311.2540), many lanes at a time so that NumPy does the work.

Symbol i belongs to lane i modulo the number of lanes. A lane's state is at least 2**16 and below 2**32; it gives and
takes words of 16 bits. All begin at 2**16, so a decoder that ends there has very likely read what was written.

Stream: the lanes' states as uint32, then the words in the order in which the decoder takes them (little endian).
"""

from __future__ import annotations

import numpy as np

from adc_edge.arrays import Int64, UInt8, UInt32
from adc_edge.codec.transform.models import SCALE_BITS, SLOTS, SYMBOLS, models

_LOW = np.uint32(1 << 16)
_WORD = np.uint32(16)
_SCALE = np.uint32(SCALE_BITS)
_ROOM = np.uint32(32 - SCALE_BITS)
_SLOT = np.uint32(SLOTS - 1)
_OFFSET = np.uint32(0xFFFF)
_LANE_BYTES = 4


def most_bytes(lanes: int) -> int:
    """Return how many bytes a stream has at most beyond the bits of its symbols."""
    return _LANE_BYTES * lanes + 2


class BrokenStreamError(ValueError):
    """The stream is not what an encoder writes."""


def encode_symbols(classes: Int64, symbols: Int64, lanes: int) -> bytes:
    """Return the stream of ``symbols``.

    Args:
        classes: the model of each symbol, ``[n]``.
        symbols: 0 to ``SYMBOLS - 1``, ``[n]``.
        lanes: states side by side, 1 or more; each costs up to four bytes.
    """
    tables, count = models(), len(symbols)
    steps = -(-count // lanes)
    # A frequency of all slots leaves a state as it is: that fills the last step.
    frequency = np.full(steps * lanes, SLOTS, np.uint32)
    start = np.zeros(steps * lanes, np.uint32)
    index = classes * SYMBOLS + symbols
    frequency[:count], start[:count] = tables.frequencies[index], tables.starts[index]
    others = np.uint32(SLOTS) - frequency
    state = np.full(lanes, _LOW)
    words: list[UInt32] = []
    for end in range(steps * lanes, 0, -lanes):
        at = slice(end - lanes, end)
        full = state >> _ROOM >= frequency[at]
        words.append(state[full])
        state >>= full * _WORD
        state += state // frequency[at] * others[at] + start[at]  # quotient * SLOTS + rest + start
    words.reverse()
    body = np.concatenate(words) if words else np.empty(0, np.uint32)
    return state.astype("<u4").tobytes() + body.astype("<u2").tobytes()


def decode_symbols(stream: memoryview, classes: Int64, lanes: int) -> UInt8:
    """Return the symbols that ``encode_symbols`` wrote; what follows the stream is ignored.

    Raises:
        BrokenStreamError: the stream is too short, or does not end as every stream does.
    """
    count, first = len(classes), _LANE_BYTES * lanes
    if len(stream) < first:
        raise BrokenStreamError
    tables = models()
    state = np.frombuffer(stream, "<u4", lanes).astype(np.uint32)
    words = np.frombuffer(stream[first:], "<u2", (len(stream) - first) // 2).astype(np.uint32)
    places = (classes * SLOTS).astype(np.uint32)  # of a model's first slot, then of the symbol's
    taken = 0
    for begin in range(0, count, lanes):
        at = places[begin : begin + lanes]
        active = state[: len(at)]
        at += active & _SLOT
        found = tables.slots[at]
        active >>= _SCALE
        active *= found >> _WORD
        active += found & _OFFSET
        (low,) = np.nonzero(active < _LOW)
        if len(low):
            more = words[taken : taken + len(low)]
            if len(more) < len(low):
                raise BrokenStreamError
            active[low] = (active[low] << _WORD) | more
            taken += len(low)
    if (state != _LOW).any():
        raise BrokenStreamError
    return tables.slot_symbols[places]
