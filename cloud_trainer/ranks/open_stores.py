"""The ports of torchrun's own stores: they listen on all interfaces, and who reaches one can run code in the agent.

The agent of each host keeps its table of hosts in a store of torch.distributed, as a pickle, and loads it from there.
The store asks nobody who he is, and no option makes it listen on one interface.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from pathlib import Path

from adc_edge.cloud_trainer.ranks.launch import Launch
from adc_edge.cloud_trainer.ranks.private import interface_addresses
from adc_edge.errors import SettingError

_LISTENS = "0A"  # state of a socket in /proc/net/tcp

logger = logging.getLogger(__name__)


def check_stores(launch: Launch, allow_public: bool, agent: int | None = None) -> None:
    """Look whether a store of this host's torchrun can be reached through a public address.

    The first rank of a host does so. With ``allow_public`` it warns of such a store, at the first start. Where the
    system does not tell its addresses (others than Linux) nothing is found.

    Args:
        launch: this rank's place.
        allow_public: the user says that others cannot reach this host's ports, or may.
        agent: process number of torchrun's agent; None: this process's parent.

    Raises:
        SettingError: there is such a store, and it is not allowed.
    """
    if launch.local_rank:
        return
    public = [f"{each.address} ({each.name})" for each in interface_addresses() if _is_global(each.address)]
    ports = open_ports(os.getppid() if agent is None else agent) if public else []
    if not ports:
        return
    where = f"port {' and '.join(map(str, ports))}" if any(ports) else "a port"
    if not allow_public:
        raise SettingError(
            f"torchrun listens on all interfaces of this host ({where}), and {public[0]} is a public address",
            "a host without public addresses: torchrun unpickles what is in its store, so whoever reaches it can run "
            "code as this user",
            "close all ports but the devices' by a firewall, then add --public-ranks; or use a host in a private "
            "network or behind NAT",
        )
    if launch.restarts == 0:
        logger.warning(
            "torchrun listens on all interfaces (%s), and this host has public addresses (%s): whoever reaches it can "
            "run code as this user; a firewall must close all ports but the devices'",
            where,
            ", ".join(public[:3]),
        )


def open_ports(process: int, root: Path = Path("/proc")) -> list[int]:
    """Return the TCP ports on which a process listens on all interfaces; 0 stands for those that cannot be known."""
    try:
        names = [_target(entry) for entry in (root / str(process) / "fd").iterdir()]
        tables = [table for table in (root / "net/tcp", root / "net/tcp6") if table.exists()]
        rows = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    except OSError:  # of another user, or gone
        return [0]
    own = {name[8:-1] for name in names if name.startswith("socket:[")}
    ports = set()
    for row in rows:
        address, _, port = row[1].rpartition(":")
        if row[3] == _LISTENS and row[9] in own and not address.strip("0"):
            ports.add(int(port, 16))
    return sorted(ports)


def _target(entry: Path) -> str:
    try:
        return os.readlink(entry)
    except FileNotFoundError:  # closed by now
        return ""


def _is_global(address: str) -> bool:
    """Return whether the internet may route to an address, by IANA's registries."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return (getattr(found, "ipv4_mapped", None) or found).is_global
