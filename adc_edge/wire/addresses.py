"""Addresses tcp://HOST:PORT: parsed strictly, resolved in both families, and what stands at one that does not work.

Imports nothing that a bare device may lack.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import re
import socket
import time
from typing import NamedTuple

from adc_edge.errors import SettingError, TakenError

EXAMPLE = "for example tcp://127.0.0.1:5700"
CONNECT_S = 3.0
_ANSWER_S = 1.0
_NAME = re.compile(r"(?!-)[\w-]{1,63}(\.[\w-]{1,63})*\.?")
_ZONE = re.compile(r"[\w.-]+")
_NO_ROUTE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.EADDRNOTAVAIL}
_VERSION_ENDS = 12
_MECHANISM = slice(12, 32)  # in the greeting of ZMTP 3
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


class NameUnknown(Exception):
    """The name of a host has no address that this machine can use, now."""


class Address(NamedTuple):
    """``host`` is a name, an address without brackets, or ``*``; ``port`` 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port or '*'}"

    @property
    def endpoint(self) -> str:
        """The address as ZeroMQ takes it."""
        return f"tcp://{self}"


class Finding(NamedTuple):
    """The peer that answers at an address.

    ``foreign``: it is not adc-edge, so trying again does not help; ``silent``: it takes connections and sends nothing.
    """

    text: str
    foreign: bool = False
    silent: bool = False
    mechanism: str = ""  # of ZeroMQ: CURVE with keys, NULL without
    connect_s: float | None = None  # None: no connection


def parse_address(text: str, listening: bool = False) -> Address:
    """Return the address in ``text``; raises SettingError with what is wrong about it.

    Args:
        text: ``tcp://HOST:PORT``; an IPv6 address in brackets.
        listening: host ``*`` is every interface, and port ``*`` lets the system choose.
    """
    try:
        return _parse(text, listening)
    except ValueError as error:
        raise SettingError(f"address {text!r}: {error}", "tcp://HOST:PORT", EXAMPLE) from None


def resolve(address: Address) -> list[Address]:
    """Return every numeric address of the host, in the system's order; raises NameUnknown if there is none."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        if address.host in _interfaces():  # ZeroMQ can listen on an interface by its name
            return [address]
        why = getattr(error, "strerror", None) or "no name of a host"
        raise NameUnknown(f"name unknown: {address.host} ({why})") from None
    usable = [entry for entry in found if entry[0] == socket.AF_INET or (entry[0] == socket.AF_INET6 and _has_ipv6())]
    if not usable:
        raise NameUnknown(f"{address.host} has only IPv6 addresses, and this machine has no IPv6")
    return list(dict.fromkeys(Address(_host(entry[4]), address.port) for entry in usable))


def listening_addresses(address: Address) -> list[Address]:
    """Return the numeric addresses to listen on, IPv4 first; ``*`` is every interface in both families.

    Raises:
        SettingError: the name is unknown.
    """
    if address.host == "*":
        return [Address("::" if _has_ipv6() else "0.0.0.0", address.port)]
    try:
        return sorted(resolve(address), key=lambda found: ":" in found.host)
    except NameUnknown as unknown:
        remedy = "ip address lists those of this machine; tcp://*:PORT listens on all of them"
        raise SettingError(str(unknown), "an address or a name of this machine", remedy) from None


def check_protection(insecure: bool, keys: bool) -> None:
    """Raise SettingError if traffic is both encrypted and allowed in the clear."""
    if insecure and keys:
        raise SettingError("--keys and --insecure", "one of them", "leave one out")


def is_loopback(address: Address) -> bool:
    """Return whether the host is this machine by its name, or by all of its addresses as far as they are known now."""
    if address.host.lower().rstrip(".") == "localhost":
        return True
    try:
        return address.host != "*" and all(loops(found) for found in resolve(address))
    except NameUnknown:
        return False


def loops(numeric: Address) -> bool:
    """Return whether a numeric address is loopback."""
    try:
        found = ipaddress.ip_address(numeric.host)
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def examine_address(numeric: Address, connect_s: float = CONNECT_S) -> Finding:
    """Connect to a numeric address with a plain socket, and tell what answers there."""
    start = time.monotonic()
    try:
        connection = socket.create_connection(numeric, connect_s)
    except OSError as error:
        return Finding(_why_not(error, numeric, connect_s))
    took_s = time.monotonic() - start
    with connection:
        return _who(connection, numeric)._replace(connect_s=took_s)


def listening_error(address: Address, code: int, reason: str) -> SettingError:
    """Return the error for an address that cannot be listened on, by the system's error ``code``."""
    received, expected, remedy = f"cannot listen on {address.endpoint}", "a free address of this machine", ""
    if code == errno.EADDRINUSE:
        received += f": port {address.port} is in use"
        remedy = f"stop the other process (ss -ltnp 'sport = :{address.port}' names it), or choose another port"
        return TakenError(received, expected, remedy)
    if code in (errno.EADDRNOTAVAIL, errno.ENODEV):
        received += f": {address.host} is no address of this machine"
        remedy = "ip address lists those of this machine; tcp://*:PORT listens on all of them"
    elif code in (errno.EACCES, errno.EPERM):
        received += ": not permitted"
        remedy = "choose a port from 1024 on; those below are the administrator's"
    else:
        received += f": {reason}"
        remedy = "choose another"
    return SettingError(received, expected, remedy)


