"""Socket options and address checks that device and trainer share."""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit

import zmq

from adc_edge.errors import SettingError
from adc_edge.wire.framing import FAST_CHUNK_BYTES
from adc_edge.wire.messages import HEADER_BYTES


def set_socket_options(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Set the options of a device's or a trainer's socket, before it is bound or connected to ``endpoint``."""
    socket.setsockopt(zmq.IPV6, int("[" in endpoint))
    socket.setsockopt(zmq.LINGER, 0)
    # The queues are unlimited. At a limit libzmq 4.3.5 stops reading, and if the peer then closes the connection, the
    # heartbeats make it abort.
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 2_000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6_000)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 10_000)
    socket.setsockopt(zmq.MAXMSGSIZE, FAST_CHUNK_BYTES + HEADER_BYTES)


def check_endpoint(endpoint: str, insecure: bool, keys: bool = False) -> str:
    """Return ``endpoint`` if it is ``tcp://HOST:PORT`` and safe to use. Otherwise raise SettingError.

    Any address but loopback needs keys, or the option ``--insecure``.
    """
    url = urlsplit(endpoint)
    if url.scheme != "tcp" or not url.hostname or not _has_port(url):
        raise SettingError(f"address {endpoint!r}", "tcp://HOST:PORT", "for example tcp://127.0.0.1:5700")
    if insecure and keys:
        raise SettingError("--keys and --insecure", "one of them", "leave one out")
    if not insecure and not keys and not _is_loopback(url.hostname):
        raise SettingError(
            f"address {endpoint!r} is not loopback, and there are no keys",
            "keys on both sides: traffic is encrypted, and each side proves its identity",
            "type adc-edge keys new --keys DIR, then use --keys DIR here; or use --insecure",
        )
    return endpoint


def _has_port(url: SplitResult) -> bool:
    try:
        return url.port is not None
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
