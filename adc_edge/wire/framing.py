"""Messages <-> ZeroMQ frames: a header and a small chunk of the body in each, never a long multipart.

One big frame never survives heartbeats on a slow link, and a long multipart is atomic and unbounded. So each ZeroMQ
message is exactly two frames, ``[header, piece]``, with a piece of CHUNK_BYTES, or up to FAST_CHUNK_BYTES on a fast
link; the first header is the message's own, the following ones are ``Chunk``. A seal after each header, XXH3 of header
and piece, tells bytes that changed on the way: TCP's checksum lets one in ten thousand broken segments through.

A body may arrive over several connections: a message whose ``offset`` is not 0 goes on where the last one broke off,
and messages without a body may come in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, cast

import numpy as np
import xxhash

from adc_edge.arrays import Body
from adc_edge.errors import ProtocolError
from adc_edge.wire.messages import CHUNK_BYTES, SEAL_BYTES, Chunk, Message, pack_header
from adc_edge.wire.tcp import TcpInfo

FAST_CHUNK_BYTES = 4 * CHUNK_BYTES  # larger ones are slower: they are read, sealed and sent in turn
SLOW_MBIT_S = 25.0  # on which CHUNK_BYTES take 21 ms

_M = TypeVar("_M", bound=Message)


def to_frames(message: Message, body: Body = b"", chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[bytes, memoryview]]:
    """The frames of a message from its ``offset`` on: header and first piece, then a Chunk for each further piece."""
    view = memoryview(body)
    start: int = getattr(message, "offset", 0)
    for offset in range(start, max(view.nbytes, start + 1), chunk_bytes):
        piece = view[offset : offset + chunk_bytes]
        head = message if offset == start else Chunk(message.session, message.transfer, offset)  # type: ignore[attr-defined]
        yield sealed(pack_header(head), piece), piece


def chunk_bytes(link: TcpInfo | None) -> int:
    """How large a piece is on a link as the kernel sees it: what it carries in 20 ms, since each costs work."""
    times = 1 if link is None else int(link.delivery_mbit_s / SLOW_MBIT_S)
    return min(max(times * CHUNK_BYTES, CHUNK_BYTES), FAST_CHUNK_BYTES)


def sealed(header: bytes, piece: Body) -> bytes:
    """The header frame: ``header`` and the seal of both."""
    return header + _seal(header, piece)


def unsealed(frame: bytes, piece: Body) -> bytes:
    """The header in its frame.

    Raises:
        ProtocolError: code ``corrupt``: header or piece are not what was sent.
    """
    header = frame[:-SEAL_BYTES]
    if frame[-SEAL_BYTES:] != _seal(header, piece):
        raise ProtocolError("a frame whose seal is broken", "the bytes as they were sent", "send it anew", "corrupt")
    return header


def _seal(header: bytes, piece: Body) -> bytes:
    seal = xxhash.xxh3_64(header)
    seal.update(piece)
    return seal.digest()


class Assembler(Generic[_M]):
    """Puts one peer's messages together again; holds at most one unfinished body, over as many connections as it takes.

    Args:
        unpack: reads a header.
        body_bytes: the exact size that a message's body must have, or ProtocolError: asked before allocating.
        foreign: told a frame whose seal is broken, to raise if another version sent it.
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
        self.grown_s = 0.0  # when a piece last came, by the monotonic clock

    @property
    def unfinished(self) -> tuple[int, int]:
        """Transfer and received bytes of the message in progress; 0, 0 if there is none."""
        return (0, 0) if self._message is None else (cast(Any, self._message).transfer, self._filled)

    @property
    def held_bytes(self) -> int:
        """Size of the body in progress."""
        return len(self._body)

    def feed(self, frame: bytes, piece: Any) -> tuple[_M, memoryview] | None:
        """Take the two frames of one ZeroMQ message; return a message when it is whole.

        Raises:
            ProtocolError: malformed header, wrong size, a gap: the unfinished message is dropped; a broken seal: what
                came before stays, and the sender may go on from there.
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
            else:  # whole at once; it has nothing to do with the message in progress
                self._expect_piece(view.nbytes, 0)
                return message, memoryview(b"")
        except ProtocolError:
            self.drop()
            raise
        if self._message is None or self._filled < len(self._body):
            return None
        done = self._message, self._body
        self.drop()
        return done

    def drop(self) -> None:
        """Forget the message in progress."""
        self._message, self._body, self._filled = None, memoryview(b""), 0

    def _begin(self, message: _M, size: int, piece: memoryview) -> None:
        offset: int = getattr(message, "offset", 0)
        if offset == 0:  # a peer that begins another body has given the old one up
            self.drop()
            self._body = np.empty(size, np.uint8).data
        elif (cast(Any, message).transfer, offset, size) != (*self.unfinished, len(self._body)):
            raise ProtocolError(f"a message from {offset} on", "what is missing of the last", "send it anew", "order")
        self._expect_piece(piece.nbytes, size - offset)
        self._message = message
        self._put(piece)

    def _continue(self, chunk: Chunk, piece: memoryview) -> None:
        message = cast(Any, self._message)
        if message is None or (chunk.session, chunk.transfer) != (message.session, message.transfer):
            raise ProtocolError(
                f"a chunk of transfer {chunk.transfer}", "the chunk of a message in progress", "send it anew", "order"
            )
        if chunk.offset != self._filled:
            raise ProtocolError(f"a chunk at {chunk.offset}", f"offset {self._filled}", "send it anew", "order")
        self._expect_piece(piece.nbytes, len(self._body) - self._filled)
        self._put(piece)

    @staticmethod
    def _expect_piece(got: int, missing: int) -> None:
        """Neither more than is missing or than anybody sends at once, nor crumbs."""
        least, most = min(missing, CHUNK_BYTES), min(missing, FAST_CHUNK_BYTES)
        if not least <= got <= most:
            raise ProtocolError(f"a piece of {got} bytes", f"{least} to {most} bytes", "use one version", "size")

    def _put(self, piece: memoryview) -> None:
        self._body[self._filled : self._filled + piece.nbytes] = piece
        self._filled += piece.nbytes
        self.grown_s = time.monotonic()
