"""A trainer that anybody can reach: 100,000 messages and 5,000 connections of strangers, and its device goes on."""

from __future__ import annotations

import json
import os
import random
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgpack
import pytest
import zmq

from adc_edge.bundle import Bundle
from adc_edge.framing import cut, sealed
from adc_edge.protocol import VERSION, Bye, Evaluate, Fetch, Hello, Ping
from tests.chaos.zygote import Child, Zygote
from tests.stub_device import Device

MESSAGES, CONNECTIONS, WINDOWS, STEPS = 100_000, 5_000, 10, 300


class Strangers:
    """Sends what nobody should: random frames, and real messages with something changed."""

    def __init__(self, bundle: Bundle, endpoint: str, seed: int) -> None:
        self._rng = random.Random(seed)
        self._endpoint, self._port = endpoint, int(endpoint.rpartition(":")[2])
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dealers: list[zmq.Socket[bytes]] = []
        self._open: list[socket.socket] = []
        self._models = list(self._real(bundle))
        self.messages = self.connections = 0

    def close(self) -> None:
        for end in self._open:
            end.close()
        self._context.destroy(linger=0)

    def attack(self, messages: int, connections: int, seconds: float) -> None:
        """So many within a window, evenly."""
        start, sent, made = time.monotonic(), 0, 0
        while (now := (time.monotonic() - start) / seconds) < 1 or sent < messages or made < connections:
            while sent < min(messages, now * messages):
                self._message()
                sent += 1
            while made < min(connections, now * connections):
                self._connection()
                made += 1
            time.sleep(0.002)
        for end in self._open:
            end.close()
        self._open.clear()

    def _message(self) -> None:
        if not self._dealers or self._rng.random() < 0.02:  # cut off by now, or not: a fresh one
            if len(self._dealers) == 8:
                self._dealers.pop(0).close(0)
            dealer = self._context.socket(zmq.DEALER)
            dealer.setsockopt(zmq.SNDHWM, 1000)
            dealer.connect(self._endpoint)
            self._dealers.append(dealer)
        dealer = self._rng.choice(self._dealers)
        frames = self._frames()
        try:
            dealer.send_multipart(frames, zmq.NOBLOCK)
            self.messages += 1
        except zmq.Again:
            self._dealers.remove(dealer)
            dealer.close(0)

    def _frames(self) -> list[bytes]:
        rng = self._rng
        kind = rng.random()
        if kind < 0.25:
            return [rng.randbytes(rng.randrange(300)) for _ in range(rng.randrange(1, 6))]
        header, piece = rng.choice(self._models)
        if kind < 0.5:  # a flipped byte somewhere, the seal as it was
            frame = bytearray(sealed(header, piece))
            frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
            return [bytes(frame), piece]
        if kind < 0.75:  # a field that lies, well sealed
            fields = msgpack.unpackb(header)
            name = rng.choice(list(fields))
            fields[name] = rng.choice([0, 1, -1, 2**31 - 1, 2**63 - 1, 2**40, "x" * 2000, None, 1.5, [], b"", True])
            header = msgpack.packb(fields)
        else:  # a body that is not what the header says
            piece = rng.randbytes(rng.choice([0, 1, 100, 4096]))
        return [sealed(header, piece), piece]

    def _connection(self) -> None:
        rng = self._rng
        with socket.socket() as end:
            end.settimeout(1)
            try:
                end.connect(("127.0.0.1", self._port))
                greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
                kind = rng.randrange(4)
                if kind == 0:
                    end.sendall(rng.randbytes(rng.randrange(1, 500)))
                elif kind == 1:
                    end.sendall(greeting[: rng.randrange(len(greeting))])
                elif kind == 2:
                    end.sendall(greeting + b"\4" + rng.randbytes(rng.randrange(1, 100)))
                if kind == 3 and len(self._open) < 200:  # it stays and says nothing
                    self._open.append(end.dup())
            except OSError:
                pass
        self.connections += 1

    @staticmethod
    def _real(bundle: Bundle) -> Iterator[tuple[bytes, bytes]]:
        device = Device(bundle, "tcp://127.0.0.1:9")
        step, body = device.message(0)
        hello = Hello(VERSION, bundle.digest, 77, 77, "stranger", 0, 0, 0)
        evaluate = Evaluate(77, 0, 0, 5, 17 * 32 * 4 + 4, 1, "fp32")
        bodies = ((hello, b""), (step, body), (evaluate, bytes(17 * 32 * 4 + 4)), (Fetch(77, 0, None, 3), b""))
        for message, whole in (*bodies, (Ping(1, 100, 0, 1), b""), (Bye(77), b"")):
            for frame, piece in cut(message, whole):
                yield frame[:-8], bytes(piece)
        device.channel.close()


