"""The network through which ranks talk."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from adc_edge.cloud_trainer.ranks.launch import Launch
from adc_edge.cloud_trainer.ranks.private import GLOO, NCCL, choose_interface, interface_addresses, is_private
from adc_edge.errors import SettingError
from tests.cloud_trainer.ranks.launching import rank_environment

ONE_HOST = Launch(0, 2, 0, 2, 1, 0, "127.0.0.1", 29500, True)
TWO_HOSTS = ONE_HOST._replace(world=4, nodes=2)
LOOPBACK = next((each.name for each in interface_addresses() if each.address == "127.0.0.1"), "lo")
CHOOSE = """
import json, sys
from adc_edge.cloud_trainer.ranks.launch import Launch
from adc_edge.cloud_trainer.ranks.private import choose_interface
from adc_edge.errors import SettingError
variables = json.loads(sys.argv[2])
try:
    launch = Launch(0, 4, 0, 2, int(sys.argv[4]), 0, sys.argv[1], 29500, True)
    chosen = choose_interface(launch, sys.argv[3] == "public", variables)
    print(chosen.name, chosen.address, variables["GLOO_SOCKET_IFNAME"], variables["NCCL_SOCKET_IFNAME"])
except SettingError as error:
    print("refused:", error)
"""
SET_UP = """
set -e
ip link set lo up
ip link add outside type veth peer name far1; ip address add 198.51.100.7/24 dev outside; ip link set outside up
ip link add inside type veth peer name far2; ip address add 10.7.0.1/24 dev inside
ip address add 203.0.113.5/24 dev inside
ip link set inside up
ip route add default dev outside
"""


@pytest.mark.parametrize(
    "address",
    "127.0.0.1 127.8.8.8 ::1 10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.1 169.254.1.1 fe80::1 fe80::1%eth0 fd00::2 "
    "100.64.0.1 100.127.255.255 ::ffff:10.0.0.1".split(),
)
def test_loopback_and_private_addresses_are_private(address: str) -> None:
    assert is_private(address)


@pytest.mark.parametrize(
    "address",
    "8.8.8.8 172.32.0.1 172.15.0.1 192.169.0.1 100.63.0.1 100.128.0.1 11.0.0.1 192.0.2.1 0.0.0.0 :: 2001:db8::1 "
    "2606:4700::1 ::ffff:8.8.8.8".split(),
)
def test_all_other_addresses_are_public(address: str) -> None:
    assert not is_private(address)


def test_the_addresses_of_this_host_are_found() -> None:
    found = list(interface_addresses())
    names = {name for _, name in socket.if_nameindex()}
    assert {each.name.partition(":")[0] for each in found} <= names
    assert any(each.address == "127.0.0.1" for each in found)


def test_ranks_of_one_host_talk_through_loopback() -> None:
    variables: dict[str, str] = {}
    chosen = choose_interface(ONE_HOST._replace(master="trainer.example"), False, variables)
    assert chosen == (LOOPBACK, "127.0.0.1")
    assert variables == {GLOO: LOOPBACK, NCCL: f"={LOOPBACK}"}


def test_agents_that_meet_on_loopback_share_a_host() -> None:
    for master in ("127.0.0.1", "localhost"):
        assert choose_interface(TWO_HOSTS._replace(master=master), False, {}).address == "127.0.0.1"


def test_an_interface_that_does_not_exist_is_named() -> None:
    with pytest.raises(SettingError, match="GLOO_SOCKET_IFNAME: no interface eth77"):
        choose_interface(ONE_HOST, False, {GLOO: "eth77"})


def test_a_host_that_nobody_knows_is_named() -> None:
    with pytest.raises(SettingError, match=r"MASTER_ADDR nobody\.invalid"):
        choose_interface(TWO_HOSTS._replace(master="nobody.invalid"), False, {})


def test_a_name_that_is_loopback_here_would_lead_other_hosts_astray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, 1, 6, "", ("127.0.1.1", 29500))])
    with pytest.raises(SettingError, match="the name of the first, trainer, is loopback"):
        choose_interface(TWO_HOSTS._replace(master="trainer"), False, {})


needs_namespaces = pytest.mark.skipif(
    not (sys.platform.startswith("linux") and os.geteuid() == 0 and shutil.which("unshare") and shutil.which("ip")),
    reason="network namespaces need root on Linux, unshare and ip",
)


def chosen_in_namespace(master: str, variables: str = "{}", public: str = "", nodes: int = 2) -> str:
    """Choose on a host of two interfaces: one has a public address, the other a private and a public one."""
    words = [sys.executable, "-c", CHOOSE, master, variables, public or "private", str(nodes)]
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", f'{SET_UP}\nexec "$@"', "sh", *words],
        env=rank_environment(),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    if "Operation not permitted" in done.stderr or "Unknown device type" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_namespaces
def test_several_hosts_talk_through_the_interface_that_reaches_the_first() -> None:
    assert chosen_in_namespace("10.7.0.9") == "inside 10.7.0.1 inside =inside\n"
    assert chosen_in_namespace("10.7.0.1") == "inside 10.7.0.1 inside =inside\n"  # the first host itself
    reached = chosen_in_namespace("203.0.113.9", public="public")
    assert reached == "inside 10.7.0.1 inside =inside\n"  # gloo takes its first address


@needs_namespaces
def test_a_public_address_is_refused_unless_a_flag_allows_it() -> None:
    refused = chosen_in_namespace("10.7.0.9", '{"GLOO_SOCKET_IFNAME": "outside"}')
    assert refused.startswith("refused: ranks would listen on 198.51.100.7 (outside), a public address")
    assert "--public-ranks" in refused
    assert chosen_in_namespace("198.51.100.9", public="public") == "outside 198.51.100.7 outside =outside\n"


@needs_namespaces
def test_variables_that_are_set_stay_and_are_checked() -> None:
    given = '{"GLOO_SOCKET_IFNAME": "inside", "NCCL_SOCKET_IFNAME": "^lo,out"}'
    assert chosen_in_namespace("10.7.0.9", given) == "inside 10.7.0.1 inside ^lo,out\n"
    for wrong in (
        '{"GLOO_SOCKET_IFNAME": "outside"}',
        '{"NCCL_SOCKET_IFNAME": "out"}',
        '{"NCCL_SOCKET_IFNAME": "^lo"}',
        '{"NCCL_SOCKET_IFNAME": "=outside"}',
    ):
        assert "(outside), a public address" in chosen_in_namespace("10.7.0.9", wrong, nodes=1)


@needs_namespaces
def test_every_interface_that_gloo_listens_on_is_checked() -> None:
    refused = chosen_in_namespace("10.7.0.9", '{"GLOO_SOCKET_IFNAME": "inside,outside"}')
    assert "198.51.100.7 (outside), a public address" in refused
    assert "no interface eth77" in chosen_in_namespace("10.7.0.9", '{"GLOO_SOCKET_IFNAME": "inside,eth77"}')
    given = '{"GLOO_SOCKET_IFNAME": "inside,lo"}'
    assert chosen_in_namespace("10.7.0.9", given) == "inside 10.7.0.1 inside,lo =inside\n"


@needs_namespaces
def test_a_public_master_is_refused_whatever_the_interface() -> None:
    given = '{"GLOO_SOCKET_IFNAME": "inside"}'
    refused = chosen_in_namespace("198.51.100.9", given)
    assert refused.startswith("refused: MASTER_ADDR 198.51.100.9, a public address")
    assert "--public-ranks" in refused
    assert chosen_in_namespace("198.51.100.9", given, "public").startswith("inside 10.7.0.1")
    # A lone host reaches its own address without a network.
    assert chosen_in_namespace("198.51.100.7", given, nodes=1).startswith("inside 10.7.0.1")
    assert chosen_in_namespace("198.51.100.9", given, nodes=1).startswith("refused: MASTER_ADDR")
