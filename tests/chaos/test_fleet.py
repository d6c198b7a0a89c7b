"""A fleet whose trunks are averaged: whatever is killed or cut, no change is lost, and none is counted twice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from adc_edge.arrays import Weights
from adc_edge.codec.trunk_changes import added, decode_changes, shapes_of
from adc_edge.storage.bundle import TRUNK
from adc_edge.storage.checkpoint import load_checkpoint
from adc_edge.storage.fleet_trunk import ROUNDS, newest_fleet_trunk
from tests.chaos.proxy import BadLink
from tests.chaos.run import LEARNING, Run, compare
from tests.chaos.zygote import Child, Zygote

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
EXCHANGE = "adc_edge.edge_runtime.fleet.exchange:TrunkExchange.ask"
RECORD = "adc_edge.edge_runtime.fleet.record:AverageRecord.keep"
TAKES = "adc_edge.edge_runtime.trunk.refresher:Refresher.take"
TAKEN = "adc_edge.cloud_trainer.fleet.common_trunk:CommonTrunk.take"
CLOSES = "adc_edge.cloud_trainer.fleet.rounds:Rounds.close"


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def test_a_device_alone_is_killed_around_every_part_of_an_average_and_the_run_stays_the_same(
    zygote: Zygote, bundle_dir: Path, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    fleet = ("--mode", "averaged", "--average-every", "5")
    more = ("--refresh-every", "2", "--keep-best", "--eval-every", "10")
    expected = Run(zygote, bundle_dir, tmp_path / "undisturbed", free_port(), 40, more=more, trainer_more=fleet)
    outcome = expected.undisturbed()
    run = Run(zygote, bundle_dir, tmp_path / "disturbed", free_port(), 40, more=more, trainer_more=fleet)
    instants = {  # of each process after the other
        "device": [f"{EXCHANGE}:before:2", f"{EXCHANGE}:after:1", f"{RECORD}:after:2", f"{TAKES}:after:2"],
        "trainer": [f"{TAKEN}:after:3", f"{CLOSES}:before:1", f"{CLOSES}:after:2"],
    }
    starts: dict[str, Callable[[str], Child]] = {
        "device": lambda dies: run.device(run.endpoint, dies=dies),
        "trainer": lambda dies: run.trainer(dies=dies),
    }
    left = {side: iter(dies) for side, dies in instants.items()}
    children = {side: start(next(left[side])) for side, start in starts.items()}
    kills = 0
    while children["device"].code != 0:
        for side, child in children.items():
            if child.code not in (None, 0):
                assert child.code == -signal.SIGKILL, run.logs()
                kills += 1
                children[side] = starts[side](next(left[side], ""))
        time.sleep(0.01)
    assert children["trainer"].wait(20) == 0, run.logs()
    assert kills == sum(map(len, instants.values()))
    compare(outcome, run.outcome())
    ends = [newest_fleet_trunk(each.trainer_dir) for each in (run, expected)]
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0].round == ends[1].round == 8
    assert same(ends[0].weights, ends[1].weights)
    assert same(ends[0].weights, load_file(run.device_dir / TRUNK))


class Fleet:
    """A trainer and four devices, each over a link of its own; whoever was killed is started again."""

    every = 10

    def __init__(
        self, zygote: Zygote, bundle: Path, where: Path, port: int, rng: random.Random, mode: str, steps: int
    ) -> None:
        self.mode, self.steps = mode, steps
        self.zygote, self.bundle, self.where, self.rng = zygote, bundle, where, rng
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self.links = [BadLink(port, rng) for _ in range(4)]
        self.runs = [where / f"device-{number}" for number in range(4)]
        self.trainer_run = where / "trainer"
        (where / "rounds").mkdir()

    def start(self, side: int) -> Child:
        """Start a device, or the trainer: -1."""
        common: list[str | Path] = ["--bundle", self.bundle, *LEARNING, "--checkpoint-every", "7"]
        if side < 0:
            fleet = ["--mode", self.mode, "--average-every", str(self.every), "--devices", "4", "--average-wait", "5"]
            command: list[str | Path] = ["trainer", "--bind", self.endpoint, "--run", self.trainer_run, *fleet]
        else:
            work = ["--steps", str(self.steps), "--micro-batches", "1", "--eval-images", "16", "--seed", str(side)]
            where: list[str | Path] = [
                "--trainer",
                self.links[side].endpoint,
                "--wait",
                "inf",
                "--run",
                self.runs[side],
            ]
            command = ["serve", *where, *work]
        return self.zygote.start(*command, *common, log=self.where / f"{side}.log", environment={})

    def train(self, kills: int, cuts: int) -> int:
        """Train to the end, and return the number of processes that were killed."""
        children = {side: self.start(side) for side in range(-1, 4)}
        faults, happened = [*["kill"] * kills, *["cut"] * cuts], 0
        self.rng.shuffle(faults)
        while any(child.code != 0 for child in children.values()):
            time.sleep(0.005)
            self.keep_rounds()
            if faults and self.progress() > 1 - len(faults) / (kills + cuts):
                side = self.rng.randrange(-1, 4)
                if faults.pop() == "cut":
                    self.links[side].cut()
                else:
                    happened += children[side].signal(signal.SIGKILL)
            for side, child in children.items():
                if child.code not in (None, 0):
                    assert child.code == -signal.SIGKILL, f"{side} ended with {child.code}\n{self.logs()}"
                    children[side] = self.start(side)
        return happened

    def keep_rounds(self) -> None:
        """Keep the files of rounds, of which the trainer deletes the older ones."""
        with contextlib.suppress(FileNotFoundError):
            for path in (self.trainer_run / ROUNDS).glob("c*-*"):
                if not (self.where / "rounds" / path.name).exists():
                    os.link(path, self.where / "rounds" / path.name)

    def progress(self) -> float:
        """Share of all steps that the devices have done."""
        return sum(len(self.lines(run, "step")) for run in self.runs) / (4 * self.steps)

    def lines(self, run: Path, kind: str) -> list[dict[str, object]]:
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            return [line for line in found if line["kind"] == kind]
        return []

    def logs(self) -> str:
        return "\n".join(f"--- {p.name}\n" + p.read_text()[-3000:] for p in sorted(self.where.glob("*.log")))


@pytest.mark.parametrize(("mode", "steps", "kills", "cuts"), [("averaged", 60, 8, 4), ("sequential", 20, 4, 2)])
def test_after_kills_and_cuts_all_devices_have_one_trunk_and_every_change_is_in_one_round(
    zygote: Zygote,
    bundle_dir: Path,
    tmp_path: Path,
    free_port: Callable[[], int],
    mode: str,
    steps: int,
    kills: int,
    cuts: int,
) -> None:
    seed = int(os.environ.get("ADC_EDGE_SEED", random.SystemRandom().randrange(10**6)))
    print(f"ADC_EDGE_SEED={seed}")
    fleet = Fleet(zygote, bundle_dir, tmp_path, free_port(), random.Random(seed), mode, steps)
    with contextlib.ExitStack() as stack:
        for link in fleet.links:
            stack.enter_context(link)
        assert fleet.train(kills, cuts) >= kills // 2
    end = newest_fleet_trunk(fleet.trainer_run)
    assert end is not None
    for run in fleet.runs:
        assert same(load_file(run / TRUNK), end.weights), fleet.logs()
        assert [line["step"] for line in fleet.lines(run, "step")] == list(range(steps))
        assert [line["step"] for line in fleet.lines(run, "average")] == list(range(0, steps + 1, 10))

    trunk: Weights = load_file(bundle_dir / TRUNK)
    counted: list[tuple[str, int]] = []
    for number in range(1, end.round + 1):
        change = (tmp_path / "rounds" / f"change-{number:08d}").read_bytes()[32:]
        trunk = added(trunk, decode_changes(change, shapes_of(trunk), "int8"))
        settled = load_checkpoint(tmp_path / "rounds" / f"checkpoint-{number:08d}.safetensors").meta["settled"]
        counted += [(session, of["step"]) for session, of in settled.items() if of["round"] == number]
    assert same(trunk, end.weights)
    sessions = {session for session, _ in counted}
    assert len(sessions) == 4
    assert sorted(counted) == [(session, step) for session in sorted(sessions) for step in range(10, steps + 1, 10)]
    learned = [(line["session"], line["step"]) for line in fleet.lines(fleet.trainer_run, "step")]
    assert len(learned) == len(set(learned)) == 4 * steps
