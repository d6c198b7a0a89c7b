"""A device's session that a trainer's door moves: followed at once, without an outage, and only where it may go."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest
import zmq

from adc_edge.cloud_trainer.access import Access
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.edge_runtime.choosing.link import probe_link
from adc_edge.edge_runtime.session import DeviceSession
from adc_edge.errors import LinkError, ProtocolError, RefusedError
from adc_edge.security.authenticator import Authenticator, secure_server
from adc_edge.security.keystore import Devices, allow, load_pair, make_keys
from adc_edge.storage.bundle import Bundle
from adc_edge.wire.channel import Channel
from adc_edge.wire.connection import ClientKeys
from adc_edge.wire.framing import Assembler, to_frames
from adc_edge.wire.headers import unpack_from_device
from adc_edge.wire.link_messages import Ping, Pong
from adc_edge.wire.messages import Hello, Moved
from adc_edge.wire.route import MOST_MOVES
from adc_edge.wire.tcp import KERNEL_COUNTS
from tests.serving import serving
from tests.stub_device import Device


class MovingDoor:
    """A socket that answers every Hello with a Moved, and every Ping.

    Args:
        told: gives the address for the Hello of each number, from 0 on.
        keys: key directory of the trainer; None: no keys.
    """

    def __init__(self, told: Callable[[int], str], keys: Path | None = None, port: int | str = "*") -> None:
        self._told, self.hellos, self._over = told, list[Hello](), threading.Event()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._authenticator: Authenticator | None = None
        if keys is not None:
            secure_server(self._socket, load_pair(keys))
            self._authenticator = Authenticator(self._context, Devices(keys), lambda text: None)
            self._authenticator.start()
        self._socket.bind(f"tcp://127.0.0.1:{port}")
        self.endpoint = str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT)).rstrip("\0")
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        self._socket.close(0)
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.term()

    def _serve(self) -> None:
        while not self._over.is_set():
            if not self._socket.poll(20):
                continue
            route, header, piece = self._socket.recv_multipart()
            whole = Assembler(unpack_from_device, lambda message: int(getattr(message, "body_bytes", 0))).feed(
                header, memoryview(piece)
            )
            assert whole is not None
            answer: Pong | Moved
            if isinstance(whole[0], Ping):
                answer, body = Pong(whole[0].nonce, whole[0].reply_bytes), bytes(whole[0].reply_bytes)
            else:
                assert isinstance(whole[0], Hello)
                answer, body = Moved(whole[0].session, self._told(len(self.hellos))), b""
                self.hellos.append(whole[0])
            for frames in to_frames(answer, body):
                self._socket.send_multipart([route, *frames])


@contextmanager
def moving_door(told: Callable[[int], str], keys: Path | None = None, port: int | str = "*") -> Iterator[MovingDoor]:
    with closing(MovingDoor(told, keys, port)) as door:
        yield door


def mobile(device: Device) -> Device:
    """The device, whose Hello says that it can move."""
    hello = device.hello
    device.session._hello = lambda: msgspec.structs.replace(hello(), moves=True)
    return device


def told_outages(device: Device) -> list[bool]:
    told = list[bool]()
    device.session._on_outage = told.append
    return told


def test_a_device_is_served_where_the_door_sends_it_and_it_is_no_outage(
    bundle: Bundle, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "adc_edge.wire.route")
    with moving_door(lambda number: server.endpoint) as door:
        device = mobile(Device(bundle, door.endpoint))
        told, tried = told_outages(device), list[int]()
        device.session.channel._on_try = tried.append
        device.session.open(30)
        for step in range(3):
            device.step(step)
        assert len(door.hellos) == 1
        assert device.session.channel.endpoint == server.endpoint
        assert (device.session.outages, told, tried) == (0, [], [0])
        moves = [line for line in caplog.messages if "moves this device" in line]
        assert moves == [f"the trainer at {door.endpoint} moves this device to {server.endpoint}"]
        assert not [line for line in caplog.messages if "waiting for the trainer" in line]
        device.session.close_session()
        device.session.close()


def test_the_bytes_of_all_connections_are_counted_across_a_move(bundle: Bundle, server: Server) -> None:
    with moving_door(lambda number: server.endpoint) as door:
        device = mobile(Device(bundle, door.endpoint))
        channel = device.session.channel
        probe_link(channel, 1000, 1000, 30)
        probed = channel.totals(), channel.framed()
        device.session.open(30)
        opened = channel.totals(), channel.framed()
        device.step(0)
        stepped = channel.totals()
        device.session.close()
    hellos = sum(map(len, next(iter(to_frames(device.session._hello())))))
    assert len(door.hellos) == 1
    for before, after in zip(probed, opened, strict=True):  # two Hellos: at the door, and at the rank
        assert after[0] - before[0] >= 2 * hellos
        assert after[1] > before[1]
    if KERNEL_COUNTS:
        assert opened[0][0] >= opened[1][0]  # the kernel's count has the frames and more
    assert stepped[0] - opened[0][0] > len(device.message(0)[1])


def test_a_device_that_has_lost_its_rank_goes_there_first_and_then_to_the_door(bundle: Bundle, server: Server) -> None:
    with moving_door(lambda number: server.endpoint) as door, socket.socket() as dead:
        device = mobile(Device(bundle, door.endpoint))
        told = told_outages(device)
        device.session.open(30)
        device.step(0)
        device.session.channel.disconnect()  # the rank goes on
        device.step(1)
        assert len(door.hellos) == 1
        dead.bind(("127.0.0.1", 0))  # a port that refuses
        device.session.channel.route.move(f"tcp://127.0.0.1:{dead.getsockname()[1]}")
        device.session.channel.disconnect()
        device.step(2)
        assert len(door.hellos) == 2
        assert device.session.channel.endpoint == server.endpoint
        assert device.session.trainer.step == 3
        assert (device.session.outages, told) == (2, [True, False] * 2)
        device.session.close()


def test_a_port_that_another_rank_has_now_moves_the_device_again(bundle: Bundle, server: Server) -> None:
    with moving_door(lambda number: server.endpoint) as other, moving_door(lambda number: other.endpoint) as door:
        device = mobile(Device(bundle, door.endpoint))
        device.session.open(30)
        device.step(0)
        assert (len(door.hellos), len(other.hellos)) == (1, 1)
        device.session.channel.route.move(other.endpoint)  # as if its rank had been there
        device.session.channel.disconnect()
        device.step(1)
        assert (len(door.hellos), len(other.hellos)) == (1, 2)
        assert device.session.outages == 1
        device.session.close()


def test_a_port_that_another_trainer_has_now_is_left_for_the_door(
    bundle: Bundle, server: Server, training: HeadTraining, tmp_path: Path
) -> None:
    foreign = Bundle(bundle.path, bundle.manifest, "0" * 64)
    other = Server(foreign, training, "tcp://127.0.0.1:*", SessionRegistry(tmp_path / "other"))
    with serving(other), moving_door(lambda number: server.endpoint) as door:
        device = mobile(Device(bundle, door.endpoint))
        device.session.open(30)
        device.step(0)
        device.session.channel.route.move(other.endpoint)
        device.session.channel.route.reached()
        device.session.channel.disconnect()
        device.step(1)
        assert len(door.hellos) == 2
        device.session.close()


def test_a_refusal_of_the_rank_that_the_door_names_ends_the_run(bundle: Bundle, server: Server) -> None:
    with moving_door(lambda number: server.endpoint) as door:
        device = mobile(Device(bundle, door.endpoint))
        hello = device.session._hello
        device.session._hello = lambda: msgspec.structs.replace(hello(), bundle="0" * 64)
        with pytest.raises(RefusedError, match="bundle"):
            device.session.open(30)
        device.session.close()


def test_doors_that_send_a_device_round_and_round_end_in_words(bundle: Bundle) -> None:
    with moving_door(lambda number: door.endpoint) as door:
        device = mobile(Device(bundle, door.endpoint))
        with pytest.raises(LinkError, match=f"moved this device {MOST_MOVES} times in a row"):
            device.session.open(0.5)
        assert len(door.hellos) > MOST_MOVES
        device.session.close()


@pytest.mark.parametrize("told", ["tcp://*:5556", "tcp://[::1:5556", "nonsense"])
def test_an_address_without_sense_ends_in_words(bundle: Bundle, told: str) -> None:
    with moving_door(lambda number: told) as door:
        device = mobile(Device(bundle, door.endpoint))
        with pytest.raises(ProtocolError, match="moves this device") as caught:
            device.session.open(30)
        assert "--advertise" in str(caught.value)
        device.session.close()


def test_a_name_that_means_nothing_here_is_given_up_for_the_door(bundle: Bundle, server: Server) -> None:
    told = ["tcp://no-such-host.invalid:5556", server.endpoint]
    with moving_door(lambda number: told[min(number, 1)]) as door:
        device = mobile(Device(bundle, door.endpoint))
        device.session.open(60)
        device.step(0)
        assert len(door.hellos) == 2
        device.session.close()


def test_without_keys_no_device_leaves_the_loopback_interface(bundle: Bundle) -> None:
    with moving_door(lambda number: "tcp://192.0.2.7:5556") as door:
        device = Device(bundle, door.endpoint)
        session = DeviceSession(
            door.endpoint,
            lambda: msgspec.structs.replace(device.hello(), moves=True),
            device.journal,
            bundle.manifest.dim,
            loopback_alone=True,
        )
        start = time.monotonic()
        with pytest.raises(ProtocolError, match=r"192\.0\.2\.7:5556, which is not loopback, and there are no keys"):
            session.open(None)
        assert time.monotonic() - start < 30  # it was not tried, and nothing was waited for
        session.close()
        device.session.close()


def test_with_keys_the_same_pinned_key_counts_at_every_address(
    bundle: Bundle, training: HeadTraining, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    allow(home, "alice", make_keys(tmp_path / "device").public)
    keys = ClientKeys(load_pair(tmp_path / "device"), load_pair(home).public)
    make_keys(tmp_path / "impostor")
    caplog.set_level(logging.INFO, "adc_edge.wire.route")
    impostor = Server(
        bundle,
        training,
        "tcp://127.0.0.1:*",
        SessionRegistry(tmp_path / "impostor-log"),
        access=Access(tmp_path / "impostor"),
    )
    rank = Server(bundle, training, "tcp://127.0.0.1:*", SessionRegistry(tmp_path / "log"), access=Access(home))
    told = [impostor.endpoint, rank.endpoint]
    with serving(impostor), serving(rank), moving_door(lambda number: told[min(number, 1)], home) as door:
        device = mobile(Device(bundle, door.endpoint, keys=keys))
        device.session.open(60)
        device.step(0)
        assert len(door.hellos) == 2  # nothing was said to the other one
        assert not list(impostor.sessions)
        device.session.close()


def test_a_device_that_asks_without_a_session_stays_at_the_door(server: Server) -> None:
    with moving_door(lambda number: server.endpoint) as door, closing(Channel(door.endpoint)) as channel:
        assert probe_link(channel, 100, 100, 30).rtt > 0
        assert channel.endpoint == door.endpoint
        assert not door.hellos