def _parse(text: str, listening: bool) -> Address:
    if blank := next((c for c in text if c.isspace() or not c.isprintable()), None):
        raise ValueError(f"it has {'a blank' if blank == ' ' else repr(blank)} in it")
    scheme, marks, rest = text.partition("://")
    if not marks or scheme.lower() != "tcp":
        raise ValueError("it does not begin with tcp://")
    if end := next((c for c in rest if c in "/?#"), None):
        raise ValueError(f"{end!r} and what follows have no meaning here")
    if "@" in rest:
        raise ValueError("a user's name has no meaning here")
    host, colon, port = rest.rpartition(":")
    if not colon or port.endswith("]"):
        raise ValueError("it has no port")
    return Address(_parse_host(host, listening), _parse_port(port, listening))


def _parse_host(host: str, listening: bool) -> str:
    if host.startswith("[") and host.endswith("]"):
        inner, percent, zone = host[1:-1].partition("%")
        ipaddress.IPv6Address(inner)  # raises ValueError
        if percent and not _ZONE.fullmatch(zone):
            raise ValueError("no interface follows %")
        return host[1:-1]
    if ":" in host:
        raise ValueError("an IPv6 address needs brackets, for example tcp://[::1]:5700")
    if host == "*" and listening:
        return host
    if not host:
        raise ValueError("it has no host")
    if set(host) <= set("0123456789."):
        ipaddress.IPv4Address(host)  # raises ValueError
    elif not _NAME.fullmatch(host) or len(host) > 253:
        raise ValueError(f"{host!r} is no name of a host")
    return host


def _parse_port(port: str, listening: bool) -> int:
    if listening and port in ("*", "0"):
        return 0
    if not port:
        raise ValueError("it has no port")
    if not (port.isascii() and port.isdigit()) or not 1 <= int(port[:9]) <= 65535:
        raise ValueError(f"port {port!r} is no number from 1 to 65535")
    return int(port)


def _host(place: tuple[str | int, ...] | tuple[int, bytes]) -> str:
    """Return the address of getaddrinfo, with its interface if it holds on one link alone."""
    host = str(place[0])
    if len(place) == 4 and place[3] and "%" not in host:
        with contextlib.suppress(OSError):
            return f"{host}%{socket.if_indextoname(int(place[3]))}"
    return host


def _has_ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def _interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def _why_not(error: OSError, place: Address, timeout_s: float) -> str:
    if error.errno == errno.ECONNREFUSED:
        return f"connection refused by {place}"
    if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        return f"no answer from {place} within {timeout_s:g} s"
    if error.errno in _NO_ROUTE:
        return f"no route to {place} ({error.strerror})"
    return f"no connection to {place} ({error.strerror or error})"


def _who(connection: socket.socket, place: Address) -> Finding:
    """Greet as a ZeroMQ socket without keys, and read who answers."""
    data = _exchange(connection, _GREETING[:_VERSION_ENDS], len(_GREETING))
    if data == b"":
        data = _exchange(connection, b"\r\n\r\n", 1)  # a server for text waits for the end of a line
    if data is None:
        return Finding(f"{place} accepts connections and closes them: no trainer is behind it now", silent=True)
    if not data:
        return Finding(f"{place} accepts connections and says nothing", silent=True)
    if data[0] != 0xFF:
        return Finding(f"{_server(data)} answers at {place}, and that is not adc-edge", foreign=True)
    mechanism = data[_MECHANISM].rstrip(b"\0").decode("ascii", "replace")
    # A socket with keys hangs up when it reads that there are none here, so that is sent last.
    ready = _exchange(connection, _GREETING[_VERSION_ENDS:], 1) if mechanism == "NULL" else None
    kind = _socket_type(data + (ready or b""))
    if kind not in ("", "ROUTER"):
        return Finding(f"a ZeroMQ socket of kind {kind} answers at {place}, and that is not adc-edge", foreign=True)
    return Finding(f"a ZeroMQ socket answers at {place}", mechanism=mechanism)


def _server(data: bytes) -> str:
    kinds = {b"http/": "an HTTP server", b"ssh-": "an SSH server", b"\x15\x03": "a TLS server"}
    start = data.lower()
    found = next((kind for first, kind in kinds.items() if start.startswith(first)), "something")
    return "an HTTP server" if b"<html" in start or b"<!doctype" in start else found


def _socket_type(data: bytes) -> str:
    """Return the kind of a ZeroMQ socket without keys; empty if it is not told."""
    _, _, value = data.partition(b"Socket-Type")
    return value[4 : 4 + int.from_bytes(value[:4], "big")].decode("ascii", "replace")


def _exchange(connection: socket.socket, data: bytes, least: int) -> bytes | None:
    """Send, and return what comes within a moment; None if the other side closes before anything comes.

    ZeroMQ's greeting, which begins with 0xFF, is read to its end: ``least`` bytes.
    """
    deadline, received = time.monotonic() + _ANSWER_S, b""
    try:
        connection.sendall(data)
        while (left_s := deadline - time.monotonic()) > 0 and received[:1] in (b"", b"\xff") and len(received) < least:
            connection.settimeout(left_s)
            if not (piece := connection.recv(1024)):
                return received or None
            received += piece
    except TimeoutError:
        pass
    except OSError:
        return received or None
    return received
