"""Bodies of any size travel in small pieces, over one or several connections, and arrive whole or not at all."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adc_edge.errors import ProtocolError
from adc_edge.wire.framing import FAST_CHUNK_BYTES, Assembler, chunk_bytes, sealed, to_frames, unsealed
from adc_edge.wire.headers import pack_header, unpack_from_device, unpack_from_trainer
from adc_edge.wire.link_messages import Ping
from adc_edge.wire.message import CHUNK_BYTES, Message
from adc_edge.wire.messages import (
    SEAL_BYTES,
    Bye,
    Chunk,
    Evaluate,
    Evaluated,
    Fetch,
    FromDevice,
    FromTrainer,
    Gradient,
    Refused,
    Welcome,
)
from adc_edge.wire.tcp import TcpInfo

SIZES = st.integers(1, 300_000) | st.integers(1, 4).flatmap(
    lambda chunks: st.sampled_from([chunks * CHUNK_BYTES + more for more in (-1, 0, 1)])
)
Frames = list[tuple[bytes, memoryview]]


def message(size: int, transfer: int = 1) -> Evaluate:
    return Evaluate(7, 0, 0, transfer, size, 1, "fp32")


def body_of(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def frames_of(size: int, transfer: int = 1, seed: int = 0) -> Frames:
    return list(to_frames(message(size, transfer), body_of(size, seed)))


def whole(header: Message, piece: bytes = b"") -> tuple[bytes, bytes]:
    """The frames of a header and any piece, with a correct seal."""
    return sealed(pack_header(header), piece), piece


def inbox(limit: int = 10**7) -> Assembler[FromDevice]:
    def body_bytes(header: FromDevice) -> int:
        size: int = getattr(header, "body_bytes", 0)
        if size > limit:
            raise ProtocolError("too much", "less", "send less", "size")
        return size

    return Assembler(unpack_from_device, body_bytes)


def feed(box: Assembler[Any], frames: Frames) -> tuple[Any, bytes] | None:
    """Feed all frames. Only the last one may complete a message."""
    results = [box.feed(header, piece) for header, piece in frames]
    assert results[:-1] == [None] * len(results[:-1])
    last = results[-1] if results else None
    return None if last is None else (last[0], bytes(last[1]))


def refused(box: Assembler[Any], frames: tuple[bytes, Any]) -> str:
    with pytest.raises(ProtocolError) as caught:
        box.feed(*frames)
    return caught.value.code


@given(st.just(0) | SIZES)
@settings(max_examples=40, deadline=None)
def test_a_body_of_any_size_arrives_whole_in_pieces_of_a_chunk(size: int) -> None:
    box, frames = inbox(), frames_of(size)
    assert all(piece.nbytes <= CHUNK_BYTES for _, piece in frames)
    assert len(frames) == max(1, -(-size // CHUNK_BYTES))
    assert feed(box, frames) == (message(size), body_of(size))
    assert (box.unfinished, box.held_bytes) == ((0, 0), 0)


@given(SIZES, st.sampled_from([CHUNK_BYTES, CHUNK_BYTES + 1, FAST_CHUNK_BYTES]))
@settings(max_examples=20, deadline=None)
def test_larger_pieces_of_a_fast_link_arrive_too(size: int, chunk_bytes: int) -> None:
    frames = list(to_frames(message(size), body_of(size), chunk_bytes))
    assert all(len(piece) == chunk_bytes for _, piece in frames[:-1])
    assert feed(inbox(), frames) == (message(size), body_of(size))


def test_pieces_grow_where_the_kernel_has_seen_a_fast_link() -> None:
    links = [TcpInfo(0, 0, 1.0, rate, 0) for rate in (0.1, 24.0, 50.0, 99.0, 400.0, 30_000.0)]
    assert [chunk_bytes(link) // CHUNK_BYTES for link in links] == [1, 1, 2, 3, 4, 4]
    assert chunk_bytes(None) == CHUNK_BYTES
    assert chunk_bytes(links[-1]) == FAST_CHUNK_BYTES


@given(st.lists(SIZES, min_size=1, max_size=3))
@settings(max_examples=20, deadline=None)
def test_one_message_after_another_arrives_each_with_its_own_body(sizes: list[int]) -> None:
    box = inbox()
    for transfer, size in enumerate(sizes):
        assert feed(box, frames_of(size, transfer, transfer)) == (message(size, transfer), body_of(size, transfer))


@given(SIZES, st.lists(st.integers(0, 5), max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_body_that_travels_over_many_connections_is_the_same_and_no_byte_travels_twice(
    size: int, breaks: list[int]
) -> None:
    box, body, sent = inbox(), body_of(size), 0
    for pieces in breaks:  # so many arrive before the connection breaks
        transfer, offset = box.unfinished
        assert (transfer, box.held_bytes) == ((1, size) if offset else (0, 0))
        frames = list(to_frames(msgspec.structs.replace(message(size), offset=offset), body))[:pieces]
        if sent + sum(piece.nbytes for _, piece in frames) == size:
            break  # it would be whole
        assert feed(box, frames) is None
        sent += sum(piece.nbytes for _, piece in frames)
        assert box.unfinished == ((1, sent) if sent else (0, 0))
    rest = list(to_frames(msgspec.structs.replace(message(size), offset=sent), body))
    done = feed(box, rest)
    assert done is not None
    assert msgspec.structs.replace(done[0], offset=0) == message(size)
    assert done[1] == body
    assert sent + sum(piece.nbytes for _, piece in rest) == size


@pytest.mark.parametrize(
    "changes",
    [
        {"transfer": 2},
        {"offset": CHUNK_BYTES},
        {"offset": 3 * CHUNK_BYTES},
        {"offset": 1},
        {"body_bytes": 5 * CHUNK_BYTES},
        {"body_bytes": 3 * CHUNK_BYTES},
    ],
)
def test_a_message_that_continues_at_another_offset_is_refused_and_both_are_dropped(
    changes: dict[str, int],
) -> None:
    box, size = inbox(), 4 * CHUNK_BYTES
    feed(box, frames_of(size)[:2])
    assert box.unfinished == (1, 2 * CHUNK_BYTES)
    on = msgspec.structs.replace(message(size), **{"offset": 2 * CHUNK_BYTES, **changes})
    assert refused(box, whole(on, bytes(CHUNK_BYTES))) == "order"
    assert (box.unfinished, box.held_bytes) == ((0, 0), 0)


def test_a_message_that_was_never_begun_cannot_be_continued() -> None:
    for offset in (1, CHUNK_BYTES, 2 * CHUNK_BYTES):
        on = msgspec.structs.replace(message(2 * CHUNK_BYTES), offset=offset)
        assert refused(inbox(), whole(on, bytes(CHUNK_BYTES))) == "order"


@given(SIZES, st.data())
@settings(max_examples=150, deadline=None)
def test_a_bit_that_changed_in_transit_is_noticed_and_the_sender_continues_from_the_pieces_before(
    size: int, data: st.DataObject
) -> None:
    box, frames = inbox(), frames_of(size)
    at = data.draw(st.integers(0, len(frames) - 1), label="frame")
    feed(box, frames[:at])
    before = box.unfinished
    header, piece = bytearray(frames[at][0]), bytearray(frames[at][1])
    bit = data.draw(st.integers(0, 8 * (len(header) + len(piece)) - 1), label="bit")
    part, bit = (header, bit) if bit < 8 * len(header) else (piece, bit - 8 * len(header))
    part[bit // 8] ^= 1 << bit % 8
    assert refused(box, (bytes(header), piece)) == "corrupt"
    assert box.unfinished == before
    on = msgspec.structs.replace(message(size), offset=before[1])
    done = feed(box, list(to_frames(on, body_of(size))))
    assert done is not None
    assert done[1] == body_of(size)


def test_the_seal_protects_every_bit_of_a_header_frame_and_its_length() -> None:
    frame, piece = whole(message(3), b"abc")
    assert unsealed(frame, piece) == pack_header(message(3))
    changed = [frame[:length] for length in range(len(frame))] + [frame + b"\0", frame + frame[-SEAL_BYTES:]]
    for bit in range(8 * len(frame)):
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        changed.append(bytes(flipped))
    assert {refused(inbox(), (bad, piece)) for bad in changed} == {"corrupt"}
    assert {refused(inbox(), (frame, bad)) for bad in (b"", b"ab", b"abcd", b"abd")} == {"corrupt"}


@pytest.mark.parametrize("order", [[0, 2], [0, 1, 1], [1], [0, 1, 0, 2]])
def test_a_missing_repeated_or_unannounced_chunk_is_refused_and_the_message_dropped(order: list[int]) -> None:
    box, frames = inbox(), frames_of(3 * CHUNK_BYTES)
    feed(box, [frames[index] for index in order[:-1]])
    assert refused(box, frames[order[-1]]) == "order"
    assert box.unfinished == (0, 0)
    assert refused(box, frames[2]) == "order"
    assert feed(box, frames) == (message(3 * CHUNK_BYTES), body_of(3 * CHUNK_BYTES))


@pytest.mark.parametrize("chunk", [Chunk(7, 99, CHUNK_BYTES), Chunk(8, 1, CHUNK_BYTES)])
def test_a_chunk_of_another_message_is_refused(chunk: Chunk) -> None:
    box = inbox()
    feed(box, frames_of(2 * CHUNK_BYTES)[:1])
    assert refused(box, whole(chunk, bytes(CHUNK_BYTES))) == "order"
    assert box.unfinished == (0, 0)


def test_pieces_of_the_wrong_size_are_refused() -> None:
    for size, piece in ((10, 9), (10, 11), (0, 1), (CHUNK_BYTES + 1, 1), (2 * FAST_CHUNK_BYTES, FAST_CHUNK_BYTES + 1)):
        assert refused(inbox(), whole(message(size), bytes(piece))) == "size"
    for piece in (0, CHUNK_BYTES - 1, 1, 2 * CHUNK_BYTES + 1):
        box = inbox()
        feed(box, frames_of(3 * CHUNK_BYTES)[:1])
        assert refused(box, whole(Chunk(7, 1, CHUNK_BYTES), bytes(piece))) == "size"
        assert box.unfinished == (0, 0)


def test_a_size_over_the_limit_is_refused_before_it_is_allocated() -> None:
    box = inbox(limit=1000)
    with pytest.raises(ProtocolError, match="too much"):
        box.feed(*whole(message(2**31 - 1), bytes(CHUNK_BYTES)))
    assert box.held_bytes == 0


def test_a_header_that_is_no_message_is_refused_and_the_unfinished_message_dropped() -> None:
    box = inbox()
    feed(box, frames_of(2 * CHUNK_BYTES)[:1])
    assert refused(box, (sealed(b"nonsense", b""), b"")) == "malformed"
    assert box.unfinished == (0, 0)


def test_held_bytes_is_the_size_of_the_expected_body_until_it_is_complete() -> None:
    box, frames = inbox(), frames_of(3 * CHUNK_BYTES)
    assert box.held_bytes == 0
    for index in (0, 1):
        feed(box, [frames[index]])
        assert box.held_bytes == 3 * CHUNK_BYTES
        assert box.unfinished == (1, (index + 1) * CHUNK_BYTES)
    feed(box, [frames[2]])
    assert box.held_bytes == 0
    feed(box, frames[:1])
    box.drop()
    assert (box.held_bytes, box.unfinished) == (0, (0, 0))


def test_beginning_another_body_drops_the_unfinished_message() -> None:
    box = inbox()
    feed(box, frames_of(2 * CHUNK_BYTES)[:1])
    assert feed(box, list(to_frames(message(3, transfer=2), b"abc"))) == (message(3, 2), b"abc")
    assert box.unfinished == (0, 0)
    feed(box, frames_of(2 * CHUNK_BYTES)[:1])
    feed(box, frames_of(3 * CHUNK_BYTES, transfer=2)[:1])
    assert (box.unfinished, box.held_bytes) == ((2, CHUNK_BYTES), 3 * CHUNK_BYTES)


FROM_DEVICE: list[FromDevice] = [Fetch(7, 3, None, 9, offset=CHUNK_BYTES), Bye(7), Ping(1, 100)]
FROM_TRAINER: list[FromTrainer] = [
    Welcome(7, 5, 0, 0, None, 1, 0, 0, "0.1.0"),
    Refused("busy", "a", "b", "c"),
    Evaluated(7, 5, 0, 10, 9, 0.5, 0.1),
    Gradient(7, 4, 0, 8, 0, "fp32", 0.5, 0.5, 0.1),
]


def test_messages_without_a_body_between_the_pieces_do_not_disturb_the_assembly() -> None:
    gradient = Gradient(7, 5, 0, 9, 3 * CHUNK_BYTES, "fp32", 0.5, 0.5, 0.1)
    boxes: list[tuple[Assembler[Any], Any, list[Any]]] = [
        (inbox(), message(3 * CHUNK_BYTES, 9), list(FROM_DEVICE)),
        (Assembler(unpack_from_trainer, lambda m: getattr(m, "body_bytes", 0)), gradient, list(FROM_TRAINER)),
    ]
    for box, long, shorts in boxes:
        body = body_of(3 * CHUNK_BYTES)
        frames = list(to_frames(long, body))
        for index, frame in enumerate(frames):
            for short in shorts:
                assert feed(box, list(to_frames(short))) == (short, b"")
                assert box.unfinished == ((9, index * CHUNK_BYTES) if index else (0, 0))
            done = feed(box, [frame])
        assert done == (long, body)


def test_a_message_without_a_body_has_an_empty_piece() -> None:
    for header in FROM_DEVICE:
        assert refused(inbox(), whole(header, b"x")) == "size"


def test_a_frame_with_a_wrong_seal_is_checked_for_another_protocol_version() -> None:
    shown: list[bytes] = []
    box = Assembler(unpack_from_device, lambda header: 0, shown.append)
    assert refused(box, (pack_header(Bye(7)), b"")) == "corrupt"
    assert shown == [pack_header(Bye(7))]
    assert feed(box, list(to_frames(Bye(7)))) == (Bye(7), b"")
    assert len(shown) == 1
