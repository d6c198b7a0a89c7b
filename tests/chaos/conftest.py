"""Fixtures of the chaos tests: processes that start within milliseconds, free ports."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from tests.chaos.zygote import Zygote


@pytest.fixture(scope="package")
def zygote() -> Iterator[Zygote]:
    """Starts adc-edge commands as processes within milliseconds."""
    with Zygote() as running:
        yield running


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Finds a port on loopback where no process listens."""

    def find() -> int:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            return int(probe.getsockname()[1])

    return find
