"""Only allowed keys can connect: handshakes on real sockets."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from adc_edge.errors import RunError
from adc_edge.security import authenticator as handshake
from adc_edge.security import keystore as curve
from adc_edge.security.authenticator import Authenticator, Context, secure_client, secure_server, self_test
from adc_edge.security.keystore import (
    Devices,
    KeyPair,
    allow,
    fingerprint,
    load_pair,
    revoke,
)


def new_pair() -> KeyPair:
    return KeyPair(*zmq.curve_keypair())


SUCCEEDED, REFUSED, PROTOCOL, NO_DETAIL = "succeeded", "refused", "protocol", "no detail"
HANDSHAKES: dict[str, int] = {
    SUCCEEDED: zmq.EVENT_HANDSHAKE_SUCCEEDED,
    REFUSED: zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    PROTOCOL: zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    NO_DETAIL: zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
}


class Trainer:
    """A bound ROUTER socket with the same authentication as a trainer's."""

    def __init__(self, home: Path) -> None:
        self.home, self.pair = home, load_pair(home)
        self.context: Context = zmq.Context()
        self.devices = Devices(home)
        self.refusals: list[str] = []
        self.authenticator = Authenticator(self.context, self.devices, self.refusals.append)
        self.socket = self.context.socket(zmq.ROUTER)
        secure_server(self.socket, self.pair)

    def bind(self, endpoint: str = "tcp://127.0.0.1:*") -> str:
        self.socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        self.socket.bind(endpoint)
        return self.socket.getsockopt(zmq.LAST_ENDPOINT).decode()  # type: ignore[union-attr]

    def sender(self) -> str:
        """The key of the sender of the next message."""
        assert self.socket.poll(5_000)
        *_, frame = self.socket.recv_multipart(copy=False)
        assert frame.bytes == b"hello"
        return str(frame.get("User-Id"))


@pytest.fixture
def trainer(home: Path) -> Iterator[Trainer]:
    trainer = Trainer(home)
    trainer.authenticator.start()
    yield trainer
    trainer.authenticator.stop()
    trainer.context.destroy(linger=0)


