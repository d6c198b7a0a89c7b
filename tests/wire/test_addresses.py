"""Addresses: malformed ones are refused at once, names are resolved in both families, each failure has its name."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.errors import LinkError, SettingError
from adc_edge.security.keystore import KeyPair
from adc_edge.storage.bundle import Bundle
from adc_edge.wire import addresses
from adc_edge.wire.addresses import Address, examine_address, is_loopback, parse_address, resolve
from adc_edge.wire.channel import Channel
from adc_edge.wire.connection import ClientKeys
from adc_edge.wire.link_messages import Ping
from adc_edge.wire.sockets import check_endpoint
from tests.serving import logged, serving

pytestmark = pytest.mark.timeout(60)


def ipv6_missing() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return True
    return False


needs_ipv6 = pytest.mark.skipif(ipv6_missing(), reason="this machine has no ::1")


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names that the system resolves to these addresses, as /etc/hosts would."""
    known: dict[str, list[str]] = {}
    ask = socket.getaddrinfo

    def look_up(host: Any, *rest: Any, **more: Any) -> Any:
        return [entry for found in known.get(host, [host]) for entry in ask(found, *rest, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


# parsing


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("tcp://127.0.0.1:5700", "127.0.0.1", 5700),
        ("tcp://gateway.local:1", "gateway.local", 1),
        ("tcp://my_gateway:65535", "my_gateway", 65535),
        ("tcp://gateway.local.:5700", "gateway.local.", 5700),
        ("tcp://[::1]:5700", "::1", 5700),
        ("tcp://[fe80::1%eth0]:5700", "fe80::1%eth0", 5700),
        ("tcp://bücher.example:5700", "bücher.example", 5700),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)
    assert parse_address(text).endpoint == text


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (" tcp://127.0.0.1:5700", "a blank"),
        ("tcp://127.0.0.1:5700 ", "a blank"),
        ("tcp://127.0.0.1:5700\n", r"'\n'"),
        ("tcp://127.0.0.1 :5700", "a blank"),
        ("tcp://127.0.0.1:5700/", "'/' and what follows"),
        ("tcp://127.0.0.1:5700/x?y#z", "'/' and what follows"),
        ("tcp://127.0.0.1:5700?x", "'?' and what follows"),
        ("tcp://me@127.0.0.1:5700", "a user's name"),
        ("tcp://me:pw@127.0.0.1:5700", "a user's name"),
        ("http://127.0.0.1:5700", "does not begin with tcp://"),
        ("127.0.0.1:5700", "does not begin with tcp://"),
        ("tcp:127.0.0.1:5700", "does not begin with tcp://"),
        ("", "does not begin with tcp://"),
        ("tcp://", "no port"),
        ("tcp://:5700", "no host"),
        ("tcp://127.0.0.1", "no port"),
        ("tcp://127.0.0.1:", "no port"),
        ("tcp://[::1]", "no port"),
        ("tcp://127.0.0.1:0", "port '0'"),
        ("tcp://127.0.0.1:65536", "port '65536'"),
        ("tcp://127.0.0.1:99999999999999999999", "port '99999999999999999999'"),
        ("tcp://127.0.0.1:-1", "port '-1'"),
        ("tcp://127.0.0.1:+5700", "port '+5700'"),
        ("tcp://127.0.0.1:5_700", "port '5_700'"),
        ("tcp://127.0.0.1:٥٧٠٠", "port '٥٧٠٠'"),
        ("tcp://127.0.0.1:port", "port 'port'"),
        ("tcp://127.0.0.1:*", "port '*'"),
        ("tcp://*:5700", "'*' is no name"),
        ("tcp://::1:5700", "needs brackets"),
        ("tcp://[::g]:5700", "::g"),
        ("tcp://[127.0.0.1]:5700", "127.0.0.1"),
        ("tcp://[fe80::1%]:5700", "no interface"),
        ("tcp://300.0.0.1:5700", "300.0.0.1"),
        ("tcp://10.0.0:5700", "10.0.0"),
        ("tcp://a..b:5700", "no name of a host"),
        ("tcp://-x:5700", "no name of a host"),
        ("tcp://\udcff:5700", r"'\udcff'"),
    ],
)
def test_a_malformed_address_is_refused_at_once_with_its_fault(text: str, fault: str) -> None:
    with pytest.raises(SettingError) as caught:
        check_endpoint(text, insecure=True, connecting=True)
    assert fault in caught.value.received
    assert caught.value.expected == "tcp://HOST:PORT"


def test_a_trainer_may_leave_host_and_port_open() -> None:
    assert parse_address("tcp://*:5700", listening=True) == ("*", 5700)
    assert parse_address("tcp://127.0.0.1:*", listening=True) == ("127.0.0.1", 0)
    assert str(Address("::", 0)) == "[::]:*"


# names


