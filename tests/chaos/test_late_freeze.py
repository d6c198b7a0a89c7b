"""A trunk learns, is frozen and sends each image once more; then the trainer goes on alone, whatever is killed."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from adc_edge.storage.checkpoint import checkpoint_name, latest_checkpoint
from adc_edge.storage.halves import head_states, trunk_states
from tests.chaos.run import Run, compare
from tests.chaos.test_frozen import STORE, check_parted, finish, kills_of, outcome
from tests.chaos.zygote import Child, Zygote

LATE = ("--freeze-after", "1", "--send-epochs", "1", "--batch-size", "128", "--eval-every", "10", "--augment", "flip")
KINDS = {
    "one message": LATE,
    "two messages, old weights in the engine": (*LATE, "--micro-batches", "2", "--refresh-every", "4"),
    "torch": (*LATE, "--engine", "torch"),
    "precisions by epoch": (*LATE, "--precision", "dct1,pca0.5", "--gradient-precision", "dct0.25,pca0.25"),
}
STEPS, FROM, SENT = 40, 11, 22  # planned; from which the trunk is frozen; of the device
CHECKPOINTS = "adc_edge.cloud_trainer.checkpoints:TrainerCheckpoints"
STEP = "adc_edge.edge_runtime.loop:DeviceLoop.step"
DEATHS = {
    "trainer, while the trunk learns": ("trainer", "adc_edge.cloud_trainer.scheduling.steps:StepAnswers.learn:after:9"),
    "trainer, before the first step that is kept": ("trainer", f"{CHECKPOINTS}.save:before:2"),
    "trainer, with the first step that is kept": ("trainer", f"{STORE}.session_store:SessionStore.keep_step:after:1"),
    "trainer, storing": ("trainer", f"{STORE}.session_store:SessionStore.keep_step:after:6"),
    "trainer, storing the evaluation": ("trainer", f"{STORE}.session_store:SessionStore.keep_evaluation:after:1"),
    "trainer, before the store is whole": ("trainer", f"{STORE}.session_store:SessionStore.complete:before:1"),
    "trainer, once the store is whole": ("trainer", f"{STORE}.session_store:SessionStore.complete:after:1"),
    "trainer, alone": ("trainer", f"{STORE}.alone:AloneTraining._step:after:9"),
    "device, while the trunk learns": ("device", f"{STEP}:before:10"),
    "device, before the trunk is frozen": ("device", f"{STEP}:after:{FROM}"),
    "device, as the trunk is frozen": ("device", "adc_edge.edge_runtime.trunk.trainer:Shim.drop:after:1"),
    "device, with a frozen trunk": ("device", f"{STEP}:before:{FROM + 5}"),
    "device, evaluating at its end": ("device", "adc_edge.edge_runtime.loop:DeviceLoop.evaluate:after:3"),
    "device, before its farewell": ("device", "adc_edge.edge_runtime.session:DeviceSession.close_session:before:1"),
}
OF_ALL = ("trainer, storing", "trainer, once the store is whole", "device, before the trunk is frozen")


def late_outcome(run: Run) -> dict[str, Any]:
    """Both halves, losses, and the evaluations that no kill may lose: those since the device's last one."""
    found = outcome(run)
    found["evaluations"] = [judged for judged in found["evaluations"] if judged[0] >= SENT]
    last = latest_checkpoint(run.device_dir)
    assert last is not None
    found["trunk state"] = {name: value.tobytes() for name, value in last.arrays.items()}
    weights = load_file(run.device_dir / "trunk.safetensors")
    found["trunk state at the end"] = {name: value.tobytes() for name, value in weights.items()}
    trunk, head = trunk_states(run.device_dir)[-1], head_states(run.trainer_dir)[-1]
    assert (trunk.final, [*trunk.learned.values()], [*head.learned.values()]) == (True, [FROM], [STEPS])
    return found


