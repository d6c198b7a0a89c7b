"""Socket options and address checks that device and trainer share."""

from __future__ import annotations

import socket

import zmq

from adc_edge.errors import SettingError
from adc_edge.wire.addresses import check_protection, is_loopback, listening_addresses, listening_error, parse_address
from adc_edge.wire.framing import FAST_CHUNK_BYTES
from adc_edge.wire.messages import HEADER_BYTES


def set_socket_options(zmq_socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Set the options of a device's or a trainer's socket, before it is bound or connected to ``endpoint``."""
    zmq_socket.setsockopt(zmq.IPV6, int("[" in endpoint))
    zmq_socket.setsockopt(zmq.LINGER, 0)
    # The queues are unlimited. At a limit libzmq 4.3.5 stops reading, and if the peer then closes the connection, the
    # heartbeats make it abort.
    zmq_socket.setsockopt(zmq.RCVHWM, 0)
    zmq_socket.setsockopt(zmq.SNDHWM, 0)
    zmq_socket.setsockopt(zmq.HEARTBEAT_IVL, 2_000)
    zmq_socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6_000)
    zmq_socket.setsockopt(zmq.HANDSHAKE_IVL, 10_000)
    zmq_socket.setsockopt(zmq.MAXMSGSIZE, FAST_CHUNK_BYTES + HEADER_BYTES)


def check_endpoint(endpoint: str, insecure: bool, keys: bool = False, connecting: bool = False) -> str:
    """Return ``endpoint`` if it is ``tcp://HOST:PORT`` and safe to use. Otherwise raise SettingError.

    Any address but loopback needs keys, or the option ``--insecure``. A name is loopback if all its addresses are.

    Args:
        endpoint: the address; to listen on, host and port may be ``*``.
        insecure: traffic in the clear is allowed.
        keys: traffic is encrypted.
        connecting: the address is that of a trainer to connect to.
    """
    address = parse_address(endpoint, listening=not connecting)
    check_protection(insecure, keys)
    if not insecure and not keys and not is_loopback(address):
        raise SettingError(
            f"address {endpoint!r} is not loopback, and there are no keys",
            "keys on both sides: traffic is encrypted, and each side proves its identity",
            "type adc-edge keys new --keys DIR, then use --keys DIR here; or use --insecure",
        )
    return endpoint


def check_listening(endpoint: str) -> None:
    """Raise SettingError if a trainer cannot listen on ``tcp://HOST:PORT`` at this moment."""
    for address in listening_addresses(parse_address(endpoint, listening=True)):
        wide = ":" in address.host
        with socket.socket(socket.AF_INET6 if wide else socket.AF_INET) as trial:  # bound, it takes no connection
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if wide:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            try:
                trial.bind(address)
            except socket.gaierror:  # the name of an interface, which ZeroMQ knows
                continue
            except OSError as error:
                raise listening_error(address, error.errno or 0, error.strerror or "") from None
