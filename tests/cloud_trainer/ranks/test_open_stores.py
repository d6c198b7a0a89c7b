"""The ports of torchrun's own stores on a host with public addresses."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from adc_edge.cloud_trainer.ranks.open_stores import open_ports
from tests.cloud_trainer.ranks.launching import rank_environment

LOOK = """
import logging, sys
from adc_edge.cloud_trainer.ranks.launch import launched
from adc_edge.cloud_trainer.ranks.open_stores import check_stores
from adc_edge.errors import SettingError
logging.basicConfig(format="warned: %(message)s")
try:
    check_stores(launched(), sys.argv[1] == "public")
    print("allowed", flush=True)
except SettingError as error:
    print("refused:", error, flush=True)
"""
SET_UP = """
set -e
ip link set lo up
ip link add outside type veth peer name far; ip address add {address}/24 dev outside
ip link set outside {state}; ip link set far {state}
"""
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
needs_namespaces = pytest.mark.skipif(
    not (sys.platform.startswith("linux") and os.geteuid() == 0 and shutil.which("unshare") and shutil.which("ip")),
    reason="network namespaces need root on Linux, unshare and ip",
)


@on_linux
def test_ports_on_all_interfaces_are_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("", 0)) as all_v4:
        found, port = open_ports(os.getpid()), all_v4.getsockname()[1]
        assert port in found
        assert one.getsockname()[1] not in found
    assert port not in open_ports(os.getpid())


@on_linux
def test_a_process_that_cannot_be_looked_into_counts_as_open() -> None:
    assert open_ports(2**22 + 1) == [0]  # there is none with this number


def checked_under_torchrun(folder: Path, address: str, public: str = "", state: str = "up") -> str:
    """Run the check in a rank that a real torchrun started, on a host of one address besides loopback."""
    script = folder / "look.py"
    script.write_text(LOOK)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", str(script)]
    shell = ["sh", "-c", f'{SET_UP.format(address=address, state=state)}\nexec "$@"', "sh"]
    done = subprocess.run(
        ["unshare", "--net", *shell, *torchrun, public or "private"],
        env=rank_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[3],
    )
    if "Operation not permitted" in done.stderr or "Unknown device type" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    return done.stdout + "".join(line for line in done.stderr.splitlines(True) if line.startswith("warned"))


@needs_namespaces
@pytest.mark.slow
def test_a_store_of_torchrun_at_a_public_address_is_refused_unless_a_flag_allows_it(tmp_path: Path) -> None:
    refused = checked_under_torchrun(tmp_path, "8.8.4.4")
    assert refused.startswith("refused: torchrun listens on all interfaces of this host (port ")
    assert "8.8.4.4 (outside) is a public address" in refused
    assert "run code as this user" in refused
    assert "firewall, then add --public-ranks" in refused
    allowed = checked_under_torchrun(tmp_path, "8.8.4.4", "public")
    assert allowed.startswith("allowed")
    assert "warned: torchrun listens on all interfaces (port " in allowed


@needs_namespaces
@pytest.mark.slow
@pytest.mark.parametrize(("address", "state"), [("10.7.0.1", "up"), ("100.64.3.3", "up"), ("8.8.4.4", "down")])
def test_hosts_in_private_networks_are_fine(tmp_path: Path, address: str, state: str) -> None:
    assert checked_under_torchrun(tmp_path, address, state=state) == "allowed\n"
