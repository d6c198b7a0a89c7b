"""The header Host of a request: whether it names this machine, or another site whose name was made to point here."""

from __future__ import annotations

import ipaddress
import re
import socket

_HOST = re.compile(r"(\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[^\s:\[\]]+))(:\d*)?")


class OwnHosts:
    """Names under which a server may be asked: an address, or a name of this machine.

    Args:
        host: the address or the name on which it listens.
    """

    def __init__(self, host: str) -> None:
        own = socket.gethostname().lower()
        self._names = {"localhost", host.lower().rstrip("."), own, f"{own}.local"}

    def has(self, host: str) -> bool:
        """Return whether the header is an address or a name of this machine.

        A page of another site whose name was made to point here (DNS rebinding) sends that site's name.
        """
        found = _HOST.fullmatch(host.lower())
        if found is None:
            return False
        name = found["address"] or found["name"]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.rstrip(".") in self._names
        return True
