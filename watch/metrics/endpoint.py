"""The HTTP server of the metrics: few connections at a time, and none that lasts."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import socketserver
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from adc_edge.errors import SettingError
from adc_edge.watch.own_hosts import OwnHosts

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_MOST_CONNECTIONS = 16
_PATIENCE_S = 5.0  # for the next bytes of a request, and for a reader of the answer
_LONGEST_S = 10.0  # of a connection, however it sends


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


class MetricsServer(socketserver.ThreadingMixIn, WSGIServer):
    """Serves a registry in threads of its own.

    prometheus_client's server is the same without limits: an idle connection would keep its thread for ever.

    Raises:
        SettingError: nothing can listen there.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, registry: CollectorRegistry, bind: str, port: int) -> None:
        self._free = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        try:
            self.address_family, _, _, _, address = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM)[0]
            super().__init__(address[:2], _Handler)  # type: ignore[arg-type]
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SettingError(
                f"--metrics-port {port} on {bind}: {reason}",
                "a free port of an address of this machine",
                "choose another --metrics-port or --metrics-bind, or end the program that listens there",
            ) from None
        application = make_wsgi_app(registry)
        loopback = ipaddress.ip_address(self.server_name).is_loopback
        # A browser here could be led to loopback by a page of another site. Other addresses have names not known here.
        self.set_app(_for_own_hosts(application, OwnHosts(bind)) if loopback else application)
        threading.Thread(target=self.serve_forever, args=(0.1,), name="metrics", daemon=True).start()

    def server_bind(self) -> None:
        """Bind without looking up this machine's name, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or close the connection if too many are open."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection for 10 s at most, then let another one come."""
        end = threading.Timer(_LONGEST_S, _cut_off, [request])
        end.daemon = True
        end.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a scraper that goes away is no fault."""


def _cut_off(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed by now
        connection.shutdown(socket.SHUT_RDWR)


def _for_own_hosts(application: WSGIApplication, own: OwnHosts) -> WSGIApplication:
    """Return an application that answers only those who ask for this machine by one of its names."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if own.has(environ.get("HTTP_HOST", "")):
            return application(environ, start_response)
        start_response("421 Misdirected Request", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"the header Host names another server; use the address that was printed\n"]

    return answer
