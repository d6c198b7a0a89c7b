"""Refusals by name of keys, sessions and versions that do not fit, while the run of another device goes on."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from adc_edge.cloud_trainer.access import Access
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.errors import LinkError, RefusedError
from adc_edge.security.authenticator import secure_client
from adc_edge.security.keystore import allow, fingerprint, load_pair, load_public, make_keys, pin, revoke
from adc_edge.storage.bundle import Bundle
from adc_edge.wire.channel import Channel
from adc_edge.wire.connection import ClientKeys, Connection, LinkLost
from adc_edge.wire.framing import sealed
from adc_edge.wire.headers import pack_header
from adc_edge.wire.link_messages import Ping
from adc_edge.wire.messages import VERSION, Hello
from tests.serving import logged, serving
from tests.stub_device import Device

NAMES = ("alice", "bob", "mallory")


class World:
    """A trainer with keys, the device alice at work, and others that try to connect."""

    def __init__(self, bundle: Bundle, server: Server, training: HeadTraining, keys: Path, lines: list[str]) -> None:
        self.bundle, self.server, self.training, self.keys, self.lines = bundle, server, training, keys, lines
        self.open: list[Device] = []
        self.alice = self.device("alice", 1)
        self.alice.session.open(30)
        self.done = 0

    def device(self, name: str, session: int) -> Device:
        device = Device(self.bundle, self.server.endpoint, session, ClientKeys.load(self.keys / name))
        self.open.append(device)
        return device

    def alice_works(self) -> None:
        answer, gradient = self.alice.step(self.done)
        self.done += 1
        assert answer.step == self.done - 1
        assert np.isfinite(np.frombuffer(gradient, np.float32)).all()
        self.alice.settle()
        assert self.training.steps == self.done

    def has_logged(self, *words: str) -> bool:
        return any(all(word in line for word in words) for line in self.lines)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Key directories of a trainer, which admits alice and bob, and of three devices."""
    make_keys(tmp_path / "trainer")
    for name in NAMES:
        make_keys(tmp_path / name)
        pin(tmp_path / name, load_public(tmp_path / "trainer" / "public.key"))
    for name in ("alice", "bob"):
        allow(tmp_path / "trainer", name, load_public(tmp_path / name / "public.key"))
    return tmp_path


@pytest.fixture
def world(bundle: Bundle, training: HeadTraining, keys: Path) -> Iterator[World]:
    sessions, access = SessionRegistry(keys / "log"), Access(keys / "trainer")
    with logged() as lines, serving(Server(bundle, training, "tcp://127.0.0.1:*", sessions, access=access)) as server:
        world = World(bundle, server, training, keys, lines)
        world.alice_works()
        try:
            yield world
            world.alice_works()
            assert world.alice.session.outages == 0
        finally:
            for device in world.open:
                device.session.close()


def test_a_key_that_is_not_allowed(world: World, eventually: Any) -> None:
    mallory = world.device("mallory", 2)
    with pytest.raises(LinkError, match="does not know this device's key") as refusal:
        mallory.session.open(2)
    public = load_pair(world.keys / "mallory").public.decode()
    assert f"keys allow NAME FILE, where FILE holds the line: public = {public}" in refusal.value.remedy
    own = fingerprint(load_pair(world.keys / "mallory").public)
    eventually(lambda: world.has_logged("refused", own, "unknown"))
    allow(world.keys / "trainer", "mallory", load_public(world.keys / "mallory" / "public.key"))
    mallory.session.open(10)  # a key that is allowed later gets in, without a restart of anything


def test_a_key_that_is_revoked_while_it_is_connected(world: World, eventually: Any) -> None:
    bob = world.device("bob", 2)
    bob.session.open(10)
    revoke(world.keys / "trainer", "bob")
    eventually(lambda: world.has_logged("may no longer connect"))
    bob.session.submit(*bob.message(0))
    with pytest.raises(RefusedError, match=r"key.*revoked"):
        bob.session.result()
    with pytest.raises(LinkError, match="has revoked it"):
        bob.session.open(1)
    assert world.has_logged("refused", "revoked (bob)")


