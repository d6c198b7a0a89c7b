"""Scheduling with real sockets: time by priority, no device starves another, pauses, memory, merged passes."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from adc_edge.cloud_trainer.checkpoints import TrainerCheckpoints
from adc_edge.cloud_trainer.fleet.device_fleet import DeviceFleet
from adc_edge.cloud_trainer.fleet.settings import FleetSettings
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.scheduling.control import FleetControl, SessionControl, change_control
from adc_edge.cloud_trainer.scheduling.messages import QueuedMessage
from adc_edge.cloud_trainer.server import Server
from adc_edge.codec.trunk_changes import encode_changes
from adc_edge.data.sources import ArraySplit, Dataset
from adc_edge.defaults import MergePasses
from adc_edge.edge_runtime.classes.labels import DeviceClasses
from adc_edge.errors import RefusedError
from adc_edge.planning.profile import TrainerShare
from adc_edge.storage.bundle import TRUNK, Bundle
from adc_edge.storage.fleet_trunk import newest_fleet_trunk
from adc_edge.storage.run_dir import RunDir
from adc_edge.wire.fleet_messages import TrunkDelta
from adc_edge.wire.messages import Gradient
from tests.cloud_trainer.scheduling.devices import FleetDevice, fleet_device
from tests.serving import logged, serving

Eventually = Callable[[Callable[[], bool]], None]


@contextmanager
def kept_server(
    bundle: Bundle,
    training: HeadTraining,
    run: Path,
    merge_passes: MergePasses = "off",
    bind: str = "tcp://127.0.0.1:*",
    terms: FleetSettings | None = None,
) -> Iterator[Server]:
    """A trainer with a run directory, served by a thread."""
    with closing(RunDir(run, {"role": "trainer", "mode": "parallel"}, {})) as run_dir:
        sessions = SessionRegistry(run_dir.journal)
        checkpoints = TrainerCheckpoints(training, sessions, run_dir, 10)
        checkpoints.resume()
        fleet = DeviceFleet(terms or FleetSettings(), bundle, sessions, checkpoints.record, run)
        server = Server(bundle, training, bind, sessions, checkpoints, fleet=fleet, merge_passes=merge_passes)
        with serving(server):
            yield server


def seconds(answers: list[Gradient]) -> float:
    return sum(answer.seconds_cloud + (answer.seconds_codec or 0.0) for answer in answers)


class Turns:
    """Notes on a server: whose turn it is while two sessions wait, and the time that is counted for each."""

    def __init__(self, server: Server) -> None:
        waiting = server.sessions.waiting
        self.taken: list[int] = []  # sessions, each taken while the other one waited too
        self.least: list[bool] = []  # whether it had the least used time over its priority
        self.seconds: defaultdict[int, float] = defaultdict(float)
        self._fair, self._pop, self._charge = waiting.fair, waiting.pop, waiting.fair.charge
        waiting.pop, waiting.fair.charge = self._noted, self._counted  # type: ignore[method-assign]

    def _noted(self) -> list[QueuedMessage]:
        used = {key: self._fair._used[key] for key in self._fair._items if not self._fair.is_paused(key)}
        taken = self._pop()
        if len(used) > 1:
            self.taken.append(taken[0].key)
            self.least.append(used[taken[0].key] == min(used.values()))
        return taken

    def _counted(self, key: int, seconds: float) -> None:
        self.seconds[key] += seconds
        self._charge(key, seconds)


@pytest.mark.parametrize("priority", [1.0, 3.0])
def test_head_time_is_shared_by_priority_whatever_the_size_of_the_messages(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, priority: float, eventually: Eventually
) -> None:
    with kept_server(bundle, training, tmp_path / "run") as server:
        turns = Turns(server)
        change_control(tmp_path / "run", f"{1:016x}", lambda old: SessionControl(priority=priority))
        eventually(lambda: server.sessions.waiting.fair.priority(1) == priority)
        small = fleet_device(bundle, server.endpoint, 1, micro_batches=32, clusters=32)
        large = fleet_device(bundle, server.endpoint, 2, micro_batches=32, clusters=256)
        with small.training(12, 32) as few, large.training(3, 256) as many:
            eventually(lambda: min(map(turns.taken.count, (1, 2))) > 8)
    assert all(turns.least)  # by which time is shared, as the tests of the queue show
    assert turns.seconds[1] > seconds(few)  # the time of the answers, and what comes before and after
    assert turns.seconds[2] > seconds(many)


def test_a_device_that_asks_now_and_then_waits_for_one_message_of_a_greedy_one_and_not_for_its_queue(
    server: Server, bundle: Bundle
) -> None:
    greedy = fleet_device(bundle, server.endpoint, 1, micro_batches=32, clusters=128)
    rare = fleet_device(bundle, server.endpoint, 2)
    turns, before = Turns(server), []
    with greedy.training(8, 128):
        rare.session.open(30)
        for step in range(12):
            time.sleep(0.02)
            begun = len(turns.taken)
            rare.step(step)
            before.append(turns.taken[begun:].count(1))
        rare.session.close()
    assert sorted(before)[len(before) // 2] <= 1  # messages that went first while it waited; FIFO: eight
    assert 2 in turns.taken


def test_a_paused_device_waits_keeps_its_session_and_goes_on_where_it_was(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Eventually
) -> None:
    run = tmp_path / "run"
    with kept_server(bundle, training, run) as server, logged("adc_edge") as lines:
        one, two = (fleet_device(bundle, server.endpoint, number) for number in (1, 2))
        with one.training() as held, two.training() as free:
            eventually(lambda: len(held) > 2 and len(free) > 2)
            begun = time.monotonic()
            change_control(run, f"{1:016x}", lambda old: SessionControl(paused=True))
            eventually(lambda: "the trainer has paused this device: its messages wait" in lines)
            count, others = len(held), len(free)
            eventually(lambda: len(free) > others + 10)
            assert len(held) == count  # it was told after the last answer
            change_control(run, f"{1:016x}", lambda old: SessionControl())
            eventually(lambda: len(held) > count + 2)
            paused_s = time.monotonic() - begun
            assert "the trainer has this device go on" in lines
        assert one.session.outages == 0
        assert [answer.step for answer in held] == list(range(len(held)))
    share = held[count].share  # told as a wait, not as time of the link
    assert isinstance(share, TrainerShare)
    assert 0 < share.waited_or_expected_s <= paused_s
    assert [line for line in lines if line.startswith("device 'test' ")][-2:] == [
        "device 'test' is paused: its messages wait",
        "device 'test' goes on",
    ]


def test_a_device_that_was_paused_before_the_trainer_starts_is_told_when_it_joins(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Eventually
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "fleet.json").write_bytes(msgspec.json.encode(FleetControl({f"{1:016x}": SessionControl(paused=True)})))
    with kept_server(bundle, training, run) as server, logged("adc_edge") as lines:
        eventually(lambda: server.sessions.waiting.fair.is_paused(1))
        with fleet_device(bundle, server.endpoint, 1).training() as answers:
            eventually(lambda: server.sessions.waiting.held_bytes() > 0)
            assert lines.count("the trainer has paused this device: its messages wait") == 1
            (run / "fleet.json").write_text("{")
            eventually(lambda: any("the orders before it stay" in line for line in lines))
            assert not answers
            (run / "fleet.json").unlink()
            eventually(lambda: len(answers) > 0)


def test_a_paused_device_that_starts_again_tells_its_classes_joins_and_waits(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Eventually
) -> None:
    run, images = tmp_path / "run", ArraySplit(np.zeros((2, 4, 4), np.uint8), np.array([0, 1]))
    classes = DeviceClasses(Dataset(images, images, ["cat", "dog"], True), bundle.manifest)
    with kept_server(bundle, training, run) as server:
        change_control(run, f"{1:016x}", lambda old: SessionControl(paused=True))
        eventually(lambda: server.sessions.waiting.fair.is_paused(1))
        device = FleetDevice(bundle, server.endpoint, 1, classes=classes)
        device.session.open(30)  # or it would be: no trainer
        assert server._answers._classes.names == ["cat", "dog"]
        device.send(0, 0)
        eventually(lambda: server.sessions.waiting.held_bytes() > 0)
        change_control(run, f"{1:016x}", lambda old: SessionControl())
        device.take()
        device.session.close()


def test_a_process_whose_message_waits_is_told_when_a_newer_one_takes_its_session_over(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Eventually
) -> None:
    run = tmp_path / "run"
    with kept_server(bundle, training, run) as server:
        change_control(run, f"{1:016x}", lambda old: SessionControl(paused=True))
        eventually(lambda: server.sessions.waiting.fair.is_paused(1))
        old, new = (fleet_device(bundle, server.endpoint, 1) for _ in range(2))
        new.incarnation = 2
        old.session.open(30)
        old.send(0, 0)
        eventually(lambda: server.sessions.waiting.held_bytes() > 0)
        new.session.open(30)
        with pytest.raises(RefusedError, match="superseded"):
            old.take()
        assert server.sessions.waiting.held_bytes() == 0
        for device in (old, new):
            device.session.close()


def test_the_time_of_a_merged_pass_that_fails_is_counted_for_the_device_whose_step_is_refused(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Eventually
) -> None:
    run = tmp_path / "run"
    with kept_server(bundle, training, run, "sum") as server:
        turns, together = Turns(server), server._answers.answer_together

        def slow(requests: Any) -> Any:
            time.sleep(0.5)
            return together(requests)

        server._answers.answer_together = slow  # type: ignore[method-assign]
        for session in (1, 2):
            change_control(run, f"{session:016x}", lambda old: SessionControl(paused=True))
        eventually(lambda: all(map(server.sessions.waiting.fair.is_paused, (1, 2))))
        honest, hostile = (fleet_device(bundle, server.endpoint, number) for number in (1, 2))
        for device in (honest, hostile):
            device.session.open(30)
        honest.send(0, 0)
        message, body = hostile.message(0)
        hostile.session.submit(message, np.full(1, np.nan, "<f4").tobytes() + body[4:])
        eventually(lambda: len(list(server.sessions.waiting.fair)) == 2)
        begun = turns.seconds[2]
        (run / "fleet.json").unlink()
        honest.take()
        with pytest.raises(RefusedError, match=r"refused \(nan\)"):
            hostile.take()
        honest.session.close()
        hostile.session.close()
    assert turns.seconds[2] - begun >= 0.5
    assert training.steps == 1


def test_a_paused_device_that_reconnects_sends_the_header_of_its_waiting_message_alone(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Eventually
) -> None:
    run = tmp_path / "run"
    with kept_server(bundle, training, run) as server:
        device = fleet_device(bundle, server.endpoint, 1)
        change_control(run, f"{1:016x}", lambda old: SessionControl(paused=True))
        eventually(lambda: server.sessions.waiting.fair.is_paused(1))
        device.session.open(30)
        device.send(0, 0)
        eventually(lambda: server.sessions.waiting.held_bytes() > 0)
        device.session.channel.disconnect()
        device.session.open(30)
        assert server.sessions.waiting.held_bytes() == 0
        message, body = device.message(0)
        assert device.session.welcome is not None
        assert (device.session.welcome.transfer, device.session.welcome.received_bytes) == (message.transfer, len(body))
        change_control(run, f"{1:016x}", lambda old: SessionControl())
        device.session._request(message, body)
        answer, _ = device.take()
        device.session.close()
    assert (answer.step, training.steps) == (0, 1)
    assert device.session.repeated[0] < 2000


def test_waiting_messages_count_for_what_the_trainer_may_hold(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Eventually
) -> None:
    run = tmp_path / "run"
    with kept_server(bundle, training, run) as server, logged() as lines:
        change_control(run, f"{1:016x}", lambda old: SessionControl(paused=True))
        eventually(lambda: server.sessions.waiting.fair.is_paused(1))
        paused, other = (fleet_device(bundle, server.endpoint, number, micro_batches=8) for number in (1, 2))
        size = len(paused.message(0)[1])
        server._arriving.most_bytes = 8 * size  # a quarter for one session
        paused.session.open(30)
        for part in range(4):
            paused.send(0, part)
        eventually(lambda: any("more than can be held now" in line for line in lines))
        other.session.open(30)
        for part in range(8):
            other.send(0, part)
            other.take()
        assert server.sessions.waiting.held_bytes() <= 2 * size
        paused.session.close()
        other.session.close()


@pytest.mark.parametrize("how", ["sum", "each"])
def test_merged_passes_count_every_step_once_also_when_the_trainer_dies_in_between(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, how: MergePasses, eventually: Eventually
) -> None:
    run, merged, endpoint = tmp_path / "run", list[int](), "tcp://127.0.0.1:*"
    with ExitStack() as devices:
        answers: list[list[Gradient]] = []
        for last in (False, True):  # without a checkpoint at its end: the second process comes back older
            with kept_server(bundle, training, run, how, bind=endpoint) as server:
                count_merged(server, merged)
                endpoint = server.endpoint
                while len(answers) < 3:
                    device = fleet_device(bundle, endpoint, len(answers) + 1)
                    answers.append(devices.enter_context(device.training()))
                done = [len(one) for one in answers]
                for one, before in zip(answers, done, strict=True):
                    eventually(lambda one=one, before=before: len(one) > before + 8)  # type: ignore[misc]
                if last:
                    devices.close()
    for one in answers:
        assert [answer.step for answer in one] == list(range(len(one)))
    assert training.steps == sum(session.applied for session in server.sessions)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = sorted((line["session"], line["step"]) for line in lines if line["kind"] == "step")
    assert told == sorted((f"{one.id:016x}", step) for one in server.sessions for step in range(one.applied))
    assert max(merged) > 1


def test_merged_steps_go_with_rounds_of_the_trunk_and_with_the_end(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Eventually
) -> None:
    run, merged, terms = tmp_path / "run", list[int](), FleetSettings("averaged", 1, precision="fp32", devices=2)
    trunk = load_file(bundle.path / TRUNK)
    body = encode_changes({name: np.ones_like(value) for name, value in trunk.items()}, "fp32")
    with kept_server(bundle, training, run, "sum", terms=terms) as server:
        count_merged(server, merged)
        change = {f"{session:016x}": SessionControl(paused=True) for session in (1, 2)}
        (run / "fleet.json").write_bytes(msgspec.json.encode(FleetControl(change)))
        eventually(lambda: all(map(server.sessions.waiting.fair.is_paused, (1, 2))))
        devices = [fleet_device(bundle, server.endpoint, session) for session in (1, 2)]
        for device in devices:
            device.session.average_bytes = lambda answer: answer.body_bytes
            device.session.open(30)
            device.send(0, 0)
        eventually(lambda: len(list(server.sessions.waiting.fair)) == 2)
        (run / "fleet.json").unlink()
        for device in devices:
            device.take()
            delta = TrunkDelta(device.number, 1, 0, 1, len(body), 8, "fp32", last=True)
            device.session.submit(delta, body)
        answers = [device.session.result(60)[0] for device in devices]
        for device in devices:
            device.session.close_session()
            device.session.close()
        assert server.sessions.finished() == 2
    assert max(merged) == training.steps == 2
    assert [(answer.round, answer.devices) for answer in answers] == [(1, 2), (1, 2)]  # type: ignore[union-attr]
    kept = newest_fleet_trunk(run)
    assert kept is not None
    assert kept.learned == {1: 1, 2: 1}
    for name, value in trunk.items():
        np.testing.assert_array_equal(kept.weights[name], value + np.float32(1))


def count_merged(server: Server, merged: list[int]) -> None:
    """Note how many messages are answered together."""
    pop = server.sessions.waiting.pop

    def noted() -> list[QueuedMessage]:
        taken = pop()
        merged.append(len(taken))
        return taken

    server.sessions.waiting.pop = noted  # type: ignore[method-assign]