def test_loopback_is_judged_by_the_addresses_of_a_name(names: dict[str, list[str]]) -> None:
    names |= {"here": ["127.0.0.1", "::1"], "there": ["10.0.0.5"], "half": ["127.0.0.1", "10.0.0.5"]}
    assert is_loopback(Address("here", 1))
    assert is_loopback(Address("localhost", 1))
    assert is_loopback(Address("::ffff:127.0.0.1", 1))
    for other in ("there", "half", "nowhere.invalid", "*", "0.0.0.0"):
        assert not is_loopback(Address(other, 1))
    with pytest.raises(SettingError, match="not loopback"):
        check_endpoint("tcp://half:5700", insecure=False)
    check_endpoint("tcp://here:5700", insecure=False)


@needs_ipv6
def test_a_name_has_all_its_addresses_each_once(names: dict[str, list[str]]) -> None:
    names["both"] = ["::1", "127.0.0.1", "127.0.0.1"]
    assert resolve(Address("both", 7)) == [("::1", 7), ("127.0.0.1", 7)]


def test_on_a_machine_without_ipv6_the_other_addresses_are_left(
    names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "_has_ipv6", lambda: False)
    names |= {"both": ["::1", "127.0.0.1"], "six": ["::1"]}
    assert resolve(Address("both", 7)) == [("127.0.0.1", 7)]
    with pytest.raises(addresses.NameUnknown, match="six has only IPv6 addresses"):
        resolve(Address("six", 7))


# connecting


def connect(endpoint: str, wait_s: float | None = 0.1, **options: Any) -> None:
    """Open a channel and take an answer of the trainer."""
    channel = Channel(endpoint, **options)

    def ask() -> None:
        channel.send(Ping(1, 0))
        channel.receive(1_000)

    with contextlib.closing(channel):
        channel.open(wait_s, ask)


def trainer_at(bind: str, bundle: Bundle, training: HeadTraining, directory: Path) -> Server:
    return Server(bundle, training, bind, SessionRegistry(directory / "log"))


@needs_ipv6
@pytest.mark.parametrize("bind", ["tcp://[::1]:*", "tcp://six:*", "tcp://*:*", "tcp://[::]:*"])
def test_a_name_with_only_an_ipv6_address_is_reached(
    bind: str, bundle: Bundle, training: HeadTraining, tmp_path: Path, names: dict[str, list[str]]
) -> None:
    names["six"] = ["::1"]
    with serving(trainer_at(bind, bundle, training, tmp_path)) as server:
        connect(f"tcp://six:{parse_address(server.endpoint).port}", 20)


@needs_ipv6
@pytest.mark.parametrize("order", [["::1", "127.0.0.1"], ["127.0.0.1", "::1"]])
@pytest.mark.parametrize("bind", ["tcp://127.0.0.1:*", "tcp://[::1]:*"])
def test_both_families_are_tried(
    bind: str, order: list[str], bundle: Bundle, training: HeadTraining, tmp_path: Path, names: dict[str, list[str]]
) -> None:
    names["both"] = order
    with serving(trainer_at(bind, bundle, training, tmp_path)) as server:
        connect(f"tcp://both:{parse_address(server.endpoint).port}", 20)


@needs_ipv6
@pytest.mark.parametrize("bind", ["tcp://*:*", "tcp://both:*"])
def test_a_trainer_on_every_interface_or_on_a_name_listens_in_both_families(
    bind: str, bundle: Bundle, training: HeadTraining, tmp_path: Path, names: dict[str, list[str]]
) -> None:
    names["both"] = ["::1", "127.0.0.1"]
    with serving(trainer_at(bind, bundle, training, tmp_path)) as server:
        port = parse_address(server.endpoint).port
        for host in ("127.0.0.1", "[::1]"):
            connect(f"tcp://{host}:{port}", 20)


def test_a_name_that_moves_while_a_device_waits_is_found(
    server: Server, names: dict[str, list[str]], eventually: Callable[[Callable[[], bool]], None]
) -> None:
    names["moving"] = ["nowhere.invalid"]
    endpoint = f"tcp://moving:{parse_address(server.endpoint).port}"
    with logged("adc_edge.wire") as lines:
        thread = threading.Thread(target=connect, args=(endpoint, 30))
        thread.start()
        eventually(lambda: any("name unknown: moving" in line for line in lines))
        names["moving"] = ["127.0.0.1"]
        thread.join()


def test_without_keys_a_name_that_leaves_loopback_gets_nothing(server: Server, names: dict[str, list[str]]) -> None:
    names["moving"] = ["10.0.0.5"]
    with pytest.raises(LinkError, match=r"moving is 10\.0\.0\.5 now, which is not loopback"):
        connect(f"tcp://moving:{parse_address(server.endpoint).port}", loopback_alone=True)


def test_a_refused_connection_and_an_unknown_name_are_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(LinkError, match=rf"connection refused by 127\.0\.0\.1:{port}"):
        connect(f"tcp://127.0.0.1:{port}")
    with pytest.raises(LinkError, match=r"name unknown: nowhere\.invalid"):
        connect(f"tcp://nowhere.invalid:{port}")


