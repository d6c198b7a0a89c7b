"""The trainer's part of measuring a link: sizes are checked first, and others keep their share of its time."""

from __future__ import annotations

import msgspec
import pytest

from adc_edge.cloud_trainer.link.probes import MEASURING_SHARE, LinkProbes
from adc_edge.cloud_trainer.registry import Peer
from adc_edge.cloud_trainer.server import Server
from adc_edge.errors import ProtocolError, RefusedError
from adc_edge.storage.bundle import Bundle
from adc_edge.wire.channel import Channel
from adc_edge.wire.connection import TrainerBusy
from adc_edge.wire.framing import Assembler
from adc_edge.wire.headers import pack_header, unpack_from_device
from adc_edge.wire.link_messages import BULK_BYTES, Bulk, BulkAnswer, Ping, Pong
from adc_edge.wire.message import CHUNK_BYTES
from tests.stub_device import Device


@pytest.fixture
def channel(server: Server) -> Channel:
    channel = Channel(server.endpoint)
    channel.open(10)
    return channel


@pytest.mark.parametrize(
    ("up", "down"), [(0, 0), (20_000, 0), (0, 2_000_000), (CHUNK_BYTES + 1, 200_000), (BULK_BYTES, 0)]
)
def test_padding_of_any_size_goes_up_and_comes_down(channel: Channel, up: int, down: int) -> None:
    channel.send(Bulk(7, down, up), bytes(up))
    answer, body = channel.receive(10_000)
    channel.close()
    assert isinstance(answer, BulkAnswer)
    assert (answer.transfer, len(body), answer.pause_s) == (7, down, 0.0)


def test_the_pong_tells_that_bulk_is_served(channel: Channel) -> None:
    channel.send(Ping(1, 0, about=True))
    answer, _ = channel.receive(10_000)
    channel.close()
    assert isinstance(answer, Pong)
    assert answer.bulk_bytes == BULK_BYTES


@pytest.mark.parametrize(
    "change", [{"body_bytes": BULK_BYTES + 1}, {"reply_bytes": BULK_BYTES + 1}, {"body_bytes": -1}]
)
def test_a_size_that_is_not_allowed_is_refused_before_memory_is_taken(channel: Channel, change: dict[str, int]) -> None:
    wrong = msgspec.structs.replace(Bulk(7), **change)
    with pytest.raises(ProtocolError):
        unpack_from_device(pack_header(wrong))
    channel.send(wrong)
    with pytest.raises(RefusedError, match="malformed"):
        channel.receive(10_000)
    channel.close()


def test_bodies_count_for_what_the_trainer_may_hold(server: Server, channel: Channel) -> None:
    server._arriving.most_bytes = 100_000
    channel.send(Bulk(7, 0, 200_000), bytes(200_000))
    with pytest.raises(TrainerBusy, match="200000 bytes more than can be held now"):
        channel.receive(10_000)
    channel.close()


def test_a_session_does_not_measure_on_its_own_connection(server: Server, bundle: Bundle) -> None:
    device = Device(bundle, server.endpoint)
    device.session.open(30)
    device.session.channel.send(Bulk(7, 10))
    with pytest.raises(RefusedError, match="a Bulk on a session's connection"):
        device.session.channel.receive(10_000)
    device.step(0)
    device.session.close()


def peer() -> Peer:
    return Peer(0, "", lambda: Assembler(unpack_from_device, lambda message: 0))


def test_measurements_take_no_more_than_their_share_while_others_are_served() -> None:
    probes, one, other, worker = LinkProbes(), peer(), peer(), peer()
    worker.session = object()  # type: ignore[assignment]
    for measuring in (one, other):
        probes.begin(measuring)
    probes.spent(one, 0.5)
    assert probes.answer(Bulk(1), -1)[0].pause_s == 0  # nobody else is served
    probes.spent(worker, 0.1)
    probes.spent(one, 0.01)
    first = probes.answer(Bulk(1), -1)[0].pause_s
    assert first == pytest.approx(0.01 * (1 - MEASURING_SHARE) / MEASURING_SHARE, rel=0.01)
    probes.spent(other, 0.02)
    second = probes.answer(Bulk(2), -1)[0].pause_s  # the pause of the first is not over
    assert second == pytest.approx(0.03 * (1 - MEASURING_SHARE) / MEASURING_SHARE, rel=0.1)