@contextlib.contextmanager
def client(
    endpoint: str, secure: Callable[[zmq.Socket[bytes]], None] = lambda socket: None
) -> Iterator[tuple[str, zmq.Socket[bytes]]]:
    """The outcome of the handshake, and the socket."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        secure(socket)
        with socket.get_monitor_socket(sum(HANDSHAKES.values())) as monitor:
            socket.connect(endpoint)
            with contextlib.suppress(zmq.Again):  # already refused: libzmq never retries such a connection
                socket.send(b"hello", zmq.NOBLOCK)  # sent if the handshake succeeds
            event = recv_monitor_message(monitor)["event"] if monitor.poll(5_000) else 0
            socket.disable_monitor()
        # No event comes if the authenticator stops at this moment: libzmq waits for it until the client's time-out.
        yield next((name for name, number in HANDSHAKES.items() if number == event), "no verdict"), socket


def outcome(endpoint: str, secure: Callable[[zmq.Socket[bytes]], None] = lambda socket: None) -> str:
    with client(endpoint, secure) as (verdict, _):
        return verdict


def with_keys(pair: KeyPair, trainer: bytes) -> Callable[[zmq.Socket[bytes]], None]:
    return lambda socket: secure_client(socket, pair, trainer)


def test_an_allowed_device_connects_and_each_message_carries_its_key(trainer: Trainer) -> None:
    endpoint = trainer.bind()
    for name in ("one", "two"):
        pair = new_pair()
        allow(trainer.home, name, pair.public)
        with client(endpoint, with_keys(pair, trainer.pair.public)) as (verdict, _):
            assert verdict == SUCCEEDED
            sender = trainer.sender()
        assert sender == pair.public.decode()
        assert trainer.devices.name(sender.encode()) == name
    assert trainer.refusals == []


def test_an_unknown_device_is_refused_and_reported(trainer: Trainer) -> None:
    pair = new_pair()
    assert outcome(trainer.bind(), with_keys(pair, trainer.pair.public)) == REFUSED
    assert trainer.refusals == [f"refused a device: its key {fingerprint(pair.public)} is unknown"]
    assert not trainer.socket.poll(100)


def test_a_client_without_encryption_is_refused(trainer: Trainer) -> None:
    assert outcome(trainer.bind()) in (PROTOCOL, NO_DETAIL)  # whichever side hangs up first
    assert not trainer.socket.poll(100)


def test_a_device_connects_only_to_the_trainer_that_it_trusts(trainer: Trainer) -> None:
    pair = new_pair()
    allow(trainer.home, "cam", pair.public)
    assert outcome(trainer.bind(), with_keys(pair, new_pair().public)) not in (SUCCEEDED, REFUSED)
    assert not trainer.socket.poll(100)


def test_a_device_that_only_knows_public_keys_cannot_connect(trainer: Trainer) -> None:
    thief, pair = new_pair(), new_pair()
    allow(trainer.home, "cam", pair.public)
    secure = with_keys(KeyPair(pair.public, thief.secret), trainer.pair.public)
    assert outcome(trainer.bind(), secure) != SUCCEEDED
    assert not trainer.socket.poll(100)


def test_a_device_can_connect_after_it_is_allowed_and_until_it_is_revoked(trainer: Trainer) -> None:
    endpoint, pair = trainer.bind(), new_pair()
    secure = with_keys(pair, trainer.pair.public)
    assert outcome(endpoint, secure) == REFUSED
    allow(trainer.home, "cam", pair.public)
    assert outcome(endpoint, secure) == SUCCEEDED
    revoke(trainer.home, "cam")
    assert outcome(endpoint, secure) == REFUSED
    assert trainer.refusals[-1].endswith("is revoked (cam)")


def test_revoking_does_not_close_a_connection_so_the_trainer_must_check_each_message(trainer: Trainer) -> None:
    pair = new_pair()
    allow(trainer.home, "cam", pair.public)
    with client(trainer.bind(), with_keys(pair, trainer.pair.public)) as (_, socket):
        trainer.sender()
        revoke(trainer.home, "cam")
        socket.send(b"hello")
        sender = trainer.sender().encode()
    assert trainer.devices.refresh() == {pair.public}
    assert trainer.devices.name(sender) is None


def test_an_error_in_reporting_a_refusal_allows_no_key_and_blocks_no_handshake(home: Path) -> None:
    def fail(text: str) -> None:
        raise BrokenPipeError

    trainer = Trainer(home)
    trainer.authenticator = Authenticator(trainer.context, trainer.devices, fail)
    trainer.authenticator.start()
    endpoint, pair = trainer.bind(), new_pair()
    secure = with_keys(pair, trainer.pair.public)
    assert [outcome(endpoint, secure) for _ in range(3)] == [REFUSED] * 3
    allow(home, "cam", pair.public)
    assert outcome(endpoint, secure) == SUCCEEDED
    trainer.authenticator.stop()
    trainer.context.destroy(linger=0)


def test_an_error_in_checking_a_key_allows_no_key_and_blocks_no_handshake(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = new_pair()
    allow(trainer.home, "cam", pair.public)
    endpoint, secure = trainer.bind(), with_keys(pair, trainer.pair.public)
    with monkeypatch.context() as patched:
        patched.setattr(curve, "_stamp", lambda place: 1 / 0)
        assert outcome(endpoint, secure) == REFUSED
    assert "division by zero" in trainer.refusals[0]
    assert outcome(endpoint, secure) == SUCCEEDED


@pytest.mark.parametrize("mechanism", ["null", "plain"])
def test_the_authenticator_refuses_a_peer_without_a_key_even_on_a_socket_without_encryption(
    trainer: Trainer, mechanism: str
) -> None:
    def with_password(socket: zmq.Socket[bytes]) -> None:
        if mechanism == "plain":
            socket.setsockopt(zmq.PLAIN_USERNAME, b"admin")
            socket.setsockopt(zmq.PLAIN_PASSWORD, b"password")

    with trainer.context.socket(zmq.ROUTER) as careless:
        careless.setsockopt(zmq.PLAIN_SERVER, int(mechanism == "plain"))
        careless.setsockopt(zmq.ZAP_DOMAIN, b"adc-edge")
        careless.bind("tcp://127.0.0.1:*")
        endpoint = careless.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        assert outcome(endpoint.decode(), with_password) == REFUSED


def test_a_stopped_authenticator_allows_no_key_and_can_start_again(trainer: Trainer) -> None:
    pair = new_pair()
    allow(trainer.home, "cam", pair.public)
    endpoint, secure = trainer.bind(), with_keys(pair, trainer.pair.public)
    assert outcome(endpoint, secure) == SUCCEEDED
    trainer.authenticator.stop()
    assert outcome(endpoint, secure) != SUCCEEDED
    trainer.authenticator.start()
    assert outcome(endpoint, secure) == SUCCEEDED


def test_a_libzmq_with_known_holes_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 3, 2))
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        with pytest.raises(RunError, match="pip install --upgrade pyzmq"):
            secure_server(socket, load_pair(home))
        assert not socket.getsockopt(zmq.CURVE_SERVER)


# --- the self-test ---


def has_ipv6() -> bool:
    import socket

    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "*", "[::]", "[::1]"])
def test_the_self_test_passes_on_a_trainer_and_reports_nothing(trainer: Trainer, address: str) -> None:
    if "[" in address and not has_ipv6():
        pytest.skip("no IPv6 here")
    endpoint = trainer.bind(f"tcp://{address}:*")
    self_test(endpoint, trainer.pair.public, trainer.authenticator)
    assert trainer.refusals == []


def test_after_the_self_test_other_unauthenticated_peers_are_reported(trainer: Trainer) -> None:
    endpoint = trainer.bind()
    self_test(endpoint, trainer.pair.public, trainer.authenticator)
    assert outcome(endpoint, with_keys(new_pair(), trainer.pair.public)) == REFUSED
    assert len(trainer.refusals) == 1


@contextlib.contextmanager
def by_hand(home: Path, encrypted: bool, enforced: bool) -> Iterator[str]:
    """A server whose security options are incomplete, without an Authenticator."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        if encrypted:
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt(zmq.CURVE_SECRETKEY, load_pair(home).secret)
            socket.setsockopt(zmq.ZAP_DOMAIN, b"adc-edge")
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, int(enforced))
        socket.bind("tcp://127.0.0.1:*")
        yield socket.getsockopt(zmq.LAST_ENDPOINT).decode()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("encrypted", "enforced", "words"),
    [
        (False, False, "a client without a key could connect"),
        (True, False, "a client whose key is not allowed could connect"),
        (True, True, "a client whose key is not allowed was cut off before its key"),  # no device could ever connect
    ],
)
def test_the_self_test_finds_a_server_that_is_not_guarded(
    home: Path, encrypted: bool, enforced: bool, words: str
) -> None:
    with by_hand(home, encrypted, enforced) as endpoint, pytest.raises(RunError, match=words):
        self_test(endpoint, load_pair(home).public)


def test_the_self_test_finds_an_authenticator_that_guards_another_context(home: Path) -> None:
    with zmq.Context() as elsewhere, by_hand(home, encrypted=True, enforced=False) as endpoint:
        authenticator = Authenticator(elsewhere, Devices(home), lambda text: None)
        authenticator.start()
        try:
            with pytest.raises(RunError, match="could connect"):
                self_test(endpoint, load_pair(home).public, authenticator)
        finally:
            authenticator.stop()


def test_the_self_test_does_not_take_silence_for_a_refusal(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "_SELF_TEST_MS", 300)
    asked = threading.Event()
    over = threading.Event()

    def stuck(public: bytes) -> str | None:
        asked.set()
        over.wait(10)
        return None

    monkeypatch.setattr(trainer.devices, "refusal", stuck)
    start = time.monotonic()
    with pytest.raises(RunError, match="a client whose key is not allowed had no answer"):
        self_test(trainer.bind(), trainer.pair.public, trainer.authenticator)
    over.set()
    assert asked.is_set()
    assert time.monotonic() - start < 5
