"""Bounds on what unauthenticated peers cost a trainer: lines of its log, memory, and never another connection."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from adc_edge.cloud_trainer import guard
from adc_edge.cloud_trainer.guard import Refusals
from adc_edge.cloud_trainer.server import Server
from adc_edge.storage.bundle import Bundle
from adc_edge.wire.framing import to_frames
from adc_edge.wire.headers import unpack_from_trainer
from adc_edge.wire.link_messages import Ping, Pong
from adc_edge.wire.message import CHUNK_BYTES, Message
from adc_edge.wire.messages import VERSION, FromTrainer, Hello, Refused, Welcome
from tests.serving import logged
from tests.stub_device import Device

MB = 1e6
Wait = Callable[[Callable[[], bool]], None]


class Client:
    """A bare socket of one connection that is never made anew."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, **options: int) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)  # without it libzmq 4.3.5 hangs at the end after a cut
        for name, value in options.items():
            self.socket.setsockopt(getattr(zmq, name), value)
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.socket.connect(endpoint)
        assert self.socket.poll(10_000, zmq.POLLOUT)

    @property
    def cut_off(self) -> bool:
        return bool(self.monitor.poll(0)) and recv_monitor_message(self.monitor)["event"] == zmq.EVENT_DISCONNECTED

    def send(self, *messages: Message) -> None:
        """Also when nobody is there any more."""
        for message in messages:
            for header, piece in to_frames(message):
                self.throw(header, piece)

    def throw(self, *frames: bytes | memoryview) -> None:
        with contextlib.suppress(zmq.Again):
            self.socket.send_multipart(frames, zmq.NOBLOCK)

    def ask(self, message: Message) -> FromTrainer:
        self.send(message)
        assert self.socket.poll(10_000), "no answer"
        return unpack_from_trainer(self.socket.recv_multipart()[0][:-8])

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(0)


@pytest.fixture
def connect(server: Server) -> Iterator[Callable[..., Client]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    clients: list[Client] = []

    def new(**options: int) -> Client:
        clients.append(Client(context, server.endpoint, **options))
        return clients[-1]

    yield new
    for client in clients:
        client.close()
    context.term()


@pytest.fixture
def log(server: Server) -> list[str]:
    """The messages that the trainer logged."""
    lines: list[str] = server.lines  # type: ignore[attr-defined]
    return lines


def resident() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / MB for line in lines if line.startswith("VmRSS:"))


def raw(endpoint: str) -> socket.socket:
    host, port = endpoint.removeprefix("tcp://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def cut_lines(log: list[str]) -> list[str]:
    return [line for line in log if line.startswith("cut off")]


def test_the_first_refusals_of_a_kind_are_logged_and_the_rest_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Refusals, "WINDOW_S", 0.2)
    refusals = Refusals()
    with logged() as lines:
        for number in range(1000):
            refusals.warn("order", f"order {number}")
        refusals.warn("nan", "nan 0")
        refusals.sweep()
        assert lines == [*(f"order {number}" for number in range(refusals.BURST)), "nan 0"]
        time.sleep(0.25)
        refusals.sweep()
        assert lines[refusals.BURST + 1 :] == [f"and {1000 - refusals.BURST} more refusals (order) within 0 s"]
        refusals.warn("order", "order again")
        assert lines[-1] == "order again"
        time.sleep(0.25)
        refusals.sweep()
        assert lines[-1] == "order again"  # nothing was left out


def test_refusals_may_come_from_many_threads() -> None:
    refusals = Refusals()

    def flood() -> None:
        for _ in range(2000):
            refusals.warn("key", "no")

    threads = [threading.Thread(target=flood) for _ in range(4)]
    with logged() as lines:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert lines == ["no"] * refusals.BURST


def test_a_peer_without_a_session_that_sends_nonsense_is_cut_off_and_others_are_not(
    connect: Callable[..., Client], log: list[str], eventually: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Refusals, "WINDOW_S", 3600.0)  # however slow the machine: all of it within one window
    hostile, other = connect(), connect()
    for number in range(guard.STRIKES * 3):
        hostile.throw(b"nonsense", b"%d" % number)
        assert isinstance(other.ask(Ping(number, 0)), Pong)
    eventually(lambda: hostile.cut_off)
    eventually(lambda: bool(cut_lines(log)))
    assert cut_lines(log) == ["cut off a connection: too many of its messages were refused"]
    assert sum("(corrupt)" in line for line in log) == Refusals.BURST
    assert isinstance(other.ask(Ping(1, 10)), Pong)
    assert not other.cut_off


