"""Bodies of any size cross in small pieces, and come out whole or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adc_edge.errors import ProtocolError
from adc_edge.framing import Assembler, cut
from adc_edge.protocol import CHUNK_BYTES, Chunk, Evaluate, FromDevice, pack, unpack_from_device


def message(size: int, transfer: int = 1) -> Evaluate:
    return Evaluate(7, 0, 0, transfer, size, 1, "fp32")


def inbox(limit: int = 10**7) -> Assembler[FromDevice]:
    def body_bytes(header: FromDevice) -> int:
        assert isinstance(header, Evaluate)
        if header.body_bytes > limit:
            raise ProtocolError("too much", "less", "send less", "size")
        return header.body_bytes

    return Assembler(unpack_from_device, body_bytes)


@given(st.one_of(st.integers(0, 300_000), st.sampled_from([CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1])))
@settings(max_examples=40, deadline=None)
def test_a_body_of_any_size_arrives_whole_in_pieces_of_a_chunk(size: int) -> None:
    body = bytes(i * 31 % 251 for i in range(0, size, 97)).ljust(size, b"x")[:size]
    box, frames = inbox(), list(cut(message(size), body))
    assert all(piece.nbytes <= CHUNK_BYTES for _, piece in frames)
    results = [box.feed(header, piece) for header, piece in frames]
    assert results[:-1] == [None] * (len(frames) - 1)
    assert results[-1] is not None
    assert results[-1][0] == message(size)
    assert bytes(results[-1][1]) == body


def test_a_gap_a_double_or_a_foreign_chunk_is_refused_and_the_message_dropped() -> None:
    body = bytes(3 * CHUNK_BYTES)
    for order in ([0, 2], [0, 1, 1], [1]):
        box, frames = inbox(), list(cut(message(len(body)), body))
        for index in order[:-1]:
            box.feed(*frames[index])
        with pytest.raises(ProtocolError) as caught:
            box.feed(*frames[order[-1]])
        assert caught.value.code == "order"
        with pytest.raises(ProtocolError):
            box.feed(*frames[2])  # what was begun is gone
    box, frames = inbox(), list(cut(message(len(body)), body))
    box.feed(*frames[0])
    with pytest.raises(ProtocolError):
        box.feed(pack(Chunk(7, 99, CHUNK_BYTES)), bytes(CHUNK_BYTES))


def test_pieces_of_the_wrong_size_are_refused() -> None:
    for size, piece in ((10, 9), (10, 11), (0, 1), (CHUNK_BYTES + 1, CHUNK_BYTES + 1)):
        with pytest.raises(ProtocolError) as caught:
            inbox().feed(pack(message(size)), bytes(piece))
        assert caught.value.code == "size"


def test_a_size_over_the_limit_is_refused_before_it_is_allocated() -> None:
    with pytest.raises(ProtocolError, match="too much"):
        inbox(limit=1000).feed(pack(message(2**31 - 1)), bytes(CHUNK_BYTES))


def test_beginning_anew_drops_the_unfinished_message() -> None:
    body = bytes(2 * CHUNK_BYTES)
    box = inbox()
    assert box.feed(*next(cut(message(len(body)), body))) is None
    done = box.feed(pack(message(3, transfer=2)), b"abc")
    assert done is not None
    assert bytes(done[1]) == b"abc"
