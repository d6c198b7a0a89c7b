"""Attempts to bring a dark link back: a new connection soon, more time for a slow trainer, and no wait for names."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from adc_edge.edge_runtime.infer import attempts as attempts_module
from adc_edge.edge_runtime.infer.attempts import Attempts, KnownAddresses
from adc_edge.wire.addresses import Address, NameUnknown
from adc_edge.wire.channel import Channel
from adc_edge.wire.connection import LinkLost

NAMED, FOUND = Address("trainer.example", 5700), [Address("192.0.2.7", 5700)]


@pytest.fixture
def dark() -> Iterator[str]:
    """An address that drops the first packet of every connection: its queue of connections is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        kept = [socket.socket() for _ in range(4)]
        for one in kept:
            one.setblocking(False)
            one.connect_ex(server.getsockname())
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        for one in kept:
            one.close()


def test_a_connection_that_nobody_answers_is_given_up_when_asked_for(dark: str) -> None:
    channel, start = Channel(dark), time.monotonic()
    with pytest.raises(LinkLost, match=r"no answer from .* within 0\.3 s"):
        channel.connect(connect_s=0.3)
    assert 0.25 < time.monotonic() - start < 2.5  # it is 3 s otherwise
    channel.close()


def test_a_new_connection_comes_before_tcp_repeats_the_first_packet_of_the_old_one() -> None:
    attempts = Attempts(0.02)
    waits = [attempts.begin().connect_s for _ in range(20)]
    assert sorted(waits)[:18] == [0.4] * 18
    assert max(waits) == 1.0  # from time to time, for a link that has become slow
    assert Attempts(0.3).begin().connect_s == 0.6
    assert Attempts(9.0).begin().connect_s == 1.0


def test_an_attempt_that_was_connected_and_not_done_in_time_gives_the_next_one_more() -> None:
    attempts = Attempts(0.0)
    given = [attempts.begin().answer_s]
    for _ in range(9):
        attempts.fail(in_time=False)
        given.append(attempts.begin().answer_s)
    assert given == sorted(given)
    assert given[0] == 1.8
    assert given[1] == pytest.approx(2.7)
    assert given[-1] == 10.0
    attempts.fail(in_time=True)
    assert attempts.begin().answer_s == 1.8


def test_a_name_server_that_does_not_answer_holds_up_no_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, known = threading.Event(), KnownAddresses()
    monkeypatch.setattr(attempts_module, "resolve", lambda address: FOUND)
    assert known(NAMED) == FOUND
    moved = [Address("192.0.2.8", 5700)]
    monkeypatch.setattr(attempts_module, "resolve", lambda address: moved if answers.wait(60) else [])
    start = time.monotonic()
    assert known(NAMED) == known(NAMED) == FOUND
    assert time.monotonic() - start < 30
    answers.set()
    while known(NAMED) != moved:  # the lookup has come to its end
        time.sleep(0.01)


def test_a_name_that_is_unknown_for_a_while_keeps_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(address: Address) -> list[Address]:
        raise NameUnknown(f"name unknown: {address.host}")

    known = KnownAddresses()
    monkeypatch.setattr(attempts_module, "resolve", unknown)
    with pytest.raises(NameUnknown, match=r"trainer\.example"):
        known(NAMED)
    monkeypatch.setattr(attempts_module, "resolve", lambda address: FOUND)
    assert known(NAMED) == FOUND
    monkeypatch.setattr(attempts_module, "resolve", unknown)
    assert known(NAMED) == FOUND