def test_a_session_of_another_device(world: World) -> None:
    bob = world.device("bob", world.alice.number)
    with pytest.raises(RefusedError, match="another device's key") as caught:
        bob.session.open(10)
    assert caught.value.code == "identity"
    assert world.has_logged("refused", "(identity)")


def test_messages_for_a_session_that_was_not_opened_here(world: World) -> None:
    bob = world.device("bob", 2)
    bob.session.open(10)
    bob.number = world.alice.number
    bob.session._hello = lambda: pytest.fail("it must not be asked to say hello again")
    message, body = bob.message(world.done)
    bob.session.channel.send(message, body)
    with pytest.raises(LinkLost, match="unknown-device"):
        bob.session.channel.receive(5_000)
    assert world.has_logged("refused 'bob' (unknown-device)")


def test_a_routing_id_of_another_device(world: World) -> None:
    own = ClientKeys.load(world.keys / "bob")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.DEALER) as thief:
        thief.setsockopt(zmq.LINGER, 0)
        thief.setsockopt(zmq.ROUTING_ID, next(iter(world.server.sessions.peers)))
        secure_client(thief, own.own, own.trainer)
        with contextlib.suppress(zmq.ZMQError):  # ids that begin with a zero byte are the server's to give
            thief.connect(world.server.endpoint)
            thief.send_multipart([sealed(pack_header(Ping(1, 0)), b""), b""])
            assert not thief.poll(500)
        world.alice_works()
        assert not thief.poll(100)


def test_recorded_bytes_that_are_replayed_change_nothing(world: World, proxy_type: Any) -> None:
    recorded: list[bytes] = []

    class Recorder(proxy_type):  # type: ignore[misc]
        def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    if way == "up":
                        recorded.append(data)
                    sink.sendall(data)
            self._shut(source, sink)

    with Recorder(world.server.endpoint) as tap:
        bob = Device(world.bundle, tap.endpoint, 2, ClientKeys.load(world.keys / "bob"))
        bob.session.open(10)
        bob.step(0)
        bob.settle()
        bob.session.close()
    assert world.training.steps == world.done + 1
    with socket.create_connection(("127.0.0.1", int(world.server.endpoint.rpartition(":")[2]))) as again:
        again.sendall(b"".join(recorded))
        again.settimeout(3)
        with contextlib.suppress(OSError):
            while again.recv(65536):
                pass
    assert world.training.steps == world.done + 1
    world.training.steps -= 1  # bob's, for the count of alice's


def test_a_step_that_is_sent_twice_by_its_own_device_is_applied_once(world: World) -> None:
    first, gradient = world.alice.step(world.done)
    again, same = world.alice.step(world.done)
    world.done += 1
    assert (first.loss, gradient) == (again.loss, same)
    world.alice.settle()
    assert world.training.steps == world.done


def test_a_trainer_that_has_another_key_than_the_pinned_one(world: World, tmp_path: Path, eventually: Any) -> None:
    other = make_keys(tmp_path / "impostor")
    keys = ClientKeys(load_pair(world.keys / "bob"), other.public)
    bob = Device(world.bundle, world.server.endpoint, 2, keys)
    with contextlib.closing(bob.session), pytest.raises(LinkError, match=r"trainer\.key"):
        bob.session.open(2)
    eventually(lambda: world.has_logged("refused a connection", "another trainer's key"))


def test_a_device_without_keys(world: World, eventually: Any) -> None:
    plain = Device(world.bundle, world.server.endpoint, 2)
    with contextlib.closing(plain.session), pytest.raises(LinkError, match="keys on one side only"):
        plain.session.open(2)
    eventually(lambda: world.has_logged("refused a connection", "keys on one side only"))


