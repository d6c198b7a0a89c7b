"""A message that takes longer than the link ever stays up arrives: its pieces that have arrived are not sent again."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import zmq

from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.storage.bundle import Bundle
from tests.chaos.proxy import BadLink
from tests.meanwhile import repeated
from tests.serving import serving
from tests.stub_device import Device

CLUSTERS = 2_300  # of 17 tokens of 32 channels: 5 MB up and 5 MB down
CUT_EVERY_S = 4.0


@contextmanager
def slow_link(bundle: Bundle, training: HeadTraining, where: Path, rate_mbit_s: float) -> Iterator[BadLink]:
    """A trainer behind a slow link."""
    with serving(Server(bundle, training, "tcp://127.0.0.1:*", SessionRegistry(where), max_images=4096)) as server:
        port = int(server.endpoint.rpartition(":")[2])
        with BadLink(port, random.Random(0), rate_mbit_s, delay_ms=20) as link:
            yield link


def whole_messages_arrive(rate_mbit_s: float, seconds: float) -> bool:
    """The reference: the same 5 MB as one ZeroMQ message over the same link, sent again after each cut."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        link = BadLink(port, random.Random(0), rate_mbit_s)
        deadline = time.monotonic() + seconds
        with link, repeated(link.cut, CUT_EVERY_S):
            while time.monotonic() < deadline:
                with context.socket(zmq.DEALER) as dealer:
                    dealer.setsockopt(zmq.LINGER, 0)
                    dealer.connect(link.endpoint)
                    dealer.send(bytes(CLUSTERS * 17 * 32 * 4))
                    cuts = link.cuts
                    while link.cuts == cuts and time.monotonic() < deadline:
                        if router.poll(50):
                            return True
    return False


@pytest.mark.slow
@pytest.mark.timed
@pytest.mark.parametrize("rate_mbit_s", [20.0, 10.0])
def test_five_megabytes_each_way_complete_on_a_link_that_is_cut_every_four_seconds(
    bundle: Bundle,
    training: HeadTraining,
    tmp_path: Path,
    rate_mbit_s: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with slow_link(bundle, training, tmp_path, rate_mbit_s) as link:
        device = Device(bundle, link.endpoint)
        device.shape = (CLUSTERS, 17, 32)
        with closing(device.session):
            with repeated(link.cut, CUT_EVERY_S):
                device.session.open(30)
                start = time.monotonic()
                for step in range(2):
                    answer, gradient = device.step(step, images=CLUSTERS)
                    assert answer.step == step
                    assert len(gradient) == CLUSTERS * 17 * 32 * 4
                seconds = time.monotonic() - start
            device.settle()
    size = 2 * CLUSTERS * 17 * 32 * 4
    bound_s = 2 * size * 8 / (rate_mbit_s * 1e6)
    with capsys.disabled():
        print(
            f"\n{rate_mbit_s:.0f} Mbit/s, 2 steps of 5 MB each way: {seconds:.1f} s, {seconds / bound_s:.2f} of the "
            f"bound, {link.cuts} cuts, {link.up_bytes / size:.2f} + {link.down_bytes / size:.2f} of the bytes"
        )
    assert training.steps == 2
    assert link.cuts >= 1
    assert link.up_bytes < 1.3 * size
    assert link.down_bytes < 1.3 * size


@pytest.mark.slow
@pytest.mark.timed
def test_the_same_bytes_as_one_zeromq_message_never_arrive() -> None:
    assert not whole_messages_arrive(5.0, 20.0)


@pytest.mark.slow
@pytest.mark.timed
def test_a_link_that_becomes_ten_times_slower_and_recovers_is_no_outage(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    with slow_link(bundle, training, tmp_path, 20.0) as link:
        device = Device(bundle, link.endpoint)
        device.shape = (450, 17, 32)  # 1 MB each way
        with closing(device.session):
            device.session.open(30)
            for step, rate_mbit_s in enumerate([20.0, 2.0, 2.0, 20.0]):
                link.rate_mbit_s = rate_mbit_s
                device.step(step, images=450)
            device.settle()
    assert device.session.outages == 0
    assert training.steps == 4
    assert device.session.repeated == [0, 0]
