"""The launch of this process as one rank by torchrun, and the addresses of the ranks of a host. Imports no torch."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from adc_edge.errors import SettingError
from adc_edge.machine.threads import usable_cores
from adc_edge.wire.addresses import Address, parse_address

_PR_SET_PDEATHSIG = 1
_LAST_PORT = 65535
_WILDCARDS = ("*", "0.0.0.0", "::")


class Launch(NamedTuple):
    """This rank's place among all ranks, as torchrun told it.

    ``local_rank`` of ``local_world`` ranks on this host, which is one of ``nodes`` hosts; ``restarts``: how often the
    agent of this host started its ranks anew; ``master``, ``master_port``: where the store of the ranks is;
    ``agent_store``: torchrun's agent serves this store, so that it outlives the ranks.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    nodes: int
    restarts: int
    master: str
    master_port: int
    agent_store: bool


def launched(environment: Mapping[str, str] | None = None) -> Launch | None:
    """Return the launch of this process; None: torchrun did not start it.

    Raises:
        SettingError: the environment is that of torchrun, and a variable of it is missing or no number.
    """
    given = os.environ if environment is None else environment
    if "TORCHELASTIC_RUN_ID" not in given or "RANK" not in given:
        return None
    return Launch(
        rank=_number(given, "RANK"),
        world=_number(given, "WORLD_SIZE"),
        local_rank=_number(given, "LOCAL_RANK"),
        local_world=_number(given, "LOCAL_WORLD_SIZE"),
        nodes=_number(given, "GROUP_WORLD_SIZE"),
        restarts=_number(given, "TORCHELASTIC_RESTART_COUNT"),
        master=_text(given, "MASTER_ADDR"),
        master_port=_number(given, "MASTER_PORT"),
        agent_store=given.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def die_with_parent() -> None:
    """Have the system kill this process when torchrun's agent dies, so that no rank holds ports and the run's lock.

    Where the system has no such call (others than Linux) nothing is done: a rank then ends when the others are gone.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died in between
        os.kill(os.getpid(), signal.SIGKILL)


def share_threads(launch: Launch, agent: int | None = None) -> None:
    """Set OMP_NUM_THREADS to this rank's part of the host's cores, unless the user has set it; before torch's import.

    torchrun sets it to 1 for several ranks of a host. The system still has the environment in which torchrun itself was
    started: with the variable there, it is the user's. Elsewhere than on Linux torchrun's 1 stays.

    Args:
        launch: this rank's place.
        agent: process number of torchrun's agent; None: this process's parent.
    """
    try:
        started_with = Path(f"/proc/{os.getppid() if agent is None else agent}/environ").read_bytes().split(b"\0")
    except OSError:
        return
    if any(entry.startswith(b"OMP_NUM_THREADS=") for entry in started_with):
        return
    os.environ.pop("OMP_NUM_THREADS", None)  # which usable_cores heeds
    os.environ["OMP_NUM_THREADS"] = str(max(1, usable_cores() // launch.local_world))


def bound_to(bind: str, local_rank: int) -> str:
    """Return the address that a host's rank number ``local_rank`` listens on: the ports follow one another.

    Raises:
        SettingError: there is no such port.
    """
    address = parse_address(bind, listening=True)
    if not address.port:
        return bind
    if address.port + local_rank > _LAST_PORT:
        received = f"address {bind!r} and {local_rank + 1} ranks on this host"
        raise SettingError(received, f"ports up to {_LAST_PORT}, one for each rank", "choose a smaller port")
    return Address(address.host, address.port + local_rank).endpoint


def is_wildcard(endpoint: str) -> bool:
    """Return whether a listening address is that of all interfaces, so that no device can connect to it."""
    return parse_address(endpoint, listening=True).host in _WILDCARDS


def advertised(advertise: str | None, bound: str, local_rank: int) -> str:
    """Return the address that devices are told for this rank.

    Args:
        advertise: that of this host's first rank; its port ``*`` is the bound one. None: the bound address.
        bound: where this rank listens, with a port.
        local_rank: the rank's number on this host.

    Raises:
        SettingError: neither is an address that a device can connect to.
    """
    if advertise is None:
        if is_wildcard(bound):
            raise no_address(bound)
        return bound
    address = parse_address(advertise, listening=True)
    if not address.port:
        return Address(address.host, parse_address(bound).port).endpoint
    return bound_to(advertise, local_rank)


def no_address(bind: str) -> SettingError:
    """Return the error for ranks that listen on all interfaces and cannot tell devices where."""
    return SettingError(
        f"--bind {bind} under torchrun without --advertise",
        "an address at which devices reach this host, since a rank tells a device where another rank is",
        "add --advertise tcp://HOST:PORT, or bind to one address",
    )


def _number(given: Mapping[str, str], name: str) -> int:
    text = _text(given, name)
    if not (text.isascii() and text.isdigit()):
        raise _foreign(f"{name}={text!r} in the environment")
    return int(text)


def _text(given: Mapping[str, str], name: str) -> str:
    if not (text := given.get(name, "")):
        raise _foreign(f"no {name} in the environment, but RANK and TORCHELASTIC_RUN_ID")
    return text


def _foreign(received: str) -> SettingError:
    remedy = "start ranks by torchrun; for a trainer without ranks unset TORCHELASTIC_RUN_ID and RANK"
    return SettingError(received, "the environment that torchrun gives its processes", remedy)
