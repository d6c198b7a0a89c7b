"""A trainer goes on without a device that has sent everything; who cannot have that is refused before a step."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from adc_edge.cloud_trainer.checkpoints import TrainerCheckpoints
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.cloud_trainer.store.alone import AloneTraining
from adc_edge.cloud_trainer.store.batches import GROUP_BYTES
from adc_edge.cloud_trainer.store.stores import ActivationStores
from adc_edge.errors import CheckpointError, RefusedError
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.checkpoint import checkpoint_name, checkpoint_steps, load_checkpoint, save_checkpoint
from adc_edge.storage.position import Position
from adc_edge.storage.run_dir import STORE, RunDir
from adc_edge.wire.fleet_messages import SentSteps
from adc_edge.wire.messages import Evaluated
from tests.cloud_trainer.store.messages import OnceDevice
from tests.serving import logged, serving
from tests.stub_device import Device

SENT, PLANNED = 3, 10


class World:
    """A trainer that keeps its run, and what it has written."""

    def __init__(self, server: Server, sessions: SessionRegistry, run: Path) -> None:
        self.server, self.sessions, self.run = server, sessions, run

    def lines(self, kind: str) -> list[dict[str, Any]]:
        lines = map(json.loads, (self.run / "metrics.jsonl").read_text().splitlines())
        return [line for line in lines if line["kind"] == kind]

    def finished(self) -> bool:
        return self.sessions.finished() == 1


@contextmanager
def trainer(
    bundle: Bundle, training: HeadTraining, run: Path, most_bytes: float = 1e9, waits: bool = False, every: int = 2
) -> Iterator[World]:
    with ExitStack() as stack:
        run_dir = stack.enter_context(closing(RunDir(run, {}, {})))
        sessions = SessionRegistry(run_dir.journal, stores=ActivationStores(run / STORE, most_bytes))
        checkpoints = TrainerCheckpoints(training, sessions, run_dir, every)
        checkpoints.resume()
        server = Server(bundle, training, "tcp://127.0.0.1:*", sessions, checkpoints)
        if not waits:
            server.between = AloneTraining(bundle.manifest, training, sessions, checkpoints, seed=0).work
        stack.enter_context(serving(server))
        yield World(server, sessions, run)


@contextmanager
def left_alone(
    bundle: Bundle, training: HeadTraining, run: Path, devices: int = 1, group_bytes: int = GROUP_BYTES
) -> Iterator[tuple[SessionRegistry, AloneTraining]]:
    """Have devices send all to a trainer that then ends; the test does the steps after that one by one."""
    with closing(RunDir(run, {}, {})) as run_dir:
        sessions = SessionRegistry(run_dir.journal, stores=ActivationStores(run / STORE, 1e9))
        checkpoints = TrainerCheckpoints(training, sessions, run_dir)
        with serving(Server(bundle, training, "tcp://127.0.0.1:*", sessions, checkpoints)) as server:
            for number in range(1, devices + 1):
                device = OnceDevice(bundle, server.endpoint, SENT, PLANNED)
                device.number = device.incarnation = number
                send_all(device, evaluate=False)
        yield sessions, AloneTraining(bundle.manifest, training, sessions, checkpoints, 0, group_bytes=group_bytes)


@pytest.fixture
def no_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that was started again waits for no device that might ask once more."""
    monkeypatch.setattr("adc_edge.cloud_trainer.store.alone._FAREWELL_S", 0.0)


no_wait = pytest.mark.usefixtures("no_farewell")


def send_all(device: OnceDevice, evaluate: bool = True) -> None:
    """Do the device's steps, and say farewell."""
    device.session.open(30)
    for number in range(device.next_step, device.sends.steps):
        device.step(number)
    if evaluate:
        device.session.submit(*device.evaluation())
        assert isinstance(device.session.result(60)[0], Evaluated)
    assert device.session.close_session()
    device.session.close()


