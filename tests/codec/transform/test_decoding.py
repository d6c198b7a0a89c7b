"""Decoding: a stored message gives the stored tensor; damaged and hostile bytes give finite values or are refused."""

from __future__ import annotations

import hashlib
import struct
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adc_edge.codec.precision import PRECISIONS, Precision, dct_bits, decode, encode, encoded_bytes
from adc_edge.codec.transform.decoding import decode_tensor
from adc_edge.codec.transform.head import FIXED_HEAD, MOST_LANES, lanes_for, layout, read_head
from adc_edge.codec.transform.symbols import read_symbols
from adc_edge.errors import ProtocolError
from tests.codec.transform.tensors import smooth_grids

DCT: list[Precision] = [precision for precision in PRECISIONS if dct_bits(precision)]
SHAPE = (6, 17, 12)
GRIDS = smooth_grids(6, 4, 12)


# 4 images of 1 token in front and 3 x 3 patches, 5 channels, in 120 bytes.
STORED_SHAPE = (4, 10, 5)
STORED = bytes.fromhex(
    "03000127f025bd3d05000100898500fffffdfd0e0d0c0c0b0107fefc80f006000405030100001d24903d00c60267a5a6685a9987309bfc9b"
    "57cac70287520e937012a56148bbc8446a0d705689c4d06aec97d4ce0b467d3b74a0730b17ee1bf4ab6f3e3bc87679fe043e31787b6e6a25"
    "ec2e1306bc000000"
)
STORED_ROWS = [
    [-1.485806, 0.4653189, -0.1153221, 1.942827, -1.196356],
    [-0.4756895, 0.904812, -0.2770933, 2.141665, -2.244969],
    [-0.03565744, -0.4491866, 0.6347226, 1.876166, -2.027992],
]
STORED_COLUMN_SUMS = [-7.379839, 18.05482, -39.92098, 0.3065858, -18.78022]


def test_a_stored_message_decodes_to_the_stored_tensor() -> None:
    decoded = decode_tensor(memoryview(STORED), STORED_SHAPE)
    np.testing.assert_allclose(decoded[2, 4:7], STORED_ROWS, rtol=0, atol=2e-6)
    np.testing.assert_allclose(decoded.sum(axis=(0, 1)), STORED_COLUMN_SUMS, rtol=0, atol=2e-5)


def test_the_symbols_of_a_stored_message_are_the_stored_integers() -> None:
    head, end = read_head(memoryview(STORED), STORED_SHAPE)
    images, grid = layout(STORED_SHAPE, head.has_grid)
    classes = head.all_classes(grid, images, STORED_SHAPE[-1])
    symbols = read_symbols(memoryview(STORED)[end:], classes, head.lanes)
    assert (head.has_grid, len(head.levels), len(symbols)) == (True, 5, 240)
    assert hashlib.sha256(np.stack((classes, symbols)).astype("<i4").tobytes()).hexdigest() == (
        "9b08130fe254b67c074ff69784ad152d86986db4804f0230cfdf8fa01a4103fd"
    )


def refused_or_finite(data: bytes, shape: tuple[int, ...], precision: Precision) -> bool:
    try:
        x = decode(data, shape, precision)
    except ProtocolError as refusal:
        assert refusal.code == "size"  # noqa: PT017 - or none
        return True
    assert x.shape == shape
    assert np.isfinite(x).all()
    return False


@given(st.sampled_from(DCT), st.data())
@settings(deadline=None)
def test_damaged_messages_are_finite_values_or_refused(precision: Precision, data: st.DataObject) -> None:
    message = bytearray(encode(GRIDS, precision))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    refused_or_finite(bytes(message), SHAPE, precision)


@given(st.sampled_from(DCT), st.data())
@settings(deadline=None)
def test_any_bytes_behind_a_right_head_are_finite_values_or_refused(precision: Precision, data: st.DataObject) -> None:
    size = encoded_bytes(SHAPE, precision)
    message = bytearray(data.draw(st.binary(min_size=size, max_size=size)))
    FIXED_HEAD.pack_into(
        message,
        0,
        data.draw(st.integers(-149, 128)),
        data.draw(st.integers(0, 1)),
        data.draw(st.integers(0, 124)),
        data.draw(st.floats(0, 2.0**127, width=32, exclude_min=True)),
        data.draw(st.integers(0, 12)),
        lanes_for(size),
        data.draw(st.integers(0, 255)),
        data.draw(st.integers(0, 255)),
    )
    refused_or_finite(bytes(message), SHAPE, precision)


def test_a_message_with_a_wrong_bit_is_nearly_always_refused() -> None:
    message = encode(GRIDS, "dct1")
    bits, refused = range(8 * FIXED_HEAD.size, 8 * len(message), 5), 0
    for bit in bits:
        damaged = bytearray(message)
        damaged[bit // 8] ^= 1 << bit % 8
        refused += refused_or_finite(bytes(damaged), SHAPE, "dct1")
    assert refused > 0.8 * len(bits)


FIELDS = {  # what no encoder writes, by its place in the head
    "an exponent above float32's": (0, "<h", 129),
    "an exponent below float32's": (0, "<h", -150),
    "a grid that is none": (2, "<B", 2),
    "a class of the mean beyond the last": (3, "<B", 125),
    "a step of 0": (4, "<f", 0.0),
    "a negative step": (4, "<f", -1.0),
    "an infinite step": (4, "<f", np.inf),
    "a step that is not a number": (4, "<f", np.nan),
    "more components than channels": (8, "<H", 13),
    "no lane": (10, "<H", 0),
    "a lane too many": (10, "<H", 2),
    "all the lanes": (10, "<H", MOST_LANES),
    "vectors finer than any": (FIXED_HEAD.size + 12, "<b", 61),
    "vectors of negative fineness": (FIXED_HEAD.size + 12, "<b", -1),
}


@pytest.mark.parametrize("name", FIELDS)
def test_heads_that_no_encoder_writes_are_refused(name: str) -> None:
    place, layout, value = FIELDS[name]
    message = bytearray(encode(GRIDS, "dct2"))
    rank = FIXED_HEAD.unpack_from(message)[4]
    struct.pack_into(layout, message, place if place < FIXED_HEAD.size else FIXED_HEAD.size + rank, value)
    with pytest.raises(ProtocolError) as caught:
        decode(message, SHAPE, "dct2")
    assert caught.value.code == "size"


@pytest.mark.parametrize("size", [0, 1, 13])
def test_a_message_that_ends_in_its_head_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError, match=f"{size} bytes"):
        decode_tensor(memoryview(bytes(size)), SHAPE)


def test_what_a_message_asks_of_a_decoder_is_bounded_by_its_bytes() -> None:
    shape = (1, 4, 1024)  # a message of 2 kB could name a million entries of vectors
    message = bytearray(encode(np.ones(shape, np.float32), "dct0.0625"))
    struct.pack_into("<H", message, 8, 1024)
    with pytest.raises(ProtocolError, match="1024 components"):
        decode(message, shape, "dct0.0625")
    struct.pack_into("<H", message, 8, 16)  # as many as its bytes may have
    message[FIXED_HEAD.size :] = bytes(len(message) - FIXED_HEAD.size)
    begin = time.process_time()
    assert refused_or_finite(bytes(message), shape, "dct0.0625")
    assert time.process_time() - begin < 10