def yield_the_cores() -> None:
    """This thread and its sockets': strangers have machines of their own, and do not slow a device by living."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def steps_done(run: Path) -> int:
    with (run / "metrics.jsonl").open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 3000))
        return int(json.loads(file.read().splitlines()[-1])["step"])


def resources(child: Child) -> tuple[float, int]:
    """Resident memory in MB and open descriptors."""
    lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
    rss = next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmRSS"))
    return rss, len(os.listdir(f"/proc/{child.pid}/fd"))


def pace(run: Path, during: Callable[[], object]) -> float:
    """Steps a second that the device makes meanwhile."""
    start, before = time.monotonic(), steps_done(run)
    during()
    return (steps_done(run) - before) / (time.monotonic() - start)


def paces(strangers: Strangers, run: Path, trainer: Child) -> tuple[dict[str, list[float]], tuple[float, int]]:
    """The device's paces in peace and attacked, in turn, and what the trainer holds after two windows of each."""
    rates: dict[str, list[float]] = {"calm": [], "attacked": []}
    window_s = STEPS / pace(run, lambda: time.sleep(4))  # a slow machine is not attacked more densely
    warm = (0.0, 0)
    with ThreadPoolExecutor(1, initializer=yield_the_cores) as elsewhere:

        def attack() -> None:
            elsewhere.submit(strangers.attack, MESSAGES // WINDOWS, CONNECTIONS // WINDOWS, window_s).result()

        for window in range(WINDOWS):
            rates["calm"].append(pace(run, lambda: time.sleep(window_s / 3)))
            rates["attacked"].append(pace(run, attack))
            if window == 1:
                time.sleep(11)  # libzmq closes half handshakes after 10 s
                warm = resources(trainer)
    return rates, warm


@pytest.mark.slow
@pytest.mark.timed
@pytest.mark.timeout(600)
def test_strangers_cost_a_device_at_work_little_and_the_trainer_nothing(
    zygote: Zygote,
    bundle: Bundle,
    bundle_dir: Path,
    tmp_path: Path,
    free_port: Callable[[], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    trainer = zygote.start(
        "trainer", "--bundle", bundle_dir, "--run", tmp_path / "trainer", "--bind", endpoint, "--threads", "1",
        log=tmp_path / "trainer.log",
    )  # fmt: skip
    device = zygote.start(
        "serve", "--bundle", bundle_dir, "--run", tmp_path / "device", "--trainer", endpoint, "--threads", "1",
        "--steps", "1000000", "--wait", "60", log=tmp_path / "device.log",
    )  # fmt: skip
    strangers = Strangers(bundle, endpoint, seed=0)
    deadline = time.monotonic() + 60
    while not (tmp_path / "device" / "metrics.jsonl").exists() or not steps_before(tmp_path / "device"):
        assert time.monotonic() < deadline, trainer.output() + device.output()
        time.sleep(0.1)
    time.sleep(2)
    rates, warm = paces(strangers, tmp_path / "device", trainer)
    strangers.close()
    time.sleep(11)
    end = resources(trainer)
    assert device.signal(15)
    assert device.wait(10) == 0, device.output()
    assert trainer.signal(15)
    assert trainer.wait(10) == 0, trainer.output()
    ratio = statistics.median(rates["attacked"]) / statistics.median(rates["calm"])
    log = trainer.output()
    with capsys.disabled():
        print(
            f"\n{strangers.messages} messages and {strangers.connections} connections: {ratio:.2f} of "
            f"{statistics.median(rates['calm']):.0f} steps/s; RSS {warm[0]:.0f} -> {end[0]:.0f} MB, descriptors "
            f"{warm[1]} -> {end[1]}; {log.count(chr(10))} lines of log"
        )
    assert strangers.messages >= 0.95 * MESSAGES
    assert strangers.connections == CONNECTIONS
    assert ratio >= 0.8
    assert end[0] < warm[0] + 30
    assert end[1] <= warm[1] + 10
    assert "refused" in log
    assert log.count("\n") < 2_000  # a flood of refusals is told as a count
    assert "link lost" not in device.output()


def steps_before(run: Path) -> bool:
    try:
        return steps_done(run) > 20
    except (IndexError, ValueError, OSError):
        return False
