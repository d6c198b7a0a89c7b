"""Conversion of messages to ZeroMQ frames and back.

On a slow link one large frame delays the heartbeats until they time out, and a multipart message is atomic and
unbounded. So each ZeroMQ message has exactly two frames, ``[header, piece]``. A piece holds CHUNK_BYTES of the body, or
up to FAST_CHUNK_BYTES on a fast link. The first header is the message's own, the following ones are ``Chunk``. After
each header comes a seal, the XXH3 hash of header and piece. It detects bytes that changed in transit: TCP's checksum
misses one damaged segment in ten thousand.

A body may arrive over several connections. A message whose ``offset`` is not 0 continues the unfinished body, and
messages without a body may arrive in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, cast

import numpy as np
import xxhash

from adc_edge.arrays import Body
from adc_edge.errors import ProtocolError
from adc_edge.wire.headers import pack_header
from adc_edge.wire.message import CHUNK_BYTES, Message
from adc_edge.wire.messages import SEAL_BYTES, Chunk
from adc_edge.wire.tcp import TcpInfo, framed_bytes

FAST_CHUNK_BYTES = 4 * CHUNK_BYTES  # larger pieces are slower: reading, sealing and sending do not overlap
SLOW_MBIT_S = 25.0  # at this rate CHUNK_BYTES take 21 ms

_M = TypeVar("_M", bound=Message)


def to_frames(message: Message, body: Body = b"", chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[bytes, memoryview]]:
    """Yield frames of a message from its ``offset`` on: header and first piece, then a Chunk for each other piece."""
    view = memoryview(body)
    start: int = getattr(message, "offset", 0)
    for offset in range(start, max(view.nbytes, start + 1), chunk_bytes):
        piece = view[offset : offset + chunk_bytes]
        head = message if offset == start else Chunk(message.session, message.transfer, offset)  # type: ignore[attr-defined]
        yield sealed(pack_header(head), piece), piece


def chunk_bytes(link: TcpInfo | None) -> int:
    """Return the piece size for a link: the bytes that it carries in 20 ms, at the rate that the kernel measured."""
    times = 1 if link is None else int(link.delivery_mbit_s / SLOW_MBIT_S)
    return min(max(times * CHUNK_BYTES, CHUNK_BYTES), FAST_CHUNK_BYTES)


def message_bytes(message: Message, body_bytes: int, link: TcpInfo | None = None) -> int:
    """Return the bytes that a message with a body of ``body_bytes`` takes on a socket, unencrypted (``frame_bytes``).

    Args:
        message: the header.
        body_bytes: size of the body.
        link: sets the piece size.
    """
    size = chunk_bytes(link)
    pieces = [min(size, body_bytes - start) for start in range(0, max(body_bytes, 1), size)]
    more = 0
    if len(pieces) > 1:
        chunk = Chunk(message.session, message.transfer, body_bytes)  # type: ignore[attr-defined]
        more = (len(pieces) - 1) * framed_bytes(len(pack_header(chunk)) + SEAL_BYTES)
    return framed_bytes(len(pack_header(message)) + SEAL_BYTES) + more + sum(map(framed_bytes, pieces))


def sealed(header: bytes, piece: Body) -> bytes:
    """Return the header frame: ``header`` and the seal of header and piece."""
    return header + _seal(header, piece)


def unsealed(frame: bytes, piece: Body) -> bytes:
    """Return the header of a frame, without its seal.

    Raises:
        ProtocolError: code ``corrupt``: the header or the piece changed in transit.
    """
    header = frame[:-SEAL_BYTES]
    if frame[-SEAL_BYTES:] != _seal(header, piece):
        raise ProtocolError("a frame with a wrong checksum", "the bytes as they were sent", "send it again", "corrupt")
    return header


def _seal(header: bytes, piece: Body) -> bytes:
    seal = xxhash.xxh3_64(header)
    seal.update(piece)
    return seal.digest()


class Assembler(Generic[_M]):
    """Assembles the messages of one peer. It holds at most one unfinished body, which may span several connections.

    Args:
        unpack: decodes a header.
        body_bytes: returns the exact size that a message's body must have, or raises ProtocolError. It is called
            before the body is allocated.
        foreign: gets each frame whose seal is wrong, and raises an error if another protocol version sent it.
    """

    def __init__(
        self,
        unpack: Callable[[bytes], _M],
        body_bytes: Callable[[_M], int],
        foreign: Callable[[bytes], None] = lambda frame: None,
    ) -> None:
        self._unpack, self._body_bytes, self._foreign = unpack, body_bytes, foreign
        self._message: _M | None = None
        self._body = memoryview(b"")
        self._filled = 0
        self._first = 0.0, 0  # time and size of the first piece of the message in progress
        self.grown_s = 0.0  # monotonic time at which the last piece arrived
        self.arrival_mbit_s: float | None = None  # rate of the last body after its first piece; None: it had one piece

    @property
    def unfinished(self) -> tuple[int, int]:
        """Transfer number and received bytes of the message in progress; 0, 0 if there is none."""
        return (0, 0) if self._message is None else (cast(Any, self._message).transfer, self._filled)

    @property
    def held_bytes(self) -> int:
        """Size of the body in progress."""
        return len(self._body)

    def feed(self, frame: bytes, piece: Any) -> tuple[_M, memoryview] | None:
        """Take the two frames of one ZeroMQ message. Return the assembled message if it is complete.

        Raises:
            ProtocolError: the header is malformed, a size is wrong, or a piece is missing: the unfinished message is
                dropped. Or the seal is wrong: the pieces before it are kept, and the sender may continue from there.
        """
        view = memoryview(piece)
        try:
            header = unsealed(frame, view)
        except ProtocolError:
            self._foreign(frame)
            raise
        try:
            message = self._unpack(header)
            if isinstance(message, Chunk):
                self._continue(message, view)
            elif size := self._body_bytes(message):
                self._begin(message, size, view)
            else:  # a message without a body; it does not touch the message in progress
                self._expect_piece(view.nbytes, 0)
                return message, memoryview(b"")
        except ProtocolError:
            self.drop()
            raise
        if self._message is None or self._filled < len(self._body):
            return None
        done = self._message, self._body
        first_s, first_bytes = self._first
        span_s = self.grown_s - first_s
        self.arrival_mbit_s = (self._filled - first_bytes) * 8e-6 / span_s if span_s > 0 else None
        self.drop()
        return done

    def drop(self) -> None:
        """Drop the message in progress."""
        self._message, self._body, self._filled = None, memoryview(b""), 0

    def hold(self, message: _M, body: memoryview) -> None:
        """Take a whole message back: it is in progress again, and its sender need only send the header again."""
        self._message, self._body, self._filled = message, body, len(body)
        self.grown_s = time.monotonic()

    def _begin(self, message: _M, size: int, piece: memoryview) -> None:
        offset: int = getattr(message, "offset", 0)
        if offset == 0:  # a peer that begins another body has abandoned the old one
            self.drop()
            self._body = np.empty(size, np.uint8).data
        elif (cast(Any, message).transfer, offset, size) != (*self.unfinished, len(self._body)):
            expected = "the rest of the unfinished message"
            raise ProtocolError(f"a message from offset {offset} on", expected, "send it again", "order")
        self._expect_piece(piece.nbytes, size - offset)
        self._message = message
        self._put(piece)
        self._first = self.grown_s, self._filled

    def _continue(self, chunk: Chunk, piece: memoryview) -> None:
        message = cast(Any, self._message)
        if message is None or (chunk.session, chunk.transfer) != (message.session, message.transfer):
            raise ProtocolError(
                "a chunk of another message", "a chunk of the message in progress", "send it again", "order"
            )
        if chunk.offset != self._filled:
            raise ProtocolError(f"a chunk at offset {chunk.offset}", f"offset {self._filled}", "send it again", "order")
        self._expect_piece(piece.nbytes, len(self._body) - self._filled)
        self._put(piece)

    @staticmethod
    def _expect_piece(got: int, missing: int) -> None:
        """Raise ProtocolError unless the piece fits the missing bytes and has an allowed size."""
        least, most = min(missing, CHUNK_BYTES), min(missing, FAST_CHUNK_BYTES)
        if not least <= got <= most:
            remedy = "install the same version on both sides"
            raise ProtocolError(f"a piece of {got} bytes", f"{least} to {most} bytes", remedy, "size")

    def _put(self, piece: memoryview) -> None:
        self._body[self._filled : self._filled + piece.nbytes] = piece
        self._filled += piece.nbytes
        self.grown_s = time.monotonic()
