"""Server-sent events: a stream for each open page, with a bounded queue. A page that does not keep up is dropped."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

MOST_STREAMS = 64
_MOST_WAITING = 32  # events of one page, which are about 16 s
_BEAT_S = 10.0  # so that a page notices when the server is gone
_RETRY_MS = 2000


def event_bytes(kind: str, data: bytes) -> bytes:
    """Return an event of a stream. ``data`` is JSON in one line."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), data)


class _Reader:
    """An open page: the events that it has not been sent yet."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()
        self._news = asyncio.Event()
        self.over = False

    def give(self, event: bytes) -> None:
        if len(self._waiting) >= _MOST_WAITING:
            self.end()
        elif not self.over:
            self._waiting.append(event)
            self._news.set()

    def end(self, *_: object) -> None:
        self.over = True
        self._waiting.clear()
        self._news.set()

    async def next(self) -> bytes:
        """Return what is new, or after a while without news the time alone."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._news.wait(), _BEAT_S)
        self._news.clear()
        data = b"".join(self._waiting) or event_bytes("beat", b'{"now":%.3f}' % time.time())
        self._waiting.clear()
        return data


class EventHub:
    """Hands each event to every open page. All methods belong to the event loop's thread."""

    def __init__(self) -> None:
        self._readers: set[_Reader] = set()
        self._closed = False

    def publish(self, event: bytes) -> None:
        """Give an event to all."""
        for reader in list(self._readers):
            reader.give(event)

    def close(self) -> None:
        """End all streams, and take no more."""
        self._closed = True
        for reader in self._readers:
            reader.end()

    async def serve(
        self,
        first: bytes,
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> bool:
        """Send ``first`` and then every event until the reader goes or does not keep up; False: there is no room."""
        if len(self._readers) >= MOST_STREAMS or self._closed:
            return False
        reader = _Reader()
        self._readers.add(reader)
        gone = asyncio.ensure_future(_disconnected(receive))
        gone.add_done_callback(reader.end)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
            await _send_part(send, b"retry: %d\n\n%s" % (_RETRY_MS, first))
            while not reader.over:
                await _send_part(send, await reader.next())
            await _send_part(send, b"", more=False)
        finally:
            self._readers.discard(reader)
            gone.cancel()
        return True


_STREAM_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]


async def _send_part(
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]], body: bytes, more: bool = True
) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _disconnected(receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
