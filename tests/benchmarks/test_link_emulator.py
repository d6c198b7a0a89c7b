"""The emulated link has the requested rate and delay, also after a change, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import link_emulator
import link_forwarder
import pytest
from link_emulator import LinkEmulator, Way, available, goodput_mbit_s, inside, rtt_ms, tcp_pair

pytestmark = [pytest.mark.slow, pytest.mark.timed]
PAYLOAD = 1448 / 1500  # of a packet
real = pytest.mark.skipif(available() is not None, reason=str(available()))


@pytest.fixture
def link() -> Iterator[LinkEmulator]:
    with LinkEmulator(Way(20, 20), Way(10, 20)) as link:
        yield link


def namespaces() -> set[str]:
    try:
        return {path.name for path in Path("/run/netns").iterdir()}
    except FileNotFoundError:
        return set()


def addresses() -> str:
    return subprocess.run(["ip", "-o", "addr"], capture_output=True, text=True, check=True).stdout


def near(value: float, asked: float, slack: float = 0.0) -> bool:
    return abs(value - asked) < 0.15 * asked + slack


class Pipe:
    """A direction without TUN devices: packets go in, and come out when they are due."""

    def __init__(self, way: Way, seed: int = 1) -> None:
        self.direction = link_forwarder.Direction(way, seed)
        self._ends = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
        for end in (end for pair in self._ends for end in pair):
            end.setblocking(False)

    def put(self, *packets: bytes) -> None:
        for packet in packets:
            self._ends[0][0].send(packet)
            self.direction.read(self._ends[0][1].fileno())

    def at(self, now: float) -> list[bytes]:
        self.direction.transmit(now)
        self.direction.deliver(self._ends[1][0].fileno(), now)
        came = []
        while True:
            try:
                came.append(self._ends[1][1].recv(2000))
            except BlockingIOError:
                return came

    def close(self) -> None:
        for pair in self._ends:
            for end in pair:
                end.close()


@pytest.fixture
def pipe() -> Iterator[Callable[..., Pipe]]:
    pipes: list[Pipe] = []

    def new(way: Way, seed: int = 1) -> Pipe:
        pipes.append(Pipe(way, seed))
        return pipes[-1]

    yield new
    for one in pipes:
        one.close()


def test_packets_leave_one_after_the_other_and_arrive_after_the_delay(pipe: Callable[..., Pipe]) -> None:
    line = pipe(Way(1, 50))  # 1000 bytes in 8 ms
    now = time.monotonic()
    line.put(bytes(1000), bytes(1000))
    line.direction.transmit(now + 0.001)
    assert line.direction.next_s() == pytest.approx(now + 0.058, abs=0.005)
    assert line.at(now + 0.050) == []
    assert len(line.at(now + 0.064)) == 1
    assert len(line.at(now + 0.090)) == 1
    assert line.direction.next_s() == float("inf")
    assert line.direction.bytes == 2000


def test_a_full_queue_drops_the_last_packets(pipe: Callable[..., Pipe]) -> None:
    line = pipe(Way(1, 1, queue_bytes=3000))
    line.put(*[bytes([number]) * 1000 for number in range(5)])
    now = time.monotonic()
    came = [packet for later in range(10) for packet in line.at(now + later)]
    assert [packet[0] for packet in came] == [0, 1, 2]
    assert line.direction.overflowed == 2


def test_a_new_rate_and_delay_apply_to_waiting_packets_and_never_change_the_order(pipe: Callable[..., Pipe]) -> None:
    line = pipe(Way(1, 1000))
    line.put(*[bytes([number]) * 1000 for number in range(3)])
    now = time.monotonic()
    line.direction.transmit(now)  # the first is under way
    line.direction.way = Way(0.1, 1)
    assert line.at(now + 0.5) == []
    came = line.at(now + 1.1)
    assert [packet[0] for packet in came] == [0, 1, 2]


def test_losses_are_a_function_of_the_seed(pipe: Callable[..., Pipe]) -> None:
    def arrived(seed: int) -> list[bytes]:
        line = pipe(Way(100, 0, loss=0.3), seed)
        came = []
        for number in range(400):
            line.put(number.to_bytes(2, "big"))
            came += line.at(time.monotonic() + 60)
        return came

    assert arrived(1) == arrived(1) != arrived(2)
    assert 230 < len(arrived(1)) < 330
    assert pipe(Way(100, 0, loss=1.0)).at(time.monotonic()) == []


@pytest.mark.parametrize(
    ("way", "room"),
    [
        (Way(100, 60), 1_500_000),
        (Way(5, 20), 2**18),
        (Way(100, 60, queue_bytes=1000), 1000),
    ],
)
def test_the_default_queue_holds_the_bytes_of_a_round_trip(way: Way, room: int) -> None:
    assert way.room_bytes == room


@real
def test_tcp_measures_the_requested_rates_and_round_trip(link: LinkEmulator) -> None:
    device, trainer = tcp_pair(link)
    with device, trainer:
        assert near(rtt_ms(device, trainer), 40, slack=5)
        assert near(goodput_mbit_s(device, trainer, 1.0, 1.5), 20 * PAYLOAD)
        assert near(goodput_mbit_s(trainer, device, 1.0, 1.5), 10 * PAYLOAD)
    up, down = link.bytes
    assert up > 2.5 * 0.8 * 20e6 / 8 > down > 2.5 * 0.8 * 10e6 / 8
    stats = link.stats()
    assert stats.lost == 0
    assert 0 < stats.cpu_share < 1


@real
def test_a_change_takes_effect_on_a_live_connection(link: LinkEmulator) -> None:
    device, trainer = tcp_pair(link)
    with device, trainer:
        link.set(up=Way(5, 60))  # down stays
        assert near(rtt_ms(device, trainer), 80, slack=5)
        assert near(goodput_mbit_s(device, trainer, 0.5, 0.5), 5 * PAYLOAD)


@real
def test_lost_packets_are_counted_and_tcp_sends_them_again() -> None:
    with LinkEmulator(Way(50, 1, loss=0.05), Way(50, 1), seed=7) as link:
        device, trainer = tcp_pair(link)
        data = bytes(range(256)) * 1000
        with device, trainer:
            sending = threading.Thread(target=device.sendall, args=(data,))
            sending.start()
            came = b""
            while len(came) < len(data):
                came += trainer.recv(2**18)
            sending.join()
        assert came == data
        assert link.stats().lost > 0


@real
def test_the_lag_is_measured_and_reset_by_a_change(link: LinkEmulator) -> None:
    assert link._process.pid is not None
    link.set()  # returns when the process is running
    _pause(link._process.pid, 0.1)
    assert link.lag_ms > 50
    link.set()
    assert link.lag_ms < 50


def _pause(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


@real
def test_both_ends_are_isolated_and_removed_afterwards() -> None:
    here, known = addresses(), namespaces()
    with LinkEmulator(Way(20, 1), Way(20, 1)) as one, LinkEmulator(Way(20, 1), Way(20, 1)) as other:
        assert namespaces() - known == {
            name for link in (one, other) for name in (link.device_namespace, link.trainer_namespace)
        }
        assert addresses() == here
        for link in (one, other):  # the same addresses, and no route from one to the other
            device, trainer = tcp_pair(link)
            assert device.getpeername()[0] == link.trainer_address
            device.close()
            trainer.close()
        with inside(one.device_namespace):
            assert one.device_address in addresses()
            assert "inet6" not in addresses().replace("inet6 ::1", "")
        child = subprocess.run(["ip", "-o", "addr"], preexec_fn=one.enter_trainer, capture_output=True, text=True)
        assert one.trainer_address in child.stdout
        assert addresses() == here
    assert namespaces() == known


BENCHMARK = """
import os, sys, time
sys.path.append(sys.argv[1])
from link_emulator import LinkEmulator, Way
if __name__ == "__main__":
    link = LinkEmulator(Way(1, 1), Way(1, 1)).__enter__()
    print(link.device_namespace, link.trainer_namespace, link._process.pid, flush=True)
    time.sleep(float(sys.argv[2]))
