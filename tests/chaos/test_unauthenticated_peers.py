"""A trainer without keys serves its device under 100,000 messages and 5,000 connections of unauthenticated peers."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.hostile_peers import HostilePeers
from tests.chaos.zygote import Child, Zygote

MESSAGES, CONNECTIONS, WINDOWS, STEPS = 40_000, 2_000, 5, 300


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


def paces(hostile: HostilePeers, run: Path, trainer: Child) -> tuple[dict[str, list[float]], tuple[float, int]]:
    """The device's steps a second without and with an attack, and the trainer's resources after two windows."""
    rates: dict[str, list[float]] = {"undisturbed": [], "attacked": []}
    window_s = STEPS / pace(run, lambda: time.sleep(4))  # a slow machine is not attacked more densely
    warm = (0.0, 0)
    for window in range(WINDOWS):
        rates["undisturbed"].append(pace(run, lambda: time.sleep(window_s / 3)))
        attack = partial(hostile.attack, MESSAGES // WINDOWS, CONNECTIONS // WINDOWS, window_s)
        rates["attacked"].append(pace(run, attack))
        if window == 1:
            time.sleep(11)  # libzmq closes half handshakes after 10 s
            warm = resources(trainer)
    return rates, warm


@pytest.mark.slow
@pytest.mark.timed
@pytest.mark.timeout(600)
def test_unauthenticated_peers_cost_a_device_little_and_the_trainer_nothing(
    zygote: Zygote,
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
    deadline = time.monotonic() + 60
    while not (tmp_path / "device" / "metrics.jsonl").exists() or not steps_before(tmp_path / "device"):
        assert time.monotonic() < deadline, trainer.output() + device.output()
        time.sleep(0.1)
    time.sleep(2)
    with HostilePeers(bundle_dir, endpoint, seed=0) as hostile:
        rates, warm = paces(hostile, tmp_path / "device", trainer)
    time.sleep(11)
    end = resources(trainer)
    assert device.signal(15)
    assert device.wait(10) == 0, device.output()
    assert trainer.signal(15)
    assert trainer.wait(10) == 0, trainer.output()
    ratio = statistics.median(rates["attacked"]) / statistics.median(rates["undisturbed"])
    log = trainer.output()
    with capsys.disabled():
        print(
            f"\n{hostile.messages} messages and {hostile.connections} connections: {ratio:.2f} of "
            f"{statistics.median(rates['undisturbed']):.0f} steps/s; RSS {warm[0]:.0f} -> {end[0]:.0f} MB, descriptors "
            f"{warm[1]} -> {end[1]}; {log.count(chr(10))} lines of log"
        )
    assert hostile.messages == MESSAGES
    assert hostile.connections == CONNECTIONS
    assert ratio >= 0.8
    assert end[0] < warm[0] + 30
    assert end[1] <= warm[1] + 10
    assert "refused" in log
    assert log.count("\n") < 2_000  # a flood of refusals is logged as a count
    assert "link lost" not in device.output()


def steps_before(run: Path) -> bool:
    try:
        return steps_done(run) > 20
    except (IndexError, ValueError, OSError):
        return False