@pytest.mark.slow
def test_a_host_that_drops_connections_gives_no_answer() -> None:
    """A full queue of connections drops further ones, as a firewall does."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        place = full.getsockname()
        with contextlib.suppress(TimeoutError):
            for _ in range(8):
                stack.enter_context(socket.create_connection(place, 0.2))
        assert examine_address(Address(*place), 0.2).text == f"no answer from 127.0.0.1:{place[1]} within 0.2 s"
        with pytest.raises(LinkError, match=rf"no answer from 127\.0\.0\.1:{place[1]} within 3 s"):
            connect(f"tcp://127.0.0.1:{place[1]}")


@contextlib.contextmanager
def answering(banner: bytes, closes: bool = False) -> Iterator[str]:
    """A server that sends ``banner`` to everybody."""
    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    kept.append(listener.accept()[0])
                    kept[-1].sendall(banner)
                    if closes:
                        kept.pop().close()

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for end in kept:
            end.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_an_http_server_is_named_after_the_first_attempt() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        try:
            with pytest.raises(LinkError, match="an HTTP server answers"):
                connect(f"tcp://127.0.0.1:{web.server_port}")
        finally:
            web.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("banner", "who"), [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "an HTTP server"), (b"\x15\x03\x01", "a TLS server")]
)
def test_what_is_not_adc_edge_is_given_up_after_a_few_attempts_even_with_wait_inf(banner: bytes, who: str) -> None:
    with answering(banner, closes=True) as endpoint, pytest.raises(LinkError, match=f"{who} answers") as caught:
        connect(endpoint, None)
    assert "check host and port" in caught.value.remedy


@pytest.mark.parametrize(
    ("banner", "closes", "text", "foreign"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", False, "an SSH server answers", True),
        (b"220 mail ESMTP\r\n", False, "something answers", True),
        (b"", False, "says nothing", False),
        (b"", True, "closes them", False),
    ],
)
def test_other_servers_are_told_by_what_they_send(
    banner: bytes, closes: bool, text: str, foreign: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "_ANSWER_S", 0.3)
    with answering(banner, closes) as endpoint:
        found = examine_address(parse_address(endpoint))
    assert text in found.text
    assert found.foreign is foreign


@pytest.mark.parametrize("kind", ["PUB", "PULL"])
def test_another_kind_of_zeromq_socket_is_named(kind: str) -> None:
    with zmq.Context() as context, context.socket(getattr(zmq, kind)) as other:
        other.linger = 0
        port = other.bind_to_random_port("tcp://127.0.0.1")
        with pytest.raises(LinkError, match=f"a ZeroMQ socket of kind {kind} answers"):
            connect(f"tcp://127.0.0.1:{port}", None)


def test_keys_on_one_side_only_say_on_which(server: Server) -> None:
    keys = ClientKeys(KeyPair(*zmq.curve_keypair()), zmq.curve_keypair()[0])
    with pytest.raises(LinkError, match="keys on one side only, this device's"):
        connect(server.endpoint, keys=keys)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as closed:
        closed.curve_server, closed.curve_secretkey = True, zmq.curve_keypair()[1]
        port = closed.bind_to_random_port("tcp://127.0.0.1")
        with pytest.raises(LinkError, match="keys on one side only, the trainer's"):
            connect(f"tcp://127.0.0.1:{port}")
        with pytest.raises(LinkError, match=r"its key is not the one in trainer\.key"):
            connect(f"tcp://127.0.0.1:{port}", keys=keys)


# listening


def refused_to_listen(bind: str, bundle: Bundle, training: HeadTraining, directory: Path) -> SettingError:
    with pytest.raises(SettingError) as caught:
        trainer_at(bind, bundle, training, directory)
    return caught.value


def test_an_address_that_cannot_be_listened_on_says_why(bundle: Bundle, training: HeadTraining, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = refused_to_listen(f"tcp://127.0.0.1:{port}", bundle, training, tmp_path)
    assert error.received == f"cannot listen on tcp://127.0.0.1:{port}: port {port} is in use"
    error = refused_to_listen("tcp://192.0.2.7:5700", bundle, training, tmp_path)
    assert "192.0.2.7 is no address of this machine" in error.received
    assert "ip address" in error.remedy
    error = refused_to_listen("tcp://nowhere.invalid:5700", bundle, training, tmp_path)
    assert "name unknown: nowhere.invalid" in error.received
    assert "1024" in addresses.listening_error(Address("127.0.0.1", 80), 13, "Permission denied").remedy


def test_the_reason_is_logged_once_and_again_when_it_is_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with logged("adc_edge.wire") as lines:
        start = time.monotonic()
        with pytest.raises(LinkError):
            connect(f"tcp://127.0.0.1:{port}", 1.0)
        assert time.monotonic() - start < 20
    assert len(lines) == 1
    assert "connection refused" in lines[0]