"""


@real
@pytest.mark.parametrize("end", ["killed", "over", "interrupted"])
def test_nothing_stays_when_a_benchmark_ends_without_cleaning_up(end: str, eventually: Callable[..., None]) -> None:
    seconds = "0" if end == "over" else "100"
    process = subprocess.Popen(
        [sys.executable, "-c", BENCHMARK, str(Path(link_emulator.__file__).parent), seconds],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    device, trainer, pid = process.stdout.readline().split()
    if end != "over":
        assert {device, trainer} <= namespaces()
        process.send_signal(signal.SIGKILL if end == "killed" else signal.SIGINT)
    process.communicate()
    eventually(lambda: not {device, trainer} & namespaces())
    eventually(lambda: not Path("/proc", pid).exists())


@real
def test_the_benchmark_gets_an_error_when_the_emulator_has_ended() -> None:
    known = namespaces()
    with LinkEmulator(Way(1, 1), Way(1, 1)) as link:
        link._process.kill()
        with pytest.raises(RuntimeError, match="ended"):
            link.set(up=Way(2, 2))
    assert namespaces() == known


@real
def test_an_error_of_the_system_is_reported_and_nothing_stays() -> None:
    known = namespaces()
    with (
        pytest.raises(RuntimeError, match=r"no link can be emulated: \w"),
        LinkEmulator(Way(1, 1), Way(1, 1), mtu_bytes=1),
    ):
        pytest.fail("it was made")
    assert namespaces() == known


def test_the_missing_requirement_of_a_machine_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_emulator, "_CAPABILITIES", 0)
    monkeypatch.setattr(link_emulator, "TUN", tmp_path / "none")
    assert str(available()).startswith("link emulation needs /")
    monkeypatch.setattr(link_emulator, "TUN", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "iproute2" in str(available())
    monkeypatch.setattr(link_emulator, "_CAPABILITIES", 1 << 63)
    assert "root" in str(available())
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Linux" in str(available())
