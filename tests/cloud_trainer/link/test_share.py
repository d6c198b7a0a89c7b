"""A device's share of its trainer: computed by hand, and told by a real trainer that works for others too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from adc_edge.cloud_trainer.link.share import WINDOW_S, TrainerLoad
from adc_edge.cloud_trainer.registry import Peer
from adc_edge.cloud_trainer.served_session import ServedSession, SessionRecord
from adc_edge.cloud_trainer.server import Server
from adc_edge.planning.profile import TrainerShare
from adc_edge.storage.bundle import Bundle
from adc_edge.wire.channel import Channel
from adc_edge.wire.framing import Assembler
from adc_edge.wire.headers import unpack_from_device
from adc_edge.wire.link_messages import Ping, Pong
from adc_edge.wire.messages import Absent
from adc_edge.wire.tcp import TcpInfo
from tests.stub_device import Device, training_beside


class Loop:
    """The trainer's loop on a clock that the test sets."""

    def __init__(self, directory: Path) -> None:
        self.now_s, self.directory = 1000.0, directory
        self.load = TrainerLoad(lambda: self.now_s)
        self.peers: dict[int, Peer] = {}

    def peer(self, session: int | None) -> Peer:
        peer = Peer(0, "", lambda: Assembler(unpack_from_device, lambda message: 0))
        if session is not None:
            peer.session = ServedSession(session, SessionRecord("", "", 0), self.directory / str(session))
        return peer

    def serve(
        self,
        session: int | None,
        at_s: float,
        seconds: float,
        arrived_s: float | None = None,
        rest: float = 0.0,
        finished: bool = False,
    ) -> Any:
        """Serve a message; return the share that its answer tells."""
        peer, self.now_s = self.peer(session), 1000.0 + at_s
        if peer.session is not None:
            peer.session.record.finished = finished
        self.load.begin()
        live = None
        if arrived_s is not None:
            live = TcpInfo(0, 0, 1.0, 1.0, round(1e3 * (at_s - arrived_s)))
        told = self.load.told(Pong(1), peer, self.load.arrival_s(live))
        self.now_s += seconds - rest
        self.load.after_sending(lambda: self._pass(rest))
        assert self.load.end(peer) == pytest.approx(seconds)
        assert isinstance(told, Pong)
        return told.share

    def round(self, at_s: float, seconds: float, pieces_s: float = 0.0) -> None:
        """A round of several ranks; in the middle of it pieces of device 3's messages are taken."""
        self.now_s = 1000.0 + at_s
        with self.load.round():
            self._pass((seconds - pieces_s) / 2)
            if pieces_s:
                self.load.begin()
                self._pass(pieces_s)
                self.load.end(self.peer(3), answered=False)
            self._pass((seconds - pieces_s) / 2)

    def _pass(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path)


def test_a_device_alone_is_told_nothing(loop: Loop) -> None:
    assert [loop.serve(1, at, 0.1, at) for at in (0.0, 0.5, 1.0)] == [UNSET] * 3


def test_share_and_wait_of_a_second_device_by_hand(loop: Loop) -> None:
    for second in range(10):  # 0.4 s of each second: 0.1 s and 0.3 s in turns
        loop.serve(1, second, 0.1)
        loop.serve(1, second + 0.5, 0.3)
    told = loop.serve(2, 10.0, 0.2)
    assert told.devices == 2
    assert told.share == pytest.approx(0.6)
    assert told.wait_s == pytest.approx(0.4 * (0.1**2 + 0.3**2) / (2 * (0.1 + 0.3)))  # 50 ms
    assert told.waited_s is UNSET  # no kernel told when it arrived


def test_three_devices_that_keep_the_trainer_busy_have_a_third_each(loop: Loop) -> None:
    for turn in range(40):
        told = [loop.serve(device, 0.3 * turn + 0.1 * device, 0.1) for device in (0, 1, 2)]
    assert {one.devices for one in told} == {3}
    assert [one.share for one in told] == pytest.approx([1 / 3] * 3, abs=0.01)


def test_a_message_waits_for_others_and_not_for_those_of_its_own_device(loop: Loop) -> None:
    loop.serve(1, 0.0, 0.3)
    told = loop.serve(2, 0.3, 0.1, arrived_s=0.1)  # 0.2 s of device 1
    assert told.waited_s == pytest.approx(0.2)
    loop.serve(1, 0.4, 0.5)
    told = loop.serve(
        2, 0.9, 0.1, arrived_s=0.2
    )  # both of its messages were there: 0.1 s were told, then its own 0.1 s
    assert told.waited_s == pytest.approx(0.5)
    assert loop.serve(2, 1.0, 0.1, arrived_s=0.2).waited_s == pytest.approx(0.0)