def test_a_device_with_keys_at_a_trainer_without(server: Server, bundle: Bundle, keys: Path) -> None:
    bob = Device(bundle, server.endpoint, 2, ClientKeys.load(keys / "bob"))
    with contextlib.closing(bob.session), pytest.raises(LinkError, match="keys on one side only"):
        bob.session.open(2)


def test_another_bundle(world: World) -> None:
    bob = world.device("bob", 2)
    bob.bundle = type("Other", (), {"digest": "0" * 64, "manifest": world.bundle.manifest})()
    with pytest.raises(RefusedError, match="bundle 000000"):
        bob.session.open(10)
    assert world.has_logged("refused", "(bundle)")


def test_an_older_version(world: World) -> None:
    old = {"kind": "hello", "version": 1, "bundle": world.bundle.digest, "session": 5, "device": "old", "next_step": 0}
    connection = Connection(
        zmq.Context.instance(), world.server.endpoint, ClientKeys.load(world.keys / "bob"), lambda: False
    )
    connection.send(msgpack.packb(old), b"")
    answer = msgpack.unpackb(connection.receive(None)[0])  # no seal: an old device can read it
    connection.close()
    assert answer["kind"] == "refused"
    assert answer["code"] == "version"
    assert "version 1" in answer["received"]
    assert world.has_logged("refused", "(version)")


def test_two_processes_with_one_key(world: World) -> None:
    first, second = world.device("bob", 2), world.device("bob", 2)
    second.incarnation = 99
    first.session.open(10)
    first.step(0)
    second.session.open(10)
    second.next_step = 1
    second.step(1)
    first.session.submit(*first.message(1))
    with pytest.raises(RefusedError, match="another `adc-edge serve` has taken this run over"):
        first.session.result(10)
    second.step(2)
    second.settle()
    world.training.steps -= 3  # bob's, for the count of alice's


def test_the_link_is_measured_with_keys_too(world: World) -> None:
    channel = Channel(world.server.endpoint, keys=ClientKeys.load(world.keys / "bob"))
    channel.open(10)
    channel.send(Ping(5, 1000, 3, 5), b"abc")
    assert channel.receive(10_000)[1].nbytes == 1000
    channel.close()


def test_a_hello_repeated_for_ever_is_cut_off(world: World, eventually: Any) -> None:
    bob = world.device("bob", 2)
    bob.session.open(10)
    with contextlib.suppress(LinkLost):
        for _ in range(40):
            bob.session.channel.send(bob.hello())
            bob.session.channel.receive(5_000)
    assert world.has_logged("cut off a connection", "hello again and again")


def test_a_session_belongs_to_the_proved_key_not_to_the_name_in_a_hello(world: World) -> None:
    bob = world.device("bob", 2)
    bob.session._hello = lambda: Hello(VERSION, world.bundle.digest, 2, 2, "alice", 0, 0, 0)
    bob.session.open(10)
    records = world.server.sessions.records()
    assert records[2].owner.encode() == load_pair(world.keys / "bob").public
    assert records[1].owner.encode() == load_pair(world.keys / "alice").public


@pytest.mark.slow
def test_commands_train_with_keys(
    bundle_dir: Path, keys: Path, tmp_path: Path, command: Any, free_port: Callable[[], int]
) -> None:
    endpoint, bundle = f"tcp://127.0.0.1:{free_port()}", ["--bundle", bundle_dir]
    options = ["--keys", keys / "trainer", "--bind", endpoint, "--devices", "1"]
    with command("trainer", *bundle, *options, "--run", tmp_path / "run") as trainer:
        serving = ["--trainer", endpoint, "--steps", "5", "--eval-images", "16", "--wait", "60"]
        with command("serve", *bundle, *serving, "--keys", keys / "alice") as device:
            code, output = device.finish()
        assert code == 0, output
        code, log = trainer.finish(30)
    assert code == 0, log
    assert f"encrypted; this trainer's key: {fingerprint(load_pair(keys / 'trainer').public)}" in log