def test_a_device_that_begins_anew_while_its_old_run_goes_on_is_told_of(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    """`serve --fresh` on the device alone: the head would learn from both runs without a word."""
    with trainer(bundle, training, tmp_path / "run", waits=True) as world, logged() as lines:
        send_all(OnceDevice(bundle, world.server.endpoint, SENT, PLANNED))
        again = OnceDevice(bundle, world.server.endpoint, SENT, PLANNED)
        again.number = again.incarnation = 2
        send_all(again)
    told = [line for line in lines if "older run" in line]
    (line,) = told
    assert f"{PLANNED - SENT} steps of an older run of that name are done alone" in line


def test_the_trainer_goes_on_alone_to_the_planned_step_and_deletes_what_it_kept(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with trainer(bundle, training, tmp_path / "run") as world:
        send_all(OnceDevice(bundle, world.server.endpoint, SENT, PLANNED))
        eventually(world.finished)
    assert training.steps == PLANNED
    steps = world.lines("step")
    assert [line["step"] for line in steps] == list(range(PLANNED))
    assert [line["head_step"] for line in steps] == list(range(1, PLANNED + 1))
    assert [line["body_bytes_up"] > 0 for line in steps] == [True] * SENT + [False] * (PLANNED - SENT)
    assert {line["images"] for line in steps} == {8}
    judged = world.lines("evaluation")
    assert [(line["step"], line["images"]) for line in judged] == [(s, 6) for s in (SENT, 4, 6, 8, PLANNED)]
    assert not list((tmp_path / "run" / STORE).iterdir())


def test_a_device_that_comes_again_is_told_that_it_is_needed_no_more(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with trainer(bundle, training, tmp_path / "run") as world:
        device = OnceDevice(bundle, world.server.endpoint, SENT, PLANNED)
        send_all(device)
        for done in (False, True):
            again = OnceDevice(bundle, world.server.endpoint, SENT, PLANNED)
            again.next_step = SENT if done else 1  # or at an older checkpoint
            again.session.open(30)
            assert again.session.welcome is not None
            assert again.session.welcome.stored == SENT
            again.session.close()
            eventually(world.finished)
        longer = OnceDevice(bundle, world.server.endpoint, SENT, PLANNED + 5)
        longer.next_step = SENT
        with pytest.raises(RefusedError, match="what the device sent is deleted"):
            longer.session.open(30)
        longer.session.close()


@no_wait
def test_the_same_device_with_more_steps_makes_the_run_longer_also_after_a_restart(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    run = tmp_path / "run"
    with trainer(bundle, training, run) as world:
        world.server.between = lambda busy: False
        send_all(OnceDevice(bundle, world.server.endpoint, SENT, PLANNED))
        longer = OnceDevice(bundle, world.server.endpoint, SENT, PLANNED + 4)
        longer.next_step = SENT
        longer.session.open(30)
        longer.session.close()
    with trainer(bundle, training, run) as world:
        eventually(world.finished)
    assert training.steps == PLANNED + 4


def test_a_run_is_not_made_shorter_than_the_trainer_has_come(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with trainer(bundle, training, tmp_path / "run") as world:
        work, world.server.between = world.server.between, lambda busy: False
        send_all(OnceDevice(bundle, world.server.endpoint, SENT, PLANNED))
        shorter = OnceDevice(bundle, world.server.endpoint, SENT, SENT - 1)
        shorter.next_step = SENT - 1
        with pytest.raises(RefusedError, match="has done"):
            shorter.session.open(30)
        shorter.session.close()
        world.server.between = work
        eventually(world.finished)
    assert training.steps == PLANNED


@no_wait
def test_a_checkpoint_without_the_session_gets_it_from_the_store(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    """The newest checkpoint may be damaged: the steps that the device has sent are then repeated without it."""
    run, before = tmp_path / "run", {name: value.copy() for name, value in training.arrays().items()}
    with trainer(bundle, training, run, 1e9) as world:
        world.server.between = lambda busy: False  # it does not go on yet
        send_all(OnceDevice(bundle, world.server.endpoint, SENT, PLANNED))
        live = [line["loss"] for line in world.lines("step")]
    for checkpoint in run.glob("checkpoint-*"):
        checkpoint.unlink()
    training.restore(before, 0)
    with trainer(bundle, training, run) as world:
        eventually(world.finished)
    assert [line["loss"] for line in world.lines("step")][:SENT] == live
    assert training.steps == PLANNED


def late(bundle: Bundle, world: World, first: int = 2) -> OnceDevice:
    """A device whose trunk learns for two steps; five more are kept, of a run of twelve."""
    return OnceDevice(bundle, world.server.endpoint, LATE_SENT, LATE_PLANNED, first=first)


LATE_SENT, LATE_PLANNED = 7, 12


@no_wait
def test_what_a_trunk_sent_while_it_learned_is_learned_once(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    run = tmp_path / "run"
    with trainer(bundle, training, run, waits=True) as world:
        device = late(bundle, world)
        send_all(device)
        assert device.session.welcome is not None
        assert device.session.welcome.keeps_from == 2
        kept = sorted(path.name for path in run.glob(f"{STORE}/*/steps/0*"))
        assert kept == [f"{number:08d}-0" for number in range(2, LATE_SENT)]
    with trainer(bundle, training, run) as world:
        eventually(world.finished)
    assert [line["step"] for line in world.lines("step")] == list(range(LATE_PLANNED))
    assert training.steps == LATE_PLANNED


def test_trunks_of_several_devices_freeze_each_at_its_own_step(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    run = tmp_path / "run"
    with trainer(bundle, training, run, waits=True) as world:
        work = AloneTraining(bundle.manifest, training, world.sessions, world.server._checkpoints, seed=0).work
        devices = [late(bundle, world, first) for first in (2, 4, 0)]
        for number, device in enumerate(devices, 1):
            device.number = device.incarnation = number
            device.session.open(30)
        for step in range(LATE_SENT):  # in turns
            for device in devices:
                device.step(step)
        for device in devices:
            assert device.session.close_session()
            device.session.close()
        kept = [len(list(run.glob(f"{STORE}/{number:016x}/steps/0*"))) for number in (1, 2, 3)]
        assert kept == [LATE_SENT - 2, LATE_SENT - 4, LATE_SENT]
        world.server.between = work
        eventually(lambda: world.sessions.finished() == 3)
    for number in (1, 2, 3):
        mine = [line["step"] for line in world.lines("step") if line["session"] == f"{number:016x}"]
        assert mine == list(range(LATE_PLANNED))


@no_wait
@pytest.mark.parametrize("every", [0, 3])
def test_either_of_the_two_newest_checkpoints_suffices_once_the_device_has_left(
    every: int,
    bundle: Bundle,
    training: HeadTraining,
    tmp_path: Path,
    eventually: Callable[[Callable[[], bool]], None],
) -> None:
    """Also where none was due since the trunk was frozen: one precedes the first step that is kept."""
    run = tmp_path / "run"
    with trainer(bundle, training, run, waits=True, every=every) as world:
        send_all(late(bundle, world))
    older, newer = checkpoint_steps(run)
    assert (older, newer) == (2 if not every else 6, LATE_SENT)
    (run / checkpoint_name(newer)).write_bytes(b"damaged")
    losses = [line["loss"] for line in world.lines("step")]
    with trainer(bundle, training, run) as world:
        eventually(world.finished)
    assert [line["loss"] for line in world.lines("step")][:LATE_SENT] == losses
    assert training.steps == LATE_PLANNED


def test_a_trainer_older_than_what_it_kept_says_so_and_loses_no_step(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    """Neither the store nor metrics and the stores of other sessions that are not whole yet; other settings neither."""
    run, before = tmp_path / "run", {name: value.copy() for name, value in training.arrays().items()}
    with trainer(bundle, training, run, waits=True) as world:
        send_all(late(bundle, world))
        other = late(bundle, world, first=0)
        other.number = other.incarnation = 2
        other.session.open(30)
        other.step(0)
        other.session.close()
    newest = load_checkpoint(run / checkpoint_name(checkpoint_steps(run)[-1]))
    for checkpoint in run.glob("checkpoint-*"):
        checkpoint.unlink()
    training.restore(before, 0)
    kept = [(run / "metrics.jsonl").read_bytes(), sorted(path.name for path in run.glob(f"{STORE}/*/*/0*"))]
    assert kept[0].count(b'"kind": "step"') == LATE_SENT + 1
    assert len(list(run.glob(f"{STORE}/*/steps/0*"))) == LATE_SENT - 2 + 1
    sessions = newest.meta["sessions"]
    late_session = next(number for number, record in sessions.items() if record["applied"] == LATE_SENT)
    for records, words in (
        (None, "no checkpoint is there"),
        ({}, "does not know this session"),
        ({late_session: sessions[late_session] | {"applied": 1}}, "is of step 1 of this session"),
    ):
        if records is not None:
            save_checkpoint(run, 1, newest.arrays, {"sessions": records})
        with (
            pytest.raises(CheckpointError, match=rf"steps from 2 on, and (.|\n)*{words}(.|\n)*delete"),
            trainer(bundle, training, run),
        ):
            pass
        assert training.steps == 0
        assert kept == [(run / "metrics.jsonl").read_bytes(), sorted(p.name for p in run.glob(f"{STORE}/*/*/0*"))]
    (run / checkpoint_name(1)).unlink()
    (run / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(CheckpointError, match="seed was None, is 1"):
        RunDir(run, {"seed": 1}, {})
    assert len(list(run.glob(f"{STORE}/*/steps/0*"))) == LATE_SENT - 2 + 1


@pytest.mark.parametrize("wish", [SentSteps(LATE_SENT, 0, 2, 3), SentSteps(LATE_SENT + 1, 0, 2, 2)])
@pytest.mark.parametrize("done", [3, LATE_SENT])
def test_a_device_that_tells_other_steps_than_at_its_start_is_refused_when_it_says_hello(
    wish: SentSteps, done: int, bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    """Not at its end, where the trainer would miss a step; also after a restart, and once the trainer needs it no more.

    Its number of images has changed, and it is of a version that does not look at that itself.
    """
    run = tmp_path / "run"

    def again(world: World) -> OnceDevice:
        device = late(bundle, world)
        device.incarnation, device.next_step = 2, min(done, world.server.sessions.records()[1].applied)
        return device

    with trainer(bundle, training, run, waits=True) as world:
        device = late(bundle, world)
        if done == LATE_SENT:
            send_all(device)
        else:
            device.session.open(30)
            for number in range(done):
                device.step(number)
            device.session.close()
    for _ in range(2):
        with trainer(bundle, training, run, waits=True) as world:
            moved = again(world)
            moved.sends = wish
            assert re.search(r"7 steps, with a trunk frozen from step 2 on, as when its session began", refusal(moved))
    for path in run.glob(f"{STORE}/*/begun.json"):
        path.unlink()  # as of version 0.13
    with trainer(bundle, training, run, waits=True) as world:
        same = again(world)
        same.session.open(30)
        assert same.session.welcome is not None
        assert same.session.welcome.stored == (LATE_SENT if done == LATE_SENT else 0)
        same.session.close()


def test_a_late_store_with_nothing_in_it_is_refused(bundle: Bundle, training: HeadTraining, tmp_path: Path) -> None:
    with trainer(bundle, training, tmp_path / "run") as world:
        assert "a step at least with a frozen trunk" in refusal(late(bundle, world, first=LATE_SENT))


def refusal(device: Device) -> str:
    try:
        with pytest.raises(RefusedError) as refused:
            device.session.open(30)
    finally:
        device.session.close()
    return str(refused.value)


def test_a_trainer_without_a_store_refuses_the_wish(server: Server, bundle: Bundle) -> None:
    text = refusal(OnceDevice(bundle, server.endpoint, SENT, PLANNED))
    assert "--send-epochs" in text
    assert "no run directory (--run)" in text


def test_more_bytes_than_there_is_room_for_are_refused_before_the_first_step(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    with trainer(bundle, training, tmp_path / "run", 1e6) as world:
        text = refusal(OnceDevice(bundle, world.server.endpoint, SENT, PLANNED, told_bytes=2_000_000))
        assert "--store-max 1.0 MB" in text
        modest = OnceDevice(bundle, world.server.endpoint, SENT, PLANNED, told_bytes=100_000)
        modest.session.open(30)
        modest.session.close()


def test_a_device_that_is_done_is_not_refused_for_want_of_room(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with trainer(bundle, training, tmp_path / "run", 1e6) as world:
        send_all(OnceDevice(bundle, world.server.endpoint, SENT, PLANNED, told_bytes=100_000))
        eventually(world.finished)
        other = OnceDevice(bundle, world.server.endpoint, SENT, PLANNED, told_bytes=950_000)
        other.number = other.incarnation = 2
        other.session.open(30)
        again = OnceDevice(bundle, world.server.endpoint, SENT, PLANNED, told_bytes=100_000)
        again.next_step = SENT
        again.session.open(30)
        assert again.session.welcome is not None
        assert again.session.welcome.stored == SENT
        again.session.close()
        other.session.close()


def test_a_message_beyond_the_limit_is_refused_and_changes_nothing(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    with trainer(bundle, training, tmp_path / "run", 5_000) as world:
        device = OnceDevice(bundle, world.server.endpoint, SENT, PLANNED)
        device.session.open(30)
        device.step(0)
        with pytest.raises(RefusedError, match="larger --store-max"):
            device.step(1)
        device.session.close()
        assert training.steps == 1


def test_a_store_is_asked_for_by_the_wish_alone(bundle: Bundle, training: HeadTraining, tmp_path: Path) -> None:
    with trainer(bundle, training, tmp_path / "run") as world:
        device = Device(bundle, world.server.endpoint)
        device.session.open(30)
        device.step(0)
        assert device.session.welcome is not None
        assert device.session.welcome.stored is UNSET
        device.session.close()
    assert not (tmp_path / "run" / STORE).exists()


def test_a_damaged_record_ends_the_training_in_words(bundle: Bundle, training: HeadTraining, tmp_path: Path) -> None:
    with left_alone(bundle, training, tmp_path / "run") as (sessions, alone):
        (record,) = (tmp_path / "run" / STORE).glob("*/steps/00000001-0")
        record.write_bytes(record.read_bytes()[:-3])
        with pytest.raises(CheckpointError, match="00000001-0: missing or damaged"):
            all(alone.work(False) for _ in range(10 * PLANNED))
    assert not next(iter(sessions)).record.finished


def test_a_device_sends_nothing_more_to_a_trainer_that_goes_on_alone(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    """Also to one that is back at a checkpoint before these steps: it would learn them twice."""
    run = tmp_path / "run"
    before = {name: value.copy() for name, value in training.arrays().items()}
    with trainer(bundle, training, run, waits=True) as world:
        send_all(OnceDevice(bundle, world.server.endpoint, SENT, PLANNED))
    for checkpoint in run.glob("checkpoint-*"):
        checkpoint.unlink()
    training.restore(before, 0)
    with trainer(bundle, training, run, waits=True) as world:
        for what in ("Step", "Evaluate"):
            device = OnceDevice(bundle, world.server.endpoint, SENT, PLANNED)
            device.session.open(30)
            device.session.trainer = Position(0)  # our device knows from its Welcome that nothing is needed
            device.session.submit(*(device.message(0) if what == "Step" else device.evaluation()))
            with pytest.raises(RefusedError, match=f"a {what} of step ., which this trainer does alone"):
                device.session.result(30)
            device.session.close()
        assert not world.lines("step")


def test_a_part_of_a_step_that_was_learned_before_is_not_learned_twice(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    with left_alone(bundle, training, tmp_path / "run") as (sessions, alone):
        session = next(iter(sessions))
        session.begin_step(2).images = session.begin_step(2).learned = 1
        assert alone.work(False)
        assert (session.applied, session.record.images) == (SENT + 1, 8 * (SENT + 1))


def test_a_fault_ends_the_training_once_the_others_are_done(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    with left_alone(bundle, training, tmp_path / "run", devices=2) as (sessions, alone):
        (tmp_path / "run" / STORE / f"{1:016x}" / "steps" / "00000001-0").write_bytes(b"damaged")
        with pytest.raises(CheckpointError, match="00000001-0: missing or damaged"):
            all(alone.work(False) for _ in range(10 * PLANNED))
    assert {session.id: session.record.finished for session in sessions} == {1: False, 2: True}


@pytest.mark.parametrize(("group_bytes", "most_groups"), [(0, 1), (1 << 30, 2)])
def test_what_all_sessions_keep_in_memory_is_bounded(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, group_bytes: int, most_groups: int
) -> None:
    with left_alone(bundle, training, tmp_path / "run", devices=2, group_bytes=group_bytes) as (sessions, alone):
        held = []
        while alone.work(False):
            held.append(alone.held_bytes)
        message_bytes = 4 * 4 * 7 * bundle.manifest.dim
        steps_of_a_group = 1 if group_bytes == 0 else SENT
        assert max(held) == most_groups * steps_of_a_group * message_bytes
        assert sessions.finished() == 2


@no_wait
def test_half_a_step_is_never_learned(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    """A step of two micro-batches, one of which was damaged while the trainer was away."""
    run = tmp_path / "run"
    with trainer(bundle, training, run, waits=True) as world:
        device = OnceDevice(bundle, world.server.endpoint, SENT, PLANNED)
        device.micro_batches = 2
        device.session.open(30)
        for number in range(SENT):
            for part in range(2):
                device.send(number, part)
                device.take()
        assert device.session.close_session()
        device.session.close()
    (record,) = (run / STORE).glob("*/steps/00000001-1")
    whole = record.read_bytes()
    record.write_bytes(whole[:-3])
    for _ in range(2):
        with pytest.raises(CheckpointError, match="00000001-1: missing or damaged"), trainer(bundle, training, run):
            pass
    record.write_bytes(whole)
    with trainer(bundle, training, run) as world:
        eventually(world.finished)
        assert {line["images"] for line in world.lines("step")} == {16}


def test_the_wish_has_few_bytes() -> None:
    assert len(msgspec.msgpack.encode(SentSteps(3))) < 10
