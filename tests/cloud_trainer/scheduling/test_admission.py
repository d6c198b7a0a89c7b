"""Admission: a new device waits where there is no room for it, and a known one is never refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.link.share import TrainerLoad
from adc_edge.cloud_trainer.record.presence import GuardedConnection, SessionPresence
from adc_edge.cloud_trainer.registry import Peer, SessionRegistry
from adc_edge.cloud_trainer.scheduling.admission import Admission
from adc_edge.cloud_trainer.scheduling.room import Wanted
from adc_edge.cloud_trainer.server import Server
from adc_edge.errors import ProtocolError
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.events import Joined
from adc_edge.wire.fleet_messages import DeviceNeeds
from adc_edge.wire.framing import Assembler
from adc_edge.wire.headers import unpack_from_device
from adc_edge.wire.messages import VERSION, Hello
from tests.serving import serving
from tests.stub_device import Device


class World:
    """Sessions that are connected, and the load that they make."""

    def __init__(
        self, directory: Path, max_devices: int = 0, most_bytes: int = 10_000_000, change_bytes: int = 0
    ) -> None:
        self.now_s = 100.0
        self.sessions, self.presence = SessionRegistry(directory), SessionPresence(lambda event: None)
        self.load = TrainerLoad(lambda: self.now_s)
        self.admission = Admission(self.sessions, self.presence, self.load, max_devices, most_bytes, change_bytes)

    def join(self, number: int, needs: DeviceNeeds | None = None, next_step: int = 0) -> Peer:
        hello = said(number, needs, next_step)
        self.admission.check(hello)
        peer = self.sessions.peer(b"%d" % number, 5, "", lambda: Assembler(unpack_from_device, lambda message: 0))
        session = self.sessions.find(hello, "")
        session.resume(hello)
        self.sessions.open(session, b"%d" % number)
        self.presence.join(number, GuardedConnection(), Joined(session="", device="", step=0))
        return peer

    def work(self, peer: Peer, seconds: float) -> None:
        self.load.begin()
        self.now_s += seconds
        self.load.end(peer)

    def refused(self, number: int, needs: DeviceNeeds | None = None, next_step: int = 0) -> str:
        with pytest.raises(ProtocolError) as caught:
            self.join(number, needs, next_step)
        assert caught.value.code == "busy"
        return f"{caught.value.received}; {caught.value.expected}"


def said(number: int, needs: DeviceNeeds | None = None, next_step: int = 0) -> Hello:
    hello = Hello(VERSION, "digest", number, 1, "orin", next_step, 0, 0)
    return msgspec.structs.replace(hello, needs=UNSET if needs is None else needs)


def test_one_more_device_than_allowed_waits_until_one_has_gone(tmp_path: Path) -> None:
    world = World(tmp_path, max_devices=2)
    for number in (1, 2):
        world.join(number)
    assert world.refused(3) == "one more device, and 2 devices are connected; --max-devices 2 at most"
    world.join(1)  # a known one
    world.presence.leave(2)
    world.join(3)
    world.join(2)  # it was there before


def test_a_device_whose_session_a_killed_trainer_has_lost_never_waits(tmp_path: Path) -> None:
    world = World(tmp_path)
    for number in (1, 2, 4):
        world.join(number)
    killed = World(tmp_path, max_devices=1)  # a new process, without a checkpoint
    killed.join(4, next_step=3)
    for number in (1, 2):
        killed.join(number, next_step=3)


def test_a_new_device_that_claims_to_have_done_steps_waits_as_others_do(tmp_path: Path) -> None:
    world = World(tmp_path, max_devices=1)
    world.join(1)
    for _ in range(2):
        assert "1 device is connected" in world.refused(2, next_step=3)


def test_a_device_whose_largest_message_does_not_fit_beside_those_of_others_waits(tmp_path: Path) -> None:
    world = World(tmp_path)
    for number in (1, 2, 3):
        world.join(number, DeviceNeeds(2_000_000))
    assert world.refused(4, DeviceNeeds(5_000_000)) == (
        "a device with messages of 5.0 MB; 4.0 MB at most beside the other devices' messages"
    )
    world.join(5)  # it tells nothing
    world.join(4, DeviceNeeds(2_500_000))
    world.join(1, DeviceNeeds(9_000_000))
    assert "11.0 MB; 1.0 MB at most" in world.refused(6, DeviceNeeds(11_000_000))


def test_one_device_that_claims_all_the_memory_keeps_no_other_out(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.join(1, DeviceNeeds(10_000_000))
    world.join(2, DeviceNeeds(7_000_000))


def test_the_change_of_a_trunk_counts_for_each_device(tmp_path: Path) -> None:
    world = World(tmp_path, change_bytes=3_000_000)
    world.join(1)
    world.join(2, DeviceNeeds(1_000_000))
    assert "messages of 4.0 MB; 3.0 MB at most" in world.refused(3, DeviceNeeds(1_000_000))


def test_a_device_that_plans_more_of_the_heads_time_than_there_is_waits(tmp_path: Path) -> None:
    world = World(tmp_path)
    busy = world.join(1)
    for _ in range(40):  # 80 % of the time
        world.work(busy, 0.2)
        world.now_s += 0.05
    assert world.refused(2, DeviceNeeds(100, step_seconds=0.25)) == (
        "a device that needs 80 % of the head's time for a step in 0.25 s; 50 %, which the other devices leave it"
    )
    world.join(2, DeviceNeeds(100, step_seconds=0.5))
    world.join(3, DeviceNeeds(100))


@pytest.fixture
def small_server(bundle: Bundle, training: HeadTraining, tmp_path: Path) -> Iterator[Server]:
    server = Server(bundle, training, "tcp://127.0.0.1:*", SessionRegistry(tmp_path / "log"), max_devices=1)
    with serving(server):
        yield server


def test_a_device_that_is_refused_tries_again_and_joins_once_there_is_room(
    small_server: Server, bundle: Bundle, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    first, second = (Device(bundle, small_server.endpoint, number) for number in (1, 2))
    first.session.open(30)
    first.step(0)
    with ThreadPoolExecutor(1) as pool:
        joined = pool.submit(second.session.open, 60)
        eventually(lambda: "busy: one more device, and 1 device is connected" in why(second))
        first.step(1)
        first.session.close()
        joined.result()
    second.step(0)
    second.session.close()


def why(device: Device) -> str:
    """Why the device's last try to join failed."""
    attempt = device.session.channel.attempt
    return "" if attempt is None else attempt.why


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 4_000_000), st.floats(0, 4)), max_size=3),
    st.one_of(st.none(), st.tuples(st.integers(0, 12_000_000), st.sampled_from([0.0, 0.5, 2.0, 8.0]))),
)
def test_the_room_that_is_told_is_what_admission_goes_by(
    tmp_path_factory: pytest.TempPathFactory,
    most: int,
    others: list[tuple[int, float]],
    new: tuple[int, float] | None,
) -> None:
    world = World(tmp_path_factory.mktemp("journal"), max_devices=most, change_bytes=1000)
    for number, (size, seconds) in enumerate(others, 1):
        with suppress(ProtocolError):
            world.work(world.join(number, DeviceNeeds(size)), seconds)
    needs = DeviceNeeds(*new) if new else None
    if world.admission.room().fits(Wanted.by(said(99, needs))):
        world.join(99, needs)
    else:
        world.refused(99, needs)
