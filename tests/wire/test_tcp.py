"""Each connection uses BBR on both ends if the kernel offers it, and its absence is never an error."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from link_emulator import LinkEmulator, Way, available, inside, tcp_pair

from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.storage.bundle import Bundle
from adc_edge.wire import tcp
from adc_edge.wire.connection import Connection
from adc_edge.wire.tcp import prefer_bbr
from tests.serving import serving
from tests.stub_device import Device

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has congestion control by name")

OFFERED = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


def control(end: socket.socket) -> str:
    return end.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()


def permitted(name: str) -> bool:
    if name not in OFFERED.read_text().split():
        return False
    with socket.socket() as end:
        try:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        except OSError:
            return False
    return True


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    with client, accepted:
        yield client, accepted


@pytest.fixture
def another(monkeypatch: pytest.MonkeyPatch) -> str:
    """A congestion control other than the machine's default, set as the preferred one: BBR is often the default."""
    with socket.socket() as end:
        default = control(end)
    choice = [name for name in OFFERED.read_text().split() if name != default and permitted(name)]
    if not choice:
        pytest.skip(f"the kernel has nothing but {default}, or permits nothing else")
    monkeypatch.setattr(tcp, "_PREFERRED", choice[0])
    return choice[0]


@pytest.fixture
def needs_bbr() -> None:
    if not permitted("bbr"):
        pytest.skip("the kernel does not offer bbr, or does not permit it")


@pytest.mark.usefixtures("needs_bbr")
def test_a_connection_sends_by_bbr_where_the_kernel_permits_it(pair: tuple[socket.socket, socket.socket]) -> None:
    for end in pair:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        end.setblocking(False)
        assert prefer_bbr(end.fileno()) == "bbr"
        assert control(end) == "bbr"
        assert not end.getblocking()  # as it was
    pair[0].sendall(b"still open")
    pair[1].setblocking(True)
    assert pair[1].recv(100) == b"still open"


@pytest.mark.parametrize("offered", ["reno cubic\n", "", None])
def test_without_bbr_a_connection_stays_as_it_is(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offered: str | None
) -> None:
    monkeypatch.setattr(tcp, "_OFFERED", tmp_path / "offered")
    if offered is not None:
        (tmp_path / "offered").write_text(offered)
    pair[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    assert prefer_bbr(pair[0].fileno()) == control(pair[0]) == "reno"


def test_a_control_that_is_offered_and_refused_changes_nothing(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "offered").write_text("cubic martian")
    monkeypatch.setattr(tcp, "_OFFERED", tmp_path / "offered")
    monkeypatch.setattr(tcp, "_PREFERRED", "martian")
    before = control(pair[0])
    assert prefer_bbr(pair[0].fileno()) == control(pair[0]) == before


def test_other_systems_report_no_control(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "_TCP_CONGESTION", None)
    assert prefer_bbr(pair[0].fileno()) is None


def files(path: Path) -> dict[str, Callable[[], socket.socket | int]]:
    """Files and sockets that may have the number of a connection that was just closed."""
    return {
        "a file": lambda: os.open(path, os.O_RDWR | os.O_CREAT),
        "UDP": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "connected UDP": lambda: _connected(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
        "unconnected TCP": socket.socket,
        "a listener": lambda: socket.create_server(("127.0.0.1", 0)),
        "a Unix socket": lambda: socket.socket(socket.AF_UNIX),
    }


def _connected(end: socket.socket) -> socket.socket:
    end.connect(("127.0.0.1", 9))
    return end


@pytest.mark.parametrize("kind", files(Path()))
def test_a_descriptor_that_is_no_connection_is_left_alone(kind: str, tmp_path: Path) -> None:
    thing = files(tmp_path / "file")[kind]()
    fd = thing if isinstance(thing, int) else thing.fileno()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        assert prefer_bbr(fd) is None
    if kind != "a listener" and kind != "unconnected TCP":
        assert tcp.tcp_info(fd) is None
    assert len(os.listdir("/proc/self/fd")) == before
    os.fstat(fd)  # still open
    if isinstance(thing, int):
        os.close(thing)
    else:
        thing.close()
    assert prefer_bbr(fd) is None


@pytest.mark.parametrize("fd", [-1, 2**20])
def test_a_number_that_is_no_descriptor_is_no_error(fd: int) -> None:
    assert prefer_bbr(fd) is None


def test_a_device_sets_the_control_before_it_sends_anything(another: str, server: Server) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    connection = Connection(context, server.endpoint, None, lambda: False)
    assert connection.meter.congestion is None
    connection.writable()
    assert connection.meter.congestion == another
    assert connection.meter._fd is not None
    with tcp.same_socket(connection.meter._fd) as end:
        assert control(end) == another
    connection.close()
    assert connection.meter.congestion == another  # the last connection's
    context.term()


@pytest.mark.skipif(available() is not None, reason=str(available()))
@pytest.mark.usefixtures("needs_bbr")
def test_both_ends_of_a_real_link_send_by_bbr(bundle: Bundle, training: HeadTraining, tmp_path: Path) -> None:
    way = Way(50, 5)
    with LinkEmulator(way, way, congestion="reno") as link:
        before = tcp_pair(link)
        for end in before:
            assert control(end) == "reno"
            end.close()
        with inside(link.trainer_namespace):
            server = Server(bundle, training, f"tcp://{link.trainer_address}:*", SessionRegistry(tmp_path / "log"))
        with serving(server):
            device = Device(bundle, server.endpoint)
            with inside(link.device_namespace):
                device.session.open(30)
            device.step(0)
            assert device.session.channel._connection is not None
            assert device.session.channel._connection.meter.congestion == "bbr"
            ends = [device.session.channel._connection.meter._fd, *server._guard._connections]
            assert len(ends) == 2
            for fd in ends:
                assert fd is not None
                with tcp.same_socket(fd) as live:
                    assert control(live) == "bbr"
            device.session.close()


def test_a_kernel_with_a_short_tcp_info_is_recognised_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tcp._kernel_counts() == tcp.KERNEL_COUNTS
    monkeypatch.setattr(tcp, "_SIZE", 4)  # as under an emulator: then frames are counted instead of nothing
    assert not tcp._kernel_counts()