def test_the_mean_of_measured_waits_is_expected_once_there_are_some(loop: Loop) -> None:
    for second in range(8):
        loop.serve(1, second, 0.4)
        told = loop.serve(2, second + 0.4, 0.1, arrived_s=second + 0.3)
    assert told.wait_s == pytest.approx(0.1)  # and not 0.4 * 0.4 / 2: they meet in the same way each time


def test_optimizer_and_log_are_told_for_each_message(loop: Loop) -> None:
    for second in range(4):
        loop.serve(1, second, 0.1)
        told = loop.serve(2, second + 0.5, 0.3, rest=0.1)
    assert told.rest_s == pytest.approx(0.1)


def test_what_lies_before_the_window_is_forgotten(loop: Loop) -> None:
    loop.serve(1, 0.0, 0.5)
    assert loop.serve(2, 1.0, 0.1) is not UNSET
    assert loop.serve(2, 1.0 + WINDOW_S, 0.1) is UNSET


def test_a_device_that_has_closed_its_session_counts_no_longer(loop: Loop) -> None:
    loop.serve(1, 0.0, 0.5)
    loop.serve(1, 0.6, 0.1, finished=True)
    assert loop.serve(2, 1.0, 0.1) is UNSET


def test_a_device_that_asks_before_it_has_a_session_is_one_more(loop: Loop) -> None:
    for second in range(10):
        loop.serve(1, second, 0.5)
        loop.serve(2, second + 0.5, 0.5)
    told = loop.serve(None, 10.0, 0.001)
    assert (told.devices, told.share) == (3, pytest.approx(1 / 3))


def test_measurements_of_the_head_alone_are_no_other_device(loop: Loop) -> None:
    loop.serve(None, 0.0, 0.5)
    assert loop.serve(None, 0.6, 0.1) is UNSET
    told = loop.serve(1, 0.7, 0.1, arrived_s=0.65)  # a session waits for them all the same
    assert (told.devices, told.share, told.waited_s) == (1, 1.0, pytest.approx(0.05))


def test_a_device_that_is_alone_on_its_rank_waits_for_rounds(loop: Loop) -> None:
    for second in range(4):
        loop.serve(1, second, 0.1, second)
        loop.round(second + 0.1, 0.4)
    told = loop.serve(1, 4.0, 0.1, arrived_s=3.2)  # 0.3 s of the last round
    assert (told.devices, told.share, told.waited_s) == (1, 1.0, pytest.approx(0.3))
    assert told.wait_s == pytest.approx(0.4 * 0.4 / 2, abs=0.003)  # four tenths of the time, of which half is left
    assert loop.serve(None, 4.1, 0.001) is not UNSET  # of the device
    assert list(loop.load.offer()) == pytest.approx([1 - 0.5 / 4.1, 0.1], abs=0.001)


def test_pieces_that_come_in_a_round_count_once(loop: Loop) -> None:
    loop.round(0.0, 1.0, pieces_s=0.2)
    told = loop.serve(2, 1.0, 0.1, arrived_s=0.0)
    assert told.waited_s == pytest.approx(1.0)
    assert (told.devices, told.share) == (2, pytest.approx(0.8))


def test_other_answers_tell_no_share(loop: Loop) -> None:
    loop.serve(1, 0.0, 0.5)
    answer = Absent(2, 0)
    assert loop.load.told(answer, loop.peer(2), None) is answer


@pytest.mark.parametrize(
    "change",
    [
        {"devices": 0},
        {"devices": 2**64},
        {"share": 0.0},
        {"wait_s": -1.0},
        {"rest_s": -1.0},
        {"waited_s": float("nan")},
    ],
)
def test_a_share_that_cannot_be_is_no_message(change: dict[str, float]) -> None:
    told = {"share": 0.5, "wait_s": 0.1, "devices": 2, "rest_s": 0.0, "waited_s": 0.0}
    msgspec.convert(told, TrainerShare)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(told | change, TrainerShare)


def test_a_real_trainer_tells_its_devices_and_whoever_asks(server: Server, bundle: Bundle) -> None:
    device = Device(bundle, server.endpoint)
    device.session.open(30)
    assert device.step(0)[0].share is UNSET
    with training_beside(bundle, server.endpoint) as answers:
        channel = Channel(server.endpoint)
        channel.open(10)
        number = 1
        while len(answers) < 5 or number < 5:
            told = device.step(number)[0].share
            number += 1
        channel.send(Ping(1, 0))
        pong, _ = channel.receive(10_000)
        channel.close()
    device.session.close()
    assert isinstance(pong, Pong)
    assert isinstance(told, TrainerShare)
    assert isinstance(pong.share, TrainerShare)
    assert (told.devices, pong.share.devices) == (2, 3)
    assert told.waited_s is not UNSET
    assert 1 / 3 <= pong.share.share < 1
    seconds = [one.seconds_cloud for one in answers]
    assert 0 <= told.waited_s <= 3 * max(seconds) + 0.1
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(told), type=TrainerShare) == told
