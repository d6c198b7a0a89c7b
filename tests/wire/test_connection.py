"""A connection that ends raises LinkLost, whatever the instant, and only after everything that came has been read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from adc_edge.security.keystore import KeyPair
from adc_edge.wire.connection import ClientKeys, Connection, LinkLost, TrainerBusy, not_reached

Eventually = Callable[[Callable[[], bool]], None]
pytestmark = pytest.mark.timeout(60)


class Pair:
    """A connection, and the trainer's socket at its other end."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], encrypted: bool) -> None:
        keys = None
        self.trainer = context.socket(zmq.ROUTER)
        if encrypted:
            pair = KeyPair(*zmq.curve_keypair())
            self.trainer.curve_server, self.trainer.curve_secretkey = True, pair.secret
            keys = ClientKeys(KeyPair(*zmq.curve_keypair()), pair.public)
        port = self.trainer.bind_to_random_port("tcp://127.0.0.1")
        self.connection = Connection(context, f"tcp://127.0.0.1:{port}", keys, lambda: False)
        self.connection.send(b"header", b"piece")
        self.route, *frames = self.trainer.recv_multipart()
        assert frames == [b"header", b"piece"]

    def answer(self, header: bytes, piece: bytes) -> None:
        self.trainer.send_multipart([self.route, header, piece])

    def lost(self) -> bool:
        self.connection.meter.poll()
        return self.connection.meter.lost


@pytest.fixture(params=[False, True], ids=["open", "encrypted"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with zmq.Context() as context:
        pair = Pair(context, request.param)
        yield pair
        pair.connection.close()
        pair.trainer.close(0)


@pytest.mark.parametrize("size", [0, 100, 20_000, 200_000])
def test_answers_that_came_before_the_end_are_received(pair: Pair, eventually: Eventually, size: int) -> None:
    for number in range(5):
        pair.answer(b"%d" % number, bytes(size))
    pair.trainer.close(10_000)
    eventually(pair.lost)  # so that the end is known before the first answer is looked at
    for number in range(5):
        header, piece = pair.connection.receive(None)
        assert header == b"%d" % number
        assert len(piece) == size
    with pytest.raises(LinkLost, match="connection closed"):
        pair.connection.receive(None)


def test_an_answer_that_comes_while_the_end_is_noticed_is_received(
    pair: Pair, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, poll = 0, pair.connection.meter.poll

    def answer_and_end(wait_ms: int = 0) -> None:
        nonlocal looked
        looked += 1
        if looked == 1:  # the wait for an answer is over, the look at the connection still to come
            pair.answer(b"header", b"last")
            pair.trainer.close(10_000)
            eventually(pair.lost)
        poll(wait_ms)

    monkeypatch.setattr(pair.connection.meter, "poll", answer_and_end)
    assert pair.connection.receive(None) == [b"header", b"last"]
    assert looked > 1


def test_a_link_cut_between_the_check_and_the_send_is_noticed_and_nothing_waits(
    pair: Pair, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = pair.connection.writable

    def look_and_lose() -> None:
        looked()
        pair.trainer.close(0)
        eventually(pair.lost)

    monkeypatch.setattr(pair.connection, "writable", look_and_lose)
    pair.connection.send(b"header", b"piece")
    with pytest.raises(LinkLost, match="connection closed"):
        pair.connection.receive(None)
    with pytest.raises(LinkLost, match="connection closed"):
        pair.connection.send(b"header", b"piece")


def test_a_lost_connection_does_not_come_back_by_itself(pair: Pair, eventually: Eventually) -> None:
    """Otherwise what waits in its queue would arrive late, and twice."""
    endpoint = pair.trainer.getsockopt_string(zmq.LAST_ENDPOINT)
    pair.trainer.close(0)
    eventually(pair.lost)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as again:
        again.bind(endpoint)
        assert again.poll(1000, zmq.POLLIN) == 0
        with pytest.raises(LinkLost):
            pair.connection.receive(time.monotonic() + 5)


def test_a_trainer_that_is_there_and_full_is_not_told_as_one_that_is_not_there() -> None:
    full = not_reached("tcp://cloud:5700", TrainerBusy("busy: one more device, and 2 devices are connected"), 60.4)
    assert full.received == (
        "the trainer at tcp://cloud:5700 is there, and has no room for this device after 60 s "
        "(busy: one more device, and 2 devices are connected)"
    )
    assert "wait until other devices have finished" in full.remedy
    absent = not_reached("tcp://cloud:5700", LinkLost("connection refused"), 60.4)
    assert absent.received == "no trainer at tcp://cloud:5700 after 60 s (connection refused)"
    assert "check address, firewall and keys" in absent.remedy