def test_a_peer_without_a_session_may_be_refused_a_few_times(connect: Callable[..., Client]) -> None:
    client = connect()
    for _ in range(guard.STRIKES - 1):
        client.throw(b"nonsense", b"")
        assert client.socket.poll(10_000)
        client.socket.recv_multipart()
    assert isinstance(client.ask(Ping(1, 10)), Pong)
    assert not client.cut_off


def test_a_device_with_a_session_is_refused_by_name_as_often_as_it_takes(
    connect: Callable[..., Client], bundle: Bundle
) -> None:
    client = connect()
    assert isinstance(client.ask(Hello(VERSION, bundle.digest, 1, 1, "x", 0, 0, 0)), Welcome)
    for _ in range(3 * guard.STRIKES):
        client.throw(b"broken by the link", b"")
        assert client.socket.poll(10_000)
        refused = unpack_from_trainer(client.socket.recv_multipart()[0][:-8])
        assert isinstance(refused, Refused)
        assert refused.code == "corrupt"
    assert isinstance(client.ask(Ping(1, 10)), Pong)


def test_a_peer_that_says_hello_again_and_again_is_cut_off(
    connect: Callable[..., Client], bundle: Bundle, server: Server, log: list[str], eventually: Wait
) -> None:
    client, other = connect(SNDHWM=0), connect()
    assert isinstance(client.ask(Ping(1, 10)), Pong)
    client.send(*(Hello(VERSION, bundle.digest, number, 1, "x", 0, 0, 0) for number in range(1000)))
    eventually(lambda: client.cut_off)
    assert isinstance(other.ask(Ping(1, 10)), Pong)  # the trainer has handled what came before
    assert cut_lines(log) == ["cut off a connection: it says hello again and again"]
    assert len(server.sessions.records()) == guard.STRIKES - 1  # nothing of what was queued made one more


def test_a_peer_that_asks_and_never_reads_is_cut_off_before_its_answers_fill_the_memory(
    connect: Callable[..., Client], log: list[str]
) -> None:
    greedy, other = connect(RCVHWM=1, RCVBUF=4096, SNDHWM=0), connect()
    assert isinstance(other.ask(Ping(0, CHUNK_BYTES)), Pong)
    before = peak = resident()
    asked = 0
    deadline = time.monotonic() + 60
    while not cut_lines(log):
        assert time.monotonic() < deadline
        greedy.send(*[Ping(asked, CHUNK_BYTES)] * 50)
        asked += 50
        assert isinstance(other.ask(Ping(asked, 100)), Pong)
        peak = max(peak, resident())
    assert cut_lines(log) == ["cut off a connection: it asks and does not read the answers"]
    assert peak - before < 4 * guard.UNREAD_BYTES / MB
    assert asked * CHUNK_BYTES > guard.UNREAD_BYTES
    deadline = time.monotonic() + 60
    while not greedy.cut_off:  # what had arrived comes first
        assert time.monotonic() < deadline
        if greedy.socket.poll(100):
            greedy.socket.recv_multipart()
    assert isinstance(other.ask(Ping(1, 100)), Pong)


