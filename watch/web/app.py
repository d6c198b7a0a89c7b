"""The addresses of the page: itself, its files, a snapshot as JSON and the stream of what is new."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from adc_edge.watch.web.stream import EventHub

_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_HERE = Path(__file__).parent
_ASSETS = _HERE.parent / "assets"
_PAGE = _HERE / "index.html"
_FILES = {  # nothing else is served
    "live.js": (_HERE, "text/javascript"),
    "feed.js": (_HERE, "text/javascript"),
    "live.css": (_HERE, "text/css"),
    "icon.svg": (_HERE, "image/svg+xml"),
    "uPlot.iife.min.js": (_ASSETS, "text/javascript"),
    "charts.js": (_ASSETS, "text/javascript"),
    "page.css": (_ASSETS, "text/css"),
    "uPlot.min.css": (_ASSETS, "text/css"),
}


class _Stream:
    """The stream of events as an ASGI application."""

    def __init__(self, hub: EventHub, first: Callable[[], bytes]) -> None:
        self._hub, self._first = hub, first

    async def __call__(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        if scope["method"] == "HEAD":
            await PlainTextResponse("")(scope, receive, send)
        elif not await self._hub.serve(self._first(), receive, send):
            full = PlainTextResponse("too many open pages; close one\n", 503, headers={"retry-after": "10"})
            await full(scope, receive, send)


def make_application(hub: EventHub, first: Callable[[], bytes], state: Callable[[], Awaitable[bytes]]) -> Starlette:
    """Return the application.

    Args:
        hub: has the streams of events.
        first: makes the first event of a stream.
        state: makes the JSON of all runs as they are now.
    """

    page_bytes = _PAGE.read_bytes()
    files = {name: Response((folder / name).read_bytes(), media_type=kind) for name, (folder, kind) in _FILES.items()}

    async def page(request: Request) -> Response:
        return Response(page_bytes, media_type="text/html")

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def file(request: Request) -> Response:
        return files.get(request.path_params["name"]) or PlainTextResponse("no such file\n", 404)

    async def snapshot(request: Request) -> Response:
        return Response(await state(), media_type="application/json")

    return Starlette(
        routes=[
            Route("/", page),
            Route("/healthz", healthz),
            Route("/static/{name}", file),
            Route("/api/state", snapshot),
            Route("/events", _Stream(hub, first)),
        ]
    )
