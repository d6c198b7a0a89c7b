"""Ranks on two hosts: with a delay between them, cut off from each other for a minute, one more and one less."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from link_emulator import LinkEmulator, Way, available

from adc_edge.security.keystore import allow, load_public, make_keys, pin
from tests.chaos.ranks.supervised import Host
from tests.chaos.ranks.training import (
    Devices,
    check_every_step_once,
    check_head,
    check_nothing_is_left,
    logs,
    until,
)
from tests.chaos.run import LEARNING
from tests.chaos.zygote import Zygote
from tests.ports import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timed, pytest.mark.timeout(600)]
NEAR = Way(1000, 2.5)  # 5 ms for a round trip
NOTHING = Way(1000, 2.5, loss=1.0)
PARTITION_S = float(os.environ.get("ADC_EDGE_PARTITION_S", "60"))
PORT, STORE_PORT = 5700, 29400  # in namespaces, all ports are free
RENDEZVOUS = "join_timeout=600,read_timeout=600,last_call_timeout=5"  # as docs/scale.md says


def torchrun(host: int, address: str, store: str, nodes: str, *trainer: str | Path) -> list[str | Path]:
    """Arguments of one host's supervisor; the store of the rendezvous is on host 0."""
    return [
        "--nnodes", nodes, "--nproc-per-node", "1", "--max-restarts", "20", "--local-addr", address,
        "--rdzv-backend", "c10d", "--rdzv-endpoint", store, "--rdzv-id", "run",
        "--rdzv-conf", f"{RENDEZVOUS},is_host={int(host == 0)}",
        "-m", "--", "adc_edge", "trainer", *trainer, "--checkpoint-every", "10", *LEARNING,
    ]  # fmt: skip


@contextlib.contextmanager
def told(where: Path) -> Iterator[None]:
    """Print all logs if the block fails."""
    try:
        yield
    except BaseException:
        print(logs(where))
        raise


@pytest.fixture
def link() -> Iterator[LinkEmulator]:
    with LinkEmulator(NEAR, NEAR) as link:
        yield link


def keys_of(where: Path, devices: int) -> list[Path]:
    """Directories of keys: the trainer's, which its ranks share, and each device's."""
    trainer, *others = (where / name for name in ("trainer-keys", *(f"keys-{n}" for n in range(devices))))
    for directory in (trainer, *others):
        make_keys(directory)
    for number, directory in enumerate(others):
        allow(trainer, f"device-{number}", load_public(directory / "public.key"))
        pin(directory, load_public(trainer / "public.key"))
    return [trainer, *others]


@pytest.mark.skipif(available() is not None, reason=str(available()))
def test_hosts_that_do_not_reach_each_other_for_a_minute_go_on_by_themselves(
    zygote: Zygote, bundle_dir: Path, tmp_path: Path, link: LinkEmulator, capsys: pytest.CaptureFixture[str]
) -> None:
    run, steps = tmp_path / "trainer", 200
    addresses = [link.device_address, link.trainer_address]
    namespaces = [link.device_namespace, link.trainer_namespace]
    trainer_keys, *keys = keys_of(tmp_path, 3)
    doors = [f"tcp://{addresses[host]}:{PORT}" for host in (0, 0, 1)]
    devices = Devices(
        zygote, bundle_dir, tmp_path, doors, steps,
        [["--keys", each] for each in keys], [namespaces[host] for host in (0, 1, 1)],
    )  # fmt: skip
    common: list[str | Path] = ["--bundle", bundle_dir, "--run", run, "--devices", "3", "--keys", trainer_keys]
    hosts = [
        torchrun(host, address, f"{addresses[0]}:{STORE_PORT}", "2", "--bind", f"tcp://{address}:{PORT}", *common)
        for host, address in enumerate(addresses)
    ]
    with contextlib.ExitStack() as stack:
        stack.enter_context(told(tmp_path))
        first, second = (
            stack.enter_context(Host(each, tmp_path / f"host-{host}.log", namespaces[host]))
            for host, each in enumerate(hosts)
        )
        devices.start_all()
        until(lambda: devices.progress() >= steps, 200, lambda: "the ranks do not train")
        before = first.ranks() | second.ranks()
        assert before.keys() == {0, 1}
        link.set(NOTHING, NOTHING)
        time.sleep(2)
        cut, done = time.monotonic(), devices.progress()
        time.sleep(PARTITION_S - 2)
        late = devices.progress()
        assert late <= done + 3
        assert late < 3 * steps - 10
        link.set(NEAR, NEAR)
        healed = time.monotonic()
        until(lambda: devices.progress() > late + 3, 300, lambda: "nothing goes on")
        went_on = time.monotonic()
        same = before == first.ranks() | second.ranks()
        until(devices.done, 300, lambda: "the devices do not end")
        assert first.wait(120) == 0
        assert second.wait(120) == 0
        assert not [*first.processes(), *second.processes()]
    with capsys.disabled():
        print(
            f"\ncut for {healed - cut + 2:.0f} s; steps went on {went_on - healed:.0f} s later, "
            f"in {'the same' if same else 'other'} processes of the ranks"
        )
    check_every_step_once(run, devices)
    check_head(run, 3 * steps)
    check_nothing_is_left(run, PORT, 0)


def test_a_host_that_comes_and_one_that_goes_take_over_sessions_from_the_shared_run_directory(
    zygote: Zygote, bundle_dir: Path, tmp_path: Path
) -> None:
    port, run, steps = free_ports(3), tmp_path / "trainer", 400
    devices = Devices(zygote, bundle_dir, tmp_path, [f"tcp://127.0.0.1:{port}"] * 3, steps)
    common: list[str | Path] = ["--bundle", bundle_dir, "--run", run, "--devices", "3"]
    store = f"127.0.0.1:{port + 2}"
    first, second = (
        torchrun(host, "127.0.0.1", store, "1:2", "--bind", f"tcp://127.0.0.1:{port + host}", *common)
        for host in range(2)
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(told(tmp_path))
        stays = stack.enter_context(Host(first, tmp_path / "stays.log"))
        devices.start_all()

        def trained_on(steps: int, ranks: int, *hosts: Host) -> bool:
            """Whether so many ranks are at work and more steps were done."""
            return sum(len(host.ranks()) for host in hosts) == ranks and devices.progress() >= steps

        until(lambda: trained_on(30, 1, stays), 200, lambda: "one host does not train")
        comes = stack.enter_context(Host(second, tmp_path / "comes.log"))
        until(lambda: len(comes.ranks()) == 1, 200, lambda: "the host that came has no rank")
        more = devices.progress() + 100
        until(lambda: trained_on(more, 2, stays, comes), 200, lambda: "two hosts do not train")
        comes.stop()
        comes.wait(120)
        more = devices.progress() + 100
        assert more < 3 * steps
        until(lambda: trained_on(more, 1, stays), 200, lambda: "the host that stays does not train")
        until(devices.done, 300, lambda: "the devices do not end")
        assert stays.wait(120) == 0
        assert not [*stays.processes(), *comes.processes()]
    check_every_step_once(run, devices)
    check_head(run, 3 * steps)
    check_nothing_is_left(run, port, 3)
