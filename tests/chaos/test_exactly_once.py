"""Either side is killed at random times, the link is cut, stalled and corrupted: the outcome stays the same."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adc_edge.security.keystore import allow, load_public, make_keys, pin
from tests.chaos.proxy import BadLink
from tests.chaos.run import Run, compare
from tests.chaos.zygote import Zygote


def plan_of(rng: random.Random, **counts: int) -> list[str]:
    faults = [kind for kind, count in counts.items() for _ in range(count)]
    rng.shuffle(faults)
    return faults


def train_with(faults: list[str], run: Run, rng: random.Random, long_stall_s: float) -> tuple[dict[str, int], BadLink]:
    """Train to the end while ``faults`` happen at random times; returns the number of kills, and the link."""
    happened = {"trainer": 0, "device": 0, "both": 0}
    deadline = time.monotonic() + 700
    with BadLink(run.port, rng, delay_ms=2) as link:
        processes = {"trainer": run.trainer(), "device": run.device(link.endpoint)}

        def restart_killed() -> None:
            for side, child in processes.items():
                if child.code not in (None, 0):
                    assert child.code == -signal.SIGKILL, f"{side} ended with {child.code}\n{run.logs()}"
                    time.sleep(rng.choice([0.0, 0.0, rng.uniform(0, 0.5)]))
                    processes[side] = run.trainer() if side == "trainer" else run.device(link.endpoint)

        left = list(faults)
        while processes["device"].code != 0:
            assert time.monotonic() < deadline, f"it hangs at step {run.step()} with {left} to come\n{run.logs()}"
            if left:
                # A random while after some more steps: the faults spread over the whole run.
                goal = run.step() + rng.uniform(0, 1.4) * (run.steps - run.step()) / (len(left) + 1)
                patience = time.monotonic() + rng.uniform(0.2, 4)
                while run.step() < goal and time.monotonic() < patience and processes["device"].code is None:
                    time.sleep(0.005)
                time.sleep(rng.uniform(0, 0.04))
                fault = left.pop()
                killed = [
                    side for side in processes if fault in (side, "both") and processes[side].signal(signal.SIGKILL)
                ]
                for side in killed:
                    happened[side] += 1
                    processes[side].wait(30)
                happened["both"] += len(killed) == 2
                if fault == "cut":
                    link.cut()
                elif fault == "flip":
                    link.flip()
                elif fault == "stall":
                    link.stall(rng.uniform(0.1, 1.5))
                elif fault == "long stall":
                    link.stall(long_stall_s)
            else:
                time.sleep(0.05)
            restart_killed()
        assert processes["trainer"].wait(60) == 0, run.logs()
    return happened, link


def print_summary(
    capsys: pytest.CaptureFixture[str], run: Run, seed: int, happened: dict[str, int], link: BadLink
) -> None:
    report = json.loads((run.where / "report.json").read_text())
    with capsys.disabled():
        print(
            f"\nseed {seed}: {happened['trainer']} kills of the trainer, {happened['device']} of the device "
            f"({happened['both']} of both at once), {link.cuts} cuts, {link.flips} flipped bits, {link.stalls} stalls; "
            f"{report['outages']} outages seen, {report['steps_repeated']} steps redone, "
            f"{report['bytes_repeated_up']} + {report['bytes_repeated_down']} bytes sent again of "
            f"{report['bytes_total_up']} + {report['bytes_total_down']}"
        )


@pytest.fixture
def seed() -> int:
    """Random seed of the faults; ADC_EDGE_SEED repeats one."""
    return int(os.environ.get("ADC_EDGE_SEED", random.SystemRandom().randrange(10**6)))


@pytest.fixture
def train_under_faults(
    zygote: Zygote,
    bundle_dir: Path,
    tmp_path: Path,
    free_port: Callable[[], int],
    seed: int,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[dict[str, int], BadLink]]:
    """Train without faults and with so many of each kind, compare the outcomes, and return what happened."""

    def train(
        steps: int, keys: Path | None = None, more: tuple[str, ...] = (), **counts: int
    ) -> tuple[dict[str, int], BadLink]:
        rng = random.Random(seed)
        expected = Run(zygote, bundle_dir, tmp_path / "undisturbed", free_port(), steps, more=more).undisturbed()
        run = Run(zygote, bundle_dir, tmp_path / "disturbed", free_port(), steps, keys, more)
        happened, link = train_with(plan_of(rng, **counts), run, rng, long_stall_s=9.5)
        print_summary(capsys, run, seed, happened, link)
        compare(expected, run.outcome())
        return happened, link

    return train


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_cuts_flips_and_stalls_change_nothing_bit_for_bit(
    train_under_faults: Callable[..., tuple[dict[str, int], BadLink]],
) -> None:
    happened, link = train_under_faults(
        400, trainer=30, device=30, both=4, cut=10, flip=12, stall=6, **{"long stall": 1}
    )
    assert happened["trainer"] >= 30
    assert happened["device"] >= 30
    assert link.cuts >= 8
    assert link.flips >= 10


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_faults_change_nothing_under_encryption(
    train_under_faults: Callable[..., tuple[dict[str, int], BadLink]], tmp_path: Path
) -> None:
    """In the default precisions: each process computes the principal components anew."""
    more = ("--precision", "pca1", "--gradient-precision", "pca0.25")
    for name in ("trainer", "device"):
        make_keys(tmp_path / name)
    allow(tmp_path / "trainer", "device", load_public(tmp_path / "device" / "public.key"))
    pin(tmp_path / "device", load_public(tmp_path / "trainer" / "public.key"))
    happened, link = train_under_faults(120, tmp_path, more, trainer=5, device=5, both=1, cut=5, flip=12, stall=2)
    assert happened["trainer"] >= 5
    assert happened["device"] >= 5
    assert link.flips >= 10


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_faults_within_a_step_of_several_micro_batches_change_nothing(
    train_under_faults: Callable[..., tuple[dict[str, int], BadLink]],
) -> None:
    """With engine refreshes at other steps than checkpoints, another precision down than up, best halves kept."""
    more = ("--micro-batches", "4", "--window", "3", "--refresh-every", "3", "--precision", "int8")
    best = ("--keep-best", "--eval-every", "10")
    happened, link = train_under_faults(
        150, more=(*more, *best, "--gradient-precision", "int4"), trainer=8, device=8, both=2, cut=8, flip=6, stall=2
    )
    assert happened["trainer"] >= 9
    assert happened["device"] >= 9
    assert link.cuts >= 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_faults_change_nothing_where_precisions_change_by_epoch(
    train_under_faults: Callable[..., tuple[dict[str, int], BadLink]],
) -> None:
    """Epochs of 22 steps: the last precision holds from step 66 on."""
    more = ("--batch-size", "64", "--precision", "pca4,int8,pca2,pca1", "--gradient-precision", "pca1,pca0.25")
    happened, _ = train_under_faults(110, more=(*more, "--micro-batches", "2"), trainer=8, device=8, both=2, cut=4)
    assert happened["trainer"] >= 8
    assert happened["device"] >= 8
