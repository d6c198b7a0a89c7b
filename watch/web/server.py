"""The server of the page: binds its address, answers in the event loop of the watching process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from adc_edge.errors import SettingError
from adc_edge.watch.web.access import PageAccess, new_token
from adc_edge.watch.web.app import make_application
from adc_edge.watch.web.connections import MOST_CONNECTIONS, PageConnection
from adc_edge.watch.web.stream import EventHub
from adc_edge.watch.web.view import LiveView
from adc_edge.wire.addresses import Address, is_loopback, listening_addresses, listening_error, parse_address

_LONGEST_HEADERS = 16384  # bytes
_BACKLOG = 128
_UNREAD_BYTES = 128 * 1024  # that the kernel keeps for a page that does not read
_EVERY = ("*", "0.0.0.0", "::")  # interface
_END_S = 2


def parse_web_address(text: str) -> Address:
    """Return the address in ``HOST:PORT``; raises SettingError with what is wrong about it."""
    try:
        return parse_address(f"tcp://{text}", listening=True)
    except SettingError as error:
        raise SettingError(
            f"--web: {_plain(error.received)}", "HOST:PORT", "for example --web 127.0.0.1:8080"
        ) from None


class WebServer:
    """The page at an address. It is bound when this is made, and served by ``serve``.

    Args:
        view: the model as JSON.
        address: where to listen. Anything but loopback gets a token.

    Raises:
        SettingError: the address cannot be listened on.
    """

    def __init__(self, view: LiveView, address: Address) -> None:
        self.view, self._socket = view, _listen(address)
        self.address = Address(address.host, self._socket.getsockname()[1])
        self.token = "" if is_loopback(address) else new_token()
        self.hub = EventHub()
        application = make_application(self.hub, view.first, view.state)
        self._server = _Server(
            uvicorn.Config(
                PageAccess(application, self.address, self.token),
                http=PageConnection,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=_END_S,
                limit_concurrency=4 * MOST_CONNECTIONS,  # with those that are being closed
                h11_max_incomplete_event_size=_LONGEST_HEADERS,
            )
        )

    @property
    def url(self) -> str:
        """The address to open, with its token."""
        host = socket.gethostname() if self.address.host in _EVERY else self.address.host
        return f"http://{Address(host, self.address.port)}/" + (f"?token={self.token}" if self.token else "")

    async def serve(self) -> None:
        """Answer until ``end`` is called."""
        self.view.connect(self.hub, asyncio.get_running_loop())
        await self._server.serve(sockets=[self._socket])

    def end(self) -> None:
        """End all streams, then the server."""
        self.hub.close()
        self._server.should_exit = True


class _Server(uvicorn.Server):
    """Leaves signals to the watching process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(address: Address) -> socket.socket:
    numeric = listening_addresses(address)[0]
    family = socket.AF_INET6 if ":" in numeric.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNREAD_BYTES)  # of each connection
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address.host != "*"))
        listener.bind(socket.getaddrinfo(numeric.host, numeric.port, family, socket.SOCK_STREAM)[0][4])
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        refused = listening_error(numeric, error.errno or 0, error.strerror or str(error))
        raise SettingError(_plain(refused.received), refused.expected, _plain(refused.remedy)) from None
    return listener


def _plain(text: str) -> str:
    return text.replace("tcp://", "")
