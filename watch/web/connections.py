"""Connections to the page are few, and none is kept that stays idle or does not read what it asked for."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS = 256
REQUEST_S = 10.0  # for a request to come whole, from when the connection was made or the last answer was sent
STALLED_S = 15.0  # without reading


def most_connections() -> int:
    """Return how many connections are kept: fewer where the process may open few files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else max(16, min(MOST_CONNECTIONS, soft // 2))


class PageConnection(H11Protocol):
    """One connection. Above the limit the idle one that came first is closed, so that a new client is answered."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._opened = self.loop.time()
        self._most = most_connections()
        self._request_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def is_open(self) -> bool:
        """Whether it is not being closed."""
        return not self.transport.is_closing()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request for a while, and make room if there are too many connections."""
        super().connection_made(transport)
        self._wait_for_request()
        here = [other for other in self.connections if isinstance(other, PageConnection) and other.is_open]
        if len(here) > self._most:
            min((other for other in here if other.is_idle), key=lambda other: other._opened).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection and its timers."""
        super().connection_lost(exc)
        for timer in (self._request_timer, self._stall_timer):
            if timer:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request; the time for it ends when it is whole, not when a byte of it has come."""
        super().data_received(data)
        if not self.is_idle and self._request_timer:
            self._request_timer.cancel()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the end."""
        self._wait_for_request()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Wait for the reader, but not for long."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the reader has read."""
        super().resume_writing()
        if self._stall_timer:
            self._stall_timer.cancel()

    def _wait_for_request(self) -> None:
        if self._request_timer:
            self._request_timer.cancel()
        self._request_timer = self.loop.call_later(REQUEST_S, self.transport.abort)
