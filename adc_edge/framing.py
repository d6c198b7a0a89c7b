"""Messages <-> ZeroMQ frames: a header and a small chunk of the body in each, never a long multipart.

One big frame never survives heartbeats on a slow link, and a long multipart is atomic and unbounded. So each ZeroMQ
message is exactly two frames, ``[header, piece]`` with a piece of at most CHUNK_BYTES; the first header is the
message's own, the following ones are ``Chunk``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, cast

from adc_edge.errors import ProtocolError
from adc_edge.protocol import CHUNK_BYTES, Chunk, Message, pack

Body = bytes | bytearray | memoryview
M = TypeVar("M", bound=Message)


def cut(message: Message, body: Body = b"") -> Iterator[tuple[bytes, memoryview]]:
    """The frames of a message: header and first piece, then a Chunk for each further piece."""
    view = memoryview(body)
    yield pack(message), view[:CHUNK_BYTES]
    for offset in range(CHUNK_BYTES, view.nbytes, CHUNK_BYTES):
        chunk = Chunk(message.session, message.transfer, offset)  # type: ignore[attr-defined]
        yield pack(chunk), view[offset : offset + CHUNK_BYTES]


class Assembler(Generic[M]):
    """Puts one peer's messages together again; holds at most one unfinished body.

    Args:
        unpack: reads a header.
        body_bytes: the exact size that a message's body must have, or ProtocolError: asked before allocating.
    """

    def __init__(self, unpack: Callable[[bytes], M], body_bytes: Callable[[M], int]) -> None:
        self._unpack, self._body_bytes = unpack, body_bytes
        self._message: M | None = None
        self._body = bytearray()
        self._filled = 0

    def feed(self, header: bytes, piece: Any) -> tuple[M, memoryview] | None:
        """Take the two frames of one ZeroMQ message; return a message when it is whole.

        Raises:
            ProtocolError: malformed header, wrong size, a gap; the unfinished message is dropped.
        """
        try:
            message = self._unpack(header)
            if isinstance(message, Chunk):
                self._continue(message, memoryview(piece))
            else:
                self._begin(message, memoryview(piece))
        except ProtocolError:
            self._drop()
            raise
        if self._message is None or self._filled < len(self._body):
            return None
        done = self._message, memoryview(self._body)
        self._drop()
        return done

    def _begin(self, message: M, piece: memoryview) -> None:
        self._drop()  # a peer that begins anew has given the old one up
        size = self._body_bytes(message)
        self._expect_piece(piece.nbytes, min(size, CHUNK_BYTES))
        self._message, self._body = message, bytearray(size)
        self._put(piece)

    def _continue(self, chunk: Chunk, piece: memoryview) -> None:
        message = cast(Any, self._message)
        if message is None or (chunk.session, chunk.transfer) != (message.session, message.transfer):
            raise ProtocolError(
                f"a chunk of transfer {chunk.transfer}", "the chunk of a message in progress", "send it anew", "order"
            )
        if chunk.offset != self._filled:
            raise ProtocolError(f"a chunk at {chunk.offset}", f"offset {self._filled}", "send it anew", "order")
        self._expect_piece(piece.nbytes, min(len(self._body) - self._filled, CHUNK_BYTES))
        self._put(piece)

    @staticmethod
    def _expect_piece(got: int, expected: int) -> None:
        if got != expected:
            raise ProtocolError(f"a piece of {got} bytes", f"{expected} bytes", "use one version", "size")

    def _put(self, piece: memoryview) -> None:
        self._body[self._filled : self._filled + piece.nbytes] = piece
        self._filled += piece.nbytes

    def _drop(self) -> None:
        self._message, self._body, self._filled = None, bytearray(), 0
