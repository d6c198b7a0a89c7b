"""A device with a frozen trunk sends each image once, and the trainer goes on alone, whatever is killed."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from adc_edge.security.keystore import allow, load_public, make_keys, pin
from adc_edge.storage.checkpoint import latest_checkpoint
from tests.chaos.run import Run, compare
from tests.chaos.zygote import Child, Zygote

ONCE = ("--trunk", "frozen", "--send-epochs", "1", "--batch-size", "128", "--eval-every", "15")
AUGMENTED = ("--store-drop", "0.2", "--store-mix", "1")
TWO = (*ONCE, "--micro-batches", "2")
STEPS = 48  # of which the first epoch, 11, is sent
STORE = "adc_edge.cloud_trainer.store"
TRAINER_DIES = {
    "storing": f"{STORE}.session_store:SessionStore.keep_step:after:4",
    "between store and checkpoint": "adc_edge.cloud_trainer.checkpoints:TrainerCheckpoints.count_steps:before:7",
    "storing the evaluation": f"{STORE}.session_store:SessionStore.keep_evaluation:after:1",
    "before the store is whole": f"{STORE}.session_store:SessionStore.complete:before:1",
    "once the store is whole": f"{STORE}.session_store:SessionStore.complete:after:1",
    "alone, after a step": f"{STORE}.alone:AloneTraining._step:after:9",
    "alone, before a checkpoint": "adc_edge.cloud_trainer.checkpoints:TrainerCheckpoints.save:before:4",
    "alone, evaluating": f"{STORE}.alone:AloneTraining._judge:after:1",
    "before the end's checkpoint": f"{STORE}.alone:AloneTraining._finish:before:1",
    "before the store is deleted": f"{STORE}.session_store:SessionStore.delete:before:1",
}
DEVICE_DIES = {
    "its first step": "adc_edge.edge_runtime.loop:DeviceLoop.step:after:1",
    "a step after a checkpoint": "adc_edge.edge_runtime.loop:DeviceLoop.step:before:9",
    "its evaluation": "adc_edge.edge_runtime.loop:DeviceLoop.evaluate:after:1",
    "its farewell": "adc_edge.edge_runtime.session:DeviceSession.close_session:before:1",
    "after its farewell": "adc_edge.edge_runtime.session:DeviceSession.close_session:after:1",
}


TWO_DIE = {
    "trainer, between the messages of a step": ("trainer", f"{STORE}.session_store:SessionStore.keep_step:after:5"),
    "trainer, once the store is whole": ("trainer", f"{STORE}.session_store:SessionStore.complete:after:1"),
    "trainer, alone": ("trainer", f"{STORE}.alone:AloneTraining._step:after:9"),
    "device, between the messages of a step": ("device", "adc_edge.edge_runtime.session:DeviceSession.submit:after:19"),
}


def outcome(run: Run) -> dict[str, Any]:
    """Head, optimizer, losses and evaluations of a trainer that has ended."""
    lines = [json.loads(line) for line in (run.trainer_dir / "metrics.jsonl").read_text().splitlines()]
    last = latest_checkpoint(run.trainer_dir)
    assert last is not None
    (record,) = last.meta["sessions"].values()
    head = load_file(run.trainer_dir / "head.safetensors")
    assert not any((run.trainer_dir / "store").glob("*")), "what the device sent outlives its run"
    return {
        "head state at the end": {name: value.tobytes() for name, value in head.items()},
        "optimizer state": {name: value.tobytes() for name, value in last.arrays.items()},
        "steps": (last.step, record["applied"], record["images"], record["finished"]),
        "losses": [(line["step"], line["loss"], line["images"]) for line in lines if line["kind"] == "step"],
        "evaluations": [(x["step"], x["accuracy"], x["loss"]) for x in lines if x["kind"] == "evaluation"],
    }


def check_parted(run: Run, when: str) -> None:
    """Assert that the device ended as the trainer has told that it has everything, and then has sent nothing again."""
    log = (run.where / "device.log").read_text()
    assert "once the store is whole" not in when or "sending it the steps" not in log, log
    assert "all is sent" in log, log
    assert "did not acknowledge" not in log, log


def undisturbed(run: Run) -> dict[str, Any]:
    """The outcome of a run that nothing disturbs."""
    trainer, device = run.trainer(), run.device(run.endpoint)
    assert device.wait(100) == 0, run.logs()
    assert trainer.wait(100) == 0, run.logs()
    found = outcome(run)
    assert [step for step, _, _ in found["losses"]] == list(range(STEPS))
    assert [step for step, _, _ in found["evaluations"]] == [11, 15, 30, 45, 48]
    assert found["steps"] == (STEPS, STEPS, 128 * STEPS, True)
    report = json.loads((run.where / "report.json").read_text())
    assert (report["steps"], report["steps_alone"], report["complete"]) == (11, STEPS - 11, True)
    return found


@pytest.fixture(scope="module")
def expected(
    zygote: Zygote, bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> dict[str, Any]:
    """The outcome of a run that nothing disturbs."""
    return undisturbed(
        Run(zygote, bundle_dir, tmp_path_factory.mktemp("frozen") / "run", free_port(), STEPS, more=ONCE)
    )


@pytest.fixture(scope="module")
def expected_of_two(
    zygote: Zygote, bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> dict[str, Any]:
    """The outcome of an undisturbed run whose steps are two messages each, augmented once the trainer is alone."""
    where = tmp_path_factory.mktemp("two") / "run"
    return undisturbed(Run(zygote, bundle_dir, where, free_port(), STEPS, more=TWO, trainer_more=AUGMENTED))


def finish(run: Run, sides: dict[str, Child], starts: dict[str, Callable[[], Child]]) -> int:
    """Start again what is killed until both sides have ended; returns the number of kills."""
    kills, deadline = 0, time.monotonic() + 200
    while any(child.code != 0 for child in sides.values()):
        assert time.monotonic() < deadline, run.logs()
        for side, child in sides.items():
            if child.code not in (None, 0):
                assert child.code == -signal.SIGKILL, f"{side} ended with {child.code}\n{run.logs()}"
                kills += 1
                sides[side] = starts[side]()
        time.sleep(0.02)
    return kills


def kills_of(run: Run, side: str, dies: str) -> int:
    """Do a run in which one side kills itself where ``dies`` says; returns the number of kills."""
    starts: dict[str, Callable[..., Child]] = {"trainer": run.trainer, "device": partial(run.device, run.endpoint)}
    sides = {name: start(dies=dies if name == side else "") for name, start in starts.items()}
    return finish(run, sides, starts)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("when", TRAINER_DIES)
def test_the_trainer_is_killed(
    when: str,
    zygote: Zygote,
    bundle_dir: Path,
    tmp_path: Path,
    free_port: Callable[[], int],
    expected: dict[str, Any],
) -> None:
    run = Run(zygote, bundle_dir, tmp_path / "run", free_port(), STEPS, more=ONCE)
    assert kills_of(run, "trainer", TRAINER_DIES[when]) == 1
    compare(expected, outcome(run))
    check_parted(run, when)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("when", DEVICE_DIES)
def test_the_device_is_killed(
    when: str,
    zygote: Zygote,
    bundle_dir: Path,
    tmp_path: Path,
    free_port: Callable[[], int],
    expected: dict[str, Any],
) -> None:
    run = Run(zygote, bundle_dir, tmp_path / "run", free_port(), STEPS, more=ONCE)
    assert kills_of(run, "device", DEVICE_DIES[when]) == 1
    compare(expected, outcome(run))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("when", TWO_DIE)
def test_a_side_is_killed_where_a_step_is_two_messages_and_the_trainer_augments_them(
    when: str,
    zygote: Zygote,
    bundle_dir: Path,
    tmp_path: Path,
    free_port: Callable[[], int],
    expected_of_two: dict[str, Any],
) -> None:
    run = Run(zygote, bundle_dir, tmp_path / "run", free_port(), STEPS, more=TWO, trainer_more=AUGMENTED)
    assert kills_of(run, *TWO_DIE[when]) == 1
    compare(expected_of_two, outcome(run))
    check_parted(run, when)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_both_sides_are_killed_at_random_with_an_encrypted_store(
    zygote: Zygote, bundle_dir: Path, tmp_path: Path, free_port: Callable[[], int], expected: dict[str, Any]
) -> None:
    for name in ("trainer", "device"):
        make_keys(tmp_path / name)
    allow(tmp_path / "trainer", "device", load_public(tmp_path / "device" / "public.key"))
    pin(tmp_path / "device", load_public(tmp_path / "trainer" / "public.key"))
    run = Run(zygote, bundle_dir, tmp_path / "run", free_port(), STEPS, tmp_path, more=ONCE)
    starts: dict[str, Callable[[], Child]] = {
        "trainer": run.trainer,
        "device": lambda: run.device(run.endpoint),
    }
    sides = {side: start() for side, start in starts.items()}
    metrics, rng = run.trainer_dir / "metrics.jsonl", random.Random(0)
    written = set[bytes]()
    for goal in (3, 7, 10, 16, 25, 40):
        deadline = time.monotonic() + 100
        while not metrics.exists() or metrics.read_bytes().count(b'"kind": "step"') < goal:
            assert time.monotonic() < deadline, run.logs()
            assert all(child.code in (None, 0) for child in sides.values()), run.logs()
            time.sleep(0.005)
        victim = "trainer" if goal > 11 else rng.choice(list(sides))
        if sides[victim].signal(signal.SIGKILL):
            sides[victim].wait(30)
        written |= {path.read_bytes()[28:29] for path in (run.trainer_dir / "store").rglob("0*-0")}
        if sides[victim].code != 0:
            sides[victim] = starts[victim]()
    finish(run, sides, starts)
    assert written == {b"s"}, "sealed, all of them"
    compare(expected, outcome(run))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_epochs_after_the_first_cost_no_byte(
    zygote: Zygote,
    bundle_dir: Path,
    tmp_path: Path,
    free_port: Callable[[], int],
    proxy_type: Any,
    expected: dict[str, Any],
    eventually: Callable[[Callable[[], bool]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The device has ended, and the counting proxy is closed, before the trainer goes on."""
    run = Run(zygote, bundle_dir, tmp_path / "run", free_port(), STEPS, more=ONCE)
    trainer = run.trainer()
    eventually((run.trainer_dir / "endpoint").exists)  # it listens: the proxy connects once
    with proxy_type(run.endpoint) as proxy:
        assert run.device(proxy.endpoint).wait(100) == 0, run.logs()
        sent = proxy.up, proxy.down
    assert trainer.wait(100) == 0, run.logs()
    compare(expected, outcome(run))
    lines = [json.loads(line) for line in (run.trainer_dir / "metrics.jsonl").read_text().splitlines()]
    up = [line["body_bytes_up"] for line in lines if line["kind"] == "step"]
    report = json.loads((run.where / "report.json").read_text())
    assert sum(up[11:]) == 0
    assert report["bytes_total_up"] == pytest.approx(sent[0], rel=0.01)
    assert report["bytes_total_down"] == pytest.approx(sent[1], abs=100)  # the last acknowledgement is not counted
    with capsys.disabled():
        print(
            f"\n{sent[0]} bytes up and {sent[1]} down in all; bodies: first epoch {sum(up[:11])}, later {sum(up[11:])}"
        )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_epoch_that_is_kept_has_its_own_precision(
    zygote: Zygote, bundle_dir: Path, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """Two epochs are sent, the first in int8; the trainer is killed while it goes on alone with both."""
    more = (*ONCE, "--send-epochs", "2", "--precision", "int8,pca1,fp32")
    runs = {
        name: Run(zygote, bundle_dir, tmp_path / name, free_port(), STEPS, more=more)
        for name in ("undisturbed", "killed")
    }
    trainer, device = runs["undisturbed"].trainer(), runs["undisturbed"].device(runs["undisturbed"].endpoint)
    assert device.wait(100) == 0, runs["undisturbed"].logs()
    assert trainer.wait(100) == 0, runs["undisturbed"].logs()
    lines = [json.loads(line) for line in (runs["undisturbed"].device_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["precision"] for line in lines if line["kind"] == "step"] == ["int8"] * 11 + ["pca1"] * 11
    assert kills_of(runs["killed"], "trainer", TRAINER_DIES["alone, after a step"]) == 1
    compare(outcome(runs["undisturbed"]), outcome(runs["killed"]))
