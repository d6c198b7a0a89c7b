"""Ports of loopback where no process listens, for servers that tests start."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress

_FIRST, _LAST = 20_000, 32_000  # below those that the system gives to outgoing connections, from 32768 on


def free_ports(count: int) -> int:
    """Return the first of ``count`` ports in a row that nobody listens on."""
    while True:
        first = random.SystemRandom().randrange(_FIRST, _LAST - count)
        with ExitStack() as tried, suppress(OSError):
            for port in range(first, first + count):
                tried.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