def test_a_peer_that_asks_for_much_and_reads_it_is_served(connect: Callable[..., Client], log: list[str]) -> None:
    client = connect()
    for number in range(3 * guard.UNREAD_BYTES // CHUNK_BYTES):
        assert isinstance(client.ask(Ping(number, CHUNK_BYTES)), Pong)
    assert not cut_lines(log)


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
OLD = (
    b"\x01\x00\x06\x01hello\x06\x00hello",  # ZMTP/1.0, and a message
    b"\xff" + bytes(7) + b"\x01\x7f\x01\x05\x00\x00\x01\x05hello\x00\x05hello",  # 2.0
)
ENDLESS = """
import select, socket, sys
end = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
end.sendall(bytes.fromhex(sys.argv[2]))
heard = b""
while b"Identity" not in heard:  # in its READY: before that it takes no message
    heard += end.recv(4096)
end.setblocking(False)
left, frame = 400_000_000, b"\\x03" + (60_000).to_bytes(8, "big") + bytes(60_000)  # there is more, it says
piece, sent = memoryview(frame), 0
try:
    while sent < left:
        readable, writable, _ = select.select([end], [end], [])
        if readable:
            data = end.recv(4096)
            if not data:
                break
        if writable:
            count = end.send(piece)
            sent, piece = sent + count, piece[count:] or memoryview(frame)
except ConnectionError:
    pass
print(sent)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a connection's bytes")
def test_a_message_without_an_end_is_cut_off_before_it_fills_the_memory(
    server: Server, connect: Callable[..., Client], log: list[str]
) -> None:
    other = connect()
    before = peak = resident()
    port = server.endpoint.rpartition(":")[2]
    command = [sys.executable, "-c", ENDLESS, port, (GREETING + READY).hex()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while process.poll() is None:
        assert isinstance(other.ask(Ping(1, 100)), Pong)
        peak = max(peak, resident())
    sent = int(process.communicate()[0])
    assert [line.endswith("a message without an end") for line in cut_lines(log)] == [True]
    assert guard.UNDELIVERED_BYTES < sent < 200_000_000
    assert peak - before < 200
    assert not other.cut_off


def test_a_long_message_with_an_end_is_refused_and_its_frames_are_not_kept(
    connect: Callable[..., Client], log: list[str]
) -> None:
    client = connect()
    client.throw(*[bytes(60_000)] * 100)
    assert client.socket.poll(10_000)
    refused = unpack_from_trainer(client.socket.recv_multipart()[0][:-8])
    assert isinstance(refused, Refused)
    assert (refused.code, refused.expected) == ("malformed", "a header and a piece")
    assert isinstance(client.ask(Ping(1, 10)), Pong)
    assert not cut_lines(log)


@pytest.mark.parametrize(
    "opening",
    [
        b"",
        b"\xff",
        b"\x00",
        b"GET / HTTP/1.1\r\nHost: trainer\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        GREETING[:11],
        GREETING,
        GREETING + b"\x04\x05\x05READY"[:4],
        GREETING + b"\x04\x19" + bytes(25),
        GREETING.replace(b"NULL", b"GSSA"),
        GREETING + READY + b"\x00\x05hello",
        GREETING + READY + b"\x02\xff\xff\xff\xff\xff\xff\xff\xff",  # a frame of 2^64 bytes
        OLD[0],
        OLD[1],
        bytes(range(256)),
    ],
)
def test_half_handshakes_old_ones_and_other_protocols_do_not_disturb_others(
    server: Server, connect: Callable[..., Client], opening: bytes
) -> None:
    other = connect()
    with raw(server.endpoint) as stays, raw(server.endpoint) as goes:
        for end in (stays, goes):
            end.sendall(opening)
        assert isinstance(other.ask(Ping(1, 10)), Pong)
        goes.close()
        for number in range(10):
            assert isinstance(other.ask(Ping(number, 10)), Pong)
            time.sleep(0.01)
    assert isinstance(other.ask(Ping(1, 10)), Pong)
    assert not other.cut_off


@pytest.mark.parametrize("opening", OLD)
def test_messages_of_a_protocol_of_ten_years_ago_are_refused_in_the_log(
    server: Server, log: list[str], eventually: Wait, opening: bytes
) -> None:
    with raw(server.endpoint) as end:
        end.sendall(opening)
        eventually(lambda: any("ZMTP older than 3" in line for line in log))


def test_silent_connections_beyond_the_limit_go_and_a_device_at_work_stays(
    server: Server, bundle: Bundle, log: list[str], monkeypatch: pytest.MonkeyPatch, eventually: Wait
) -> None:
    monkeypatch.setattr(guard, "MAX_CONNECTIONS", 5)
    device = Device(bundle, server.endpoint)
    device.session.open(10)
    device.step(0)
    ends = [raw(server.endpoint) for _ in range(20)]
    gone: set[Any] = set()

    def closed() -> bool:
        for end in ends:
            end.settimeout(0.01)
            try:
                while end.recv(100):
                    pass
                gone.add(end)
            except TimeoutError:
                pass
            except ConnectionError:
                gone.add(end)
        return len(gone) >= 16

    eventually(closed)
    device.step(1)
    assert device.session.outages == 0
    assert len(gone) == 16
    assert set(cut_lines(log)) == {"cut off a connection: more than 5 connections, and this one has sent nothing"}
    for end in ends:
        end.close()
    device.session.close()