@pytest.fixture(scope="module")
def expected(
    zygote: Zygote, bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> Callable[[str], dict[str, Any]]:
    """The outcome of each kind of run that nothing disturbs, once it is asked for."""
    known: dict[str, dict[str, Any]] = {}

    def undisturbed(kind: str) -> dict[str, Any]:
        if kind not in known:
            where = tmp_path_factory.mktemp("late") / "run"
            run = Run(zygote, bundle_dir, where, free_port(), STEPS, more=KINDS[kind])
            trainer, device = run.trainer(), run.device(run.endpoint)
            assert device.wait(100) == 0, run.logs()
            assert trainer.wait(100) == 0, run.logs()
            known[kind] = late_outcome(run)
            assert [step for step, _, _ in known[kind]["losses"]] == list(range(STEPS))
            assert [step for step, _, _ in known[kind]["evaluations"]] == [SENT, 30, STEPS]
            report = json.loads((run.where / "report.json").read_text())
            told = (report["steps"], report["steps_alone"], report["frozen_from"], report["complete"])
            assert told == (SENT, STEPS - SENT, FROM, True)
        return known[kind]

    return undisturbed


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kind", "when"),
    [("one message", when) for when in DEATHS] + [(kind, when) for kind in list(KINDS)[1:] for when in OF_ALL],
)
def test_a_side_is_killed(
    kind: str,
    when: str,
    zygote: Zygote,
    bundle_dir: Path,
    tmp_path: Path,
    free_port: Callable[[], int],
    expected: Callable[[str], dict[str, Any]],
) -> None:
    run = Run(zygote, bundle_dir, tmp_path / "run", free_port(), STEPS, more=KINDS[kind])
    assert kills_of(run, *DEATHS[when]) == 1
    compare(expected(kind), late_outcome(run))
    check_parted(run, when)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kind", "damaged", "back_to"),
    [("one message", FROM, FROM), ("one message", 9, 7), ("two messages, old weights in the engine", 9, 7)],
)
def test_a_frozen_device_goes_back_as_its_trainer_returns_older_and_its_journal_is_damaged(
    kind: str,
    damaged: int,
    back_to: int,
    zygote: Zygote,
    bundle_dir: Path,
    tmp_path: Path,
    free_port: Callable[[], int],
    expected: Callable[[str], dict[str, Any]],
) -> None:
    """The trainer comes back at step 7, of before the trunk was frozen; at 9 the device's trunk has to learn again."""
    run, messages = Run(zygote, bundle_dir, tmp_path / "run", free_port(), STEPS, more=KINDS[kind]), 1 + ("two" in kind)
    dies = f"{STORE}.session_store:SessionStore.keep_step:after:{2 * messages}"
    trainer, device = run.trainer(dies=dies), run.device(run.endpoint)
    assert trainer.wait(100) == -signal.SIGKILL, run.logs()
    newest = run.trainer_dir / checkpoint_name(FROM)
    assert newest.exists()
    newest.write_bytes(b"damaged")
    journal = run.device_dir / "journal" / f"{damaged:08d}-0"
    assert journal.exists(), run.logs()
    journal.write_bytes(b"damaged")
    starts: dict[str, Callable[[], Child]] = {"trainer": run.trainer, "device": lambda: run.device(run.endpoint)}
    assert finish(run, {"trainer": run.trainer(), "device": device}, starts) == 0
    log = " ".join((run.where / "device.log").read_text().split())
    assert f"going back from step {FROM + 1} to the checkpoint of {back_to}" in log, log
    assert log.count(f"the trunk is frozen from step {FROM} on") == 2, log
    compare(expected(kind), late_outcome(run))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(2))
def test_both_sides_are_killed_at_random(
    seed: int,
    zygote: Zygote,
    bundle_dir: Path,
    tmp_path: Path,
    free_port: Callable[[], int],
    expected: Callable[[str], dict[str, Any]],
) -> None:
    """Before the trunk is frozen, at that step, after it, and alone."""
    kind = "two messages, old weights in the engine"
    run = Run(zygote, bundle_dir, tmp_path / "run", free_port(), STEPS, more=KINDS[kind])
    starts: dict[str, Callable[[], Child]] = {"trainer": run.trainer, "device": lambda: run.device(run.endpoint)}
    sides = {side: start() for side, start in starts.items()}
    metrics, rng = run.trainer_dir / "metrics.jsonl", random.Random(seed)
    for goal in (3, 8, FROM, FROM + 2, FROM + 6, SENT + 5):
        deadline = time.monotonic() + 100
        while not metrics.exists() or metrics.read_bytes().count(b'"kind": "step"') < goal:
            assert time.monotonic() < deadline, run.logs()
            assert all(child.code in (None, 0) for child in sides.values()), run.logs()
            time.sleep(0.005)
        victims = ["trainer"] if goal > SENT else rng.choice([["trainer"], ["device"], ["trainer", "device"]])
        for victim in victims:
            if sides[victim].signal(signal.SIGKILL):
                sides[victim].wait(30)
            if sides[victim].code != 0:
                sides[victim] = starts[victim]()
    finish(run, sides, starts)
    compare(expected(kind), late_outcome(run))
