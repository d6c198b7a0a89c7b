"""Ranks, their agent and devices are killed at random: every step of every device is learned once, on equal heads."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.chaos.ranks.supervised import Host
from tests.chaos.ranks.training import (
    Devices,
    check_every_step_once,
    check_head,
    check_nothing_is_left,
    logs,
)
from tests.chaos.run import LEARNING
from tests.chaos.zygote import Zygote
from tests.ports import free_ports

KILLS = int(os.environ.get("ADC_EDGE_KILLS", "6"))
STEPS = 8 * KILLS  # of each device
PATIENCE_S = 240  # for the next step, on a busy machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + 60 * KILLS)]


def kill_one(host: Host, devices: Devices, victim: str, rng: random.Random) -> bool:
    """Kill one process of a kind; False if none is at work."""
    if victim == "agent":
        return host.kill_agent()
    if victim == "rank":
        return host.kill_rank(rng.randrange(2))
    at_work = [number for number, child in devices.children.items() if child.code is None]
    return bool(at_work) and devices.kill(rng.choice(at_work))


def train(host: Host, devices: Devices, victims: Sequence[str], rng: random.Random) -> Counter[str]:
    """Train to the end, with the kills evenly spread over the steps; returns the number of kills of each kind."""
    happened: Counter[str] = Counter()
    total, left = devices.steps * len(devices.runs), list(victims)
    furthest, patience = 0, time.monotonic() + PATIENCE_S
    while not devices.done():
        time.sleep(0.01)
        assert host.code is None, f"the supervisor ended with {host.code}"
        devices.start_killed()
        done = devices.progress()
        if done > furthest:
            furthest, patience = done, time.monotonic() + PATIENCE_S
        assert time.monotonic() < patience, f"it hangs after {done} steps of {total}, with {left} to come"
        if left and done >= total * (1 - len(left) / (len(victims) + 1)):
            time.sleep(rng.uniform(0, 0.1))  # at any place in a round
            if kill_one(host, devices, left[-1], rng):
                happened[left.pop()] += 1
    return happened


@pytest.mark.parametrize("sync", ["every", "4"])
def test_after_kills_of_ranks_agents_and_devices_every_step_is_learned_once(
    zygote: Zygote, bundle_dir: Path, tmp_path: Path, sync: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("ADC_EDGE_SEED", random.SystemRandom().randrange(10**6)))
    print(f"ADC_EDGE_SEED={seed}")
    rng = random.Random(seed)
    port, run = free_ports(2), tmp_path / "trainer"
    victims = [("rank", "agent", "device")[number % 3] for number in range(KILLS)]
    rng.shuffle(victims)
    doors = [f"tcp://127.0.0.1:{port + number % 2}" for number in range(4)]
    devices = Devices(zygote, bundle_dir, tmp_path, doors, STEPS)
    arguments: list[str | Path] = [
        "--standalone", "--nproc-per-node", "2", "--max-restarts", "20", "-m", "--", "adc_edge", "trainer",
        "--bundle", bundle_dir, "--run", run, "--bind", f"tcp://127.0.0.1:{port}", "--devices", "4",
        "--sync", sync, "--checkpoint-every", "10", *LEARNING,
    ]  # fmt: skip
    begun = time.monotonic()
    with Host(arguments, tmp_path / "ranks.log") as host:
        devices.start_all()
        try:
            happened = train(host, devices, victims, rng)
            assert host.wait(120) == 0
            assert not host.processes()
        except BaseException:
            print(logs(tmp_path))
            raise
    with capsys.disabled():
        killed = ", ".join(f"{count} of {kind}" for kind, count in sorted(happened.items()))
        print(f"\n--sync {sync}, seed {seed}: kills: {killed}; {time.monotonic() - begun:.0f} s")
    assert happened.total() == KILLS
    check_every_step_once(run, devices)
    check_head(run, 4 * STEPS)
    check_nothing_is_left(run, port, 2)
