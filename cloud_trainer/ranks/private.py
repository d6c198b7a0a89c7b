"""The network through which ranks talk: torch.distributed neither encrypts nor authenticates, so it must be private."""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket
import sys
from collections.abc import Iterator, MutableMapping
from typing import NamedTuple

from adc_edge.cloud_trainer.ranks.launch import Launch
from adc_edge.errors import SettingError
from adc_edge.wire.addresses import Address, NameUnknown, is_loopback, loops, resolve

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
_NETWORKS = [
    ipaddress.ip_network(text)
    for text in (
        "127.0.0.0/8", "::1/128",  # loopback
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7",  # private (RFC 1918, RFC 4193)
        "169.254.0.0/16", "fe80::/10",  # one link
        "100.64.0.0/10",  # shared by a carrier's customers, also of overlay networks (RFC 6598)
    )
]  # fmt: skip
_EXPECTED = "a loopback or private address: ranks neither encrypt nor authenticate what they tell each other"
_REMEDY = (
    f"export {GLOO}=INTERFACE (and {NCCL}) on every host, for one that only the ranks' hosts reach; --public-ranks "
    "allows the public one"
)
_IFF_UP = 1  # flag of an interface
_OFFSET = {2: 4, 10: 8}  # of the address in a sockaddr, by family: IPv4 and IPv6 on Linux


class Interface(NamedTuple):
    """A network interface, and the address of it that ranks listen on."""

    name: str
    address: str


def choose_interface(
    launch: Launch, allow_public: bool, environment: MutableMapping[str, str] | None = None
) -> Interface:
    """Return the interface through which this rank talks to others, and set torch's variables to it.

    A variable that is set already stays as it is, and each interface of it is checked. Ranks on one host talk through
    loopback; those on several through the interface by which this host reaches MASTER_ADDR.

    Raises:
        SettingError: an address, or MASTER_ADDR itself, is public, and that is not allowed; there is no such interface;
            or the host's name is loopback, where other hosts could not reach it.
    """
    given = os.environ if environment is None else environment
    addresses = list(interface_addresses())
    names = given.get(GLOO, "")  # gloo listens on each of them
    used = [_named(name, addresses, GLOO) for name in names.split(",")] if names else [_found(launch, addresses)]
    chosen = used[0]
    used += _of_nccl(given[NCCL], addresses) if given.get(NCCL) else []
    if not allow_public:
        _check_master(launch, addresses)
        for interface in used:
            if not is_private(interface.address):
                received = f"ranks would listen on {interface.address} ({interface.name}), a public address"
                raise SettingError(received, _EXPECTED, _REMEDY)
    given.setdefault(GLOO, chosen.name)
    given.setdefault(NCCL, f"={chosen.name}")
    return chosen


def is_private(address: str) -> bool:
    """Return whether a numeric address is loopback, private, of one link, or shared by a carrier's customers."""
    found = ipaddress.ip_address(address.partition("%")[0])
    plain = getattr(found, "ipv4_mapped", None) or found
    return any(plain in network for network in _NETWORKS)


def interface_addresses() -> Iterator[Interface]:
    """Yield every address of the interfaces that are up, in the system's order: ranks listen on an interface's first.

    Where the system's addresses cannot be read (others than Linux) there are none.
    """
    if not sys.platform.startswith("linux"):
        return
    libc, head = ctypes.CDLL(None, use_errno=True), ctypes.POINTER(_Entry)()
    if libc.getifaddrs(ctypes.byref(head)):
        return
    try:
        entry = head
        while entry:
            up = entry.contents.flags & _IFF_UP
            if up and (found := _address(entry.contents.address)) is not None:
                yield Interface(entry.contents.name.decode(), found)
            entry = entry.contents.next
    finally:
        libc.freeifaddrs(head)


class _Entry(ctypes.Structure):
    """An entry of getifaddrs(3), up to its address."""


_Entry._fields_ = [
    ("next", ctypes.POINTER(_Entry)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
]


def _address(place: int | None) -> str | None:
    """Return the numeric address in a sockaddr; None: it is of another family."""
    if not place:
        return None
    family = ctypes.c_ushort.from_address(place).value
    if family not in _OFFSET:
        return None
    length = 4 if family == socket.AF_INET else 16
    return socket.inet_ntop(family, ctypes.string_at(place + _OFFSET[family], length))


def _found(launch: Launch, addresses: list[Interface]) -> Interface:
    """Return the interface by which this host reaches the ranks' store."""
    if launch.nodes == 1:
        return next((each for each in addresses if loops(Address(each.address, 0))), Interface("lo", "127.0.0.1"))
    local = _local_address(launch)
    for each in addresses:
        if each.address == local:
            return _named(each.name, addresses, "the interface of MASTER_ADDR")
    return Interface("lo", local)  # no other system than Linux says which it is


def _local_address(launch: Launch) -> str:
    master = Address(launch.master, launch.master_port)
    named = launch.master.lower() != "localhost" and not launch.master[-1].isdigit() and ":" not in launch.master
    if named and is_loopback(master):  # as many systems have it in /etc/hosts
        raise SettingError(
            f"{launch.nodes} hosts, and on this one the name of the first, {launch.master}, is loopback",
            "an address at which the other hosts reach it",
            f"give torchrun --local-addr ADDRESS there, or export {GLOO}=INTERFACE",
        )
    try:
        numeric = resolve(master)[0]
        family = socket.AF_INET6 if ":" in numeric.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as trial:  # connecting sends nothing
            trial.connect(numeric)
            return str(trial.getsockname()[0])
    except (NameUnknown, OSError) as error:
        raise SettingError(
            f"MASTER_ADDR {launch.master}: {getattr(error, 'strerror', None) or error}",
            "an address that this host reaches",
            "check the address that torchrun was given, and the network",
        ) from None


def _check_master(launch: Launch, addresses: list[Interface]) -> None:
    """Raise SettingError if MASTER_ADDR, to which all ranks connect, is public, and no address of a lone host."""
    try:
        found = [address.host for address in resolve(Address(launch.master, launch.master_port))]
    except NameUnknown:  # torch will say so, if it needs it
        return
    own = {each.address for each in addresses} if launch.nodes == 1 else set()  # reached without any network
    for address in found:
        if address not in own and not is_private(address):
            named = launch.master if launch.master == address else f"{launch.master} ({address})"
            received = f"MASTER_ADDR {named}, a public address, at which ranks would meet"
            raise SettingError(
                received, _EXPECTED, "give torchrun --local-addr ADDRESS; --public-ranks allows the public one"
            )


def _named(name: str, addresses: list[Interface], source: str) -> Interface:
    """Return the first address of an interface."""
    for each in addresses:
        if each.name == name:
            return each
    raise SettingError(
        f"{source}: no interface {name} that is up and has an address", "an interface of this host", "ip address"
    )


def _of_nccl(text: str, addresses: list[Interface]) -> list[Interface]:
    """Return the first address of each interface that NCCL's variable allows: prefixes, ``=`` exact, ``^`` all but."""
    excluding, text = text.startswith("^"), text.lstrip("^")
    exact, text = text.startswith("="), text.lstrip("=")
    words = text.split(",")
    first = {each.name: each for each in reversed(addresses)}
    matching = {name for name in first for word in words if (name == word if exact else name.startswith(word))}
    return [each for name, each in first.items() if (name in matching) != excluding]
