"""Order of effects without a socket: a reply first, then optimizer and files; a goodbye only once it is durable."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import UNSET

from adc_edge.cloud_trainer.answers import Answers
from adc_edge.cloud_trainer.checkpoints import TrainerCheckpoints
from adc_edge.cloud_trainer.classes import HeadClasses
from adc_edge.cloud_trainer.fleet.device_fleet import DeviceFleet
from adc_edge.cloud_trainer.fleet.settings import FleetSettings
from adc_edge.cloud_trainer.guard import Refusals
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.limits import MessageLimits
from adc_edge.cloud_trainer.link.share import TrainerLoad
from adc_edge.cloud_trainer.registry import RequestContext, SessionRegistry
from adc_edge.cloud_trainer.scheduling.admission import Admission
from adc_edge.cloud_trainer.scheduling.merged import Merging
from adc_edge.cloud_trainer.store.stores import ActivationStores
from adc_edge.codec.precision import encode
from adc_edge.errors import ProtocolError
from adc_edge.method.labels import label_triples
from adc_edge.method.split import head_from_manifest
from adc_edge.optimizer.settings import OptimizerSettings, learning_rate
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.halves import best_heads
from adc_edge.storage.run_dir import STORE, RunDir
from adc_edge.wire.fleet_messages import SentSteps
from adc_edge.wire.framing import Assembler
from adc_edge.wire.headers import unpack_from_device
from adc_edge.wire.messages import VERSION, Bye, ByeAck, Fetch, Gradient, HeadKept, Hello, KeepHead, Step, Welcome
from tests.serving import logged


class Trainer:
    """The answers of a trainer to one device, session 1."""

    def __init__(self, bundle: Bundle, training: HeadTraining, run_dir: RunDir, one_session: bool = False) -> None:
        self.bundle, self.training, self.sessions = bundle, training, SessionRegistry(run_dir.journal, one_session)
        self.checkpoints = TrainerCheckpoints(training, self.sessions, run_dir)
        limits = MessageLimits.from_manifest(bundle.manifest, 64)
        record = self.checkpoints.record
        self.answers = Answers(
            bundle,
            training,
            self.sessions,
            limits=limits,
            checkpoints=self.checkpoints,
            refusals=Refusals(),
            classes=HeadClasses(bundle.manifest, run_dir),
            fleet=DeviceFleet(FleetSettings(), bundle, self.sessions, record),
            merging=Merging(),
            admission=Admission(self.sessions, record.presence, TrainerLoad(), 0, 2**30),
        )
        peer = self.sessions.peer(b"route", 5, "", lambda: Assembler(unpack_from_device, lambda message: 0))
        self.context = RequestContext(b"route", peer, "bbr", 20.0)

    def hello(self, session: int = 1, device: str = "orin", **more: Any) -> Welcome:
        hello = Hello(VERSION, self.bundle.digest, session, 1, device, 0, 0, 0, class_names=True, **more)
        (reply, _), after_send = self.answers.answer(self.context, hello, memoryview(b""))
        assert isinstance(reply, Welcome)
        assert after_send is None
        return reply


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def trainer(bundle: Bundle, training: HeadTraining, run: Path) -> Iterator[Trainer]:
    with closing(RunDir(run, {}, {})) as run_dir:
        yield Trainer(bundle, training, run_dir)


def step_message(bundle: Bundle, step: int) -> tuple[Step, memoryview]:
    rng = np.random.default_rng(step)
    activations = rng.standard_normal((4, 7, bundle.manifest.dim)).astype(np.float32)
    triples = label_triples(np.arange(8) % 4, rng.integers(0, 10, 8), 10)
    body = encode(activations, "fp32", triples.tobytes())
    return Step(1, step, 0, step + 1, len(body), 8, 4, 7, len(triples), "fp32", "fp32"), memoryview(body)


def test_the_optimizer_the_log_and_the_metrics_come_after_the_reply(trainer: Trainer, run: Path) -> None:
    trainer.hello()
    before = trainer.training.safetensors()
    (reply, _), after_send = trainer.answers.answer(trainer.context, *step_message(trainer.bundle, 0))
    assert isinstance(reply, Gradient)
    assert reply.down_mbit_s == 20.0
    log = run / "journal" / f"{1:016x}" / f"{0:08d}-0"
    assert (trainer.training.steps, trainer.training.safetensors() == before, log.exists()) == (0, True, False)
    assert (run / "metrics.jsonl").read_text() == ""
    assert after_send is not None
    after_send()
    assert (trainer.training.steps, trainer.training.safetensors() == before, log.exists()) == (1, False, True)
    assert json.loads((run / "metrics.jsonl").read_text())["head_step"] == 1


def rate_of_step(trainer: Trainer, session: int, step: int) -> float:
    """The learning rate with which the head learns a session's step."""
    message, body = step_message(trainer.bundle, step)
    _, after_send = trainer.answers.answer(trainer.context, msgspec.structs.replace(message, session=session), body)
    assert after_send is not None
    after_send()
    return float(trainer.training.optimizer._torch.param_groups[0]["lr"])


def test_a_cosine_ends_with_the_last_step_of_all_devices_also_over_a_restart(
    bundle: Bundle, training: HeadTraining, run: Path
) -> None:
    settings = OptimizerSettings(lr=1.0, schedule="cosine")
    rates = []
    for part in (range(2), range(2, 4)):  # another process each
        training = HeadTraining(head_from_manifest(bundle.manifest), settings)
        with closing(RunDir(run, {}, {})) as run_dir:
            trainer = Trainer(bundle, training, run_dir)
            trainer.checkpoints.resume()
            for session in (1, 2):
                if not part.start:
                    trainer.hello(session, steps=4)
                for step in part:  # in the second process the first device is back before the second one
                    trainer.hello(session, steps=4)
                    rates.append(rate_of_step(trainer, session, step))
            trainer.checkpoints.save()
    known_first = [learning_rate(settings, step, 4) for step in range(2)]  # before the second device has joined
    assert rates == pytest.approx([*known_first, *(learning_rate(settings, step, 8) for step in range(2, 8))])
    assert rates[6] > 0  # of the last quarter


def test_a_cosine_of_one_device_is_as_long_as_its_run(bundle: Bundle, run: Path) -> None:
    settings = OptimizerSettings(lr=1.0, schedule="cosine")
    training = HeadTraining(head_from_manifest(bundle.manifest), settings)
    with closing(RunDir(run, {}, {})) as run_dir:
        trainer = Trainer(bundle, training, run_dir)
        trainer.hello(steps=3)
        assert [rate_of_step(trainer, 1, step) for step in range(3)] == [
            learning_rate(settings, n, 3) for n in range(3)
        ]
        trainer.sessions.records()[1].finished = True
        trainer.hello(2)  # it does not tell the length of its run
        assert rate_of_step(trainer, 2, 0) == 1.0


def test_a_device_that_has_done_no_step_leaves_the_cosine_of_the_others_as_it_is(bundle: Bundle, run: Path) -> None:
    settings = OptimizerSettings(lr=1.0, schedule="cosine")
    training = HeadTraining(head_from_manifest(bundle.manifest), settings)
    with closing(RunDir(run, {}, {})) as run_dir, logged() as lines:
        trainer = Trainer(bundle, training, run_dir)
        trainer.hello(2, "new", steps=2**31)
        trainer.hello(steps=5)
        rates = [rate_of_step(trainer, 1, step) for step in range(2)]
        trainer.hello(2, "new", steps=20)
        rates.append(rate_of_step(trainer, 2, 0))
    assert rates == [learning_rate(settings, 0, 5), learning_rate(settings, 1, 5), learning_rate(settings, 2, 25)]
    assert [line for line in lines if "cosine" in line] == [
        "the head's cosine has 25 steps now, until now 5; device 'new' has most steps to come, 19"
    ]


def test_a_repeated_step_and_a_fetch_get_the_same_reply_and_leave_nothing_to_do(trainer: Trainer) -> None:
    trainer.hello()
    message, body = step_message(trainer.bundle, 0)
    (first, gradient), after_send = trainer.answers.answer(trainer.context, message, body)
    assert after_send is not None
    after_send()
    for again in (message, Fetch(1, 0, None, message.transfer)):
        (reply, same), after_send = trainer.answers.answer(trainer.context, again, body)
        assert (reply, bytes(same), after_send) == (first, bytes(gradient), None)
    assert trainer.training.steps == 1


def test_a_refused_step_changes_nothing(trainer: Trainer) -> None:
    trainer.hello()
    with pytest.raises(ProtocolError, match="step 3"):
        trainer.answers.answer(trainer.context, *step_message(trainer.bundle, 3))
    assert trainer.training.steps == 0
    assert trainer.sessions.records()[1].applied == 0


def test_the_end_of_a_session_is_acknowledged_once_a_checkpoint_knows_it(
    trainer: Trainer, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.hello()
    bye = Bye(1), memoryview(b"")

    def full(*_: object) -> None:
        raise OSError("no room")

    with monkeypatch.context() as disk, logged() as lines:
        disk.setattr(RunDir, "checkpoint", full)
        with pytest.raises(OSError, match="no room"):
            trainer.answers.answer(trainer.context, *bye)
        assert not trainer.sessions.records()[1].finished
        assert (trainer.sessions.finished(), lines) == (0, [])
    with logged() as lines:
        for _ in range(2):  # the acknowledgement may be lost
            (reply, _), _ = trainer.answers.answer(trainer.context, *bye)
            assert isinstance(reply, ByeAck)
    assert lines == ["device 'orin' is done after 0 steps"]
    assert len(list(run.glob("checkpoint-*"))) == 1
    assert trainer.sessions.finished() == 1


def steps(trainer: Trainer, count: int) -> None:
    trainer.hello()
    for step in range(trainer.training.steps, count):
        _, after_send = trainer.answers.answer(trainer.context, *step_message(trainer.bundle, step))
        assert after_send is not None
        after_send()


def keep(trainer: Trainer, step: int, held: int | None = None) -> str:
    (reply, _), _ = trainer.answers.answer(trainer.context, KeepHead(1, step, held), memoryview(b""))
    assert isinstance(reply, HeadKept)
    return reply.fault


def test_a_best_head_is_on_disk_before_the_answer_with_its_session_and_step(trainer: Trainer, run: Path) -> None:
    steps(trainer, 2)
    assert keep(trainer, 2) == ""
    (state,) = best_heads(run, 1).values()
    assert (state.learned, state.steps) == ({1: 2}, 2)
    head = trainer.training.head.vit.state_dict()
    assert all((head[name].numpy() == value).all() for name, value in state.weights().items())


def test_the_head_that_the_device_has_the_trunk_to_stays_beside_the_new_one(trainer: Trainer, run: Path) -> None:
    for step, held, kept in ((1, None, {1}), (2, 1, {1, 2}), (3, 1, {1, 3}), (4, 3, {3, 4}), (5, None, {5})):
        steps(trainer, step)
        assert keep(trainer, step, held) == ""
        assert best_heads(run, 1).keys() == kept


def test_a_step_that_is_past_is_kept_only_if_its_head_is_there(trainer: Trainer, run: Path) -> None:
    steps(trainer, 1)
    assert keep(trainer, 1) == ""
    before = best_heads(run, 1)[1].path.read_bytes()
    steps(trainer, 3)
    assert keep(trainer, 1) == ""
    assert best_heads(run, 1)[1].path.read_bytes() == before
    assert keep(trainer, 2, held=1) == "the trainer stands at step 3, and has not kept the head of step 2"
    assert best_heads(run, 1).keys() == {1}


def test_a_full_disk_refuses_a_best_head_and_the_one_before_stays(
    trainer: Trainer, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps(trainer, 1)
    keep(trainer, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    steps(trainer, 2)
    monkeypatch.setattr(RunDir, "keep", full)
    assert keep(trainer, 2, held=1) == "the trainer cannot write its head: No space left on device"
    assert best_heads(run, 1).keys() == {1}


def test_a_session_that_gives_way_takes_its_best_head_along(trainer: Trainer, run: Path) -> None:
    steps(trainer, 1)
    keep(trainer, 1)
    trainer.sessions._evict(next(iter(trainer.sessions)))
    assert not best_heads(run, 1)


def test_a_trainer_without_a_run_does_not_offer_to_keep_heads(
    bundle: Bundle, training: HeadTraining, trainer: Trainer
) -> None:
    assert trainer.hello().keeps_heads is True
    with closing(RunDir(None, {}, {})) as nowhere:
        other = Trainer(bundle, training, nowhere)
        welcome = other.hello()
        assert (welcome.keeps_heads, welcome.durable) == (UNSET, None)
        assert keep(other, 0) == "the trainer keeps nothing on disk"


def test_opening_a_session_logs_the_device_and_the_congestion_control(trainer: Trainer) -> None:
    with logged() as lines:
        trainer.hello()
    assert lines == ["device 'orin' at step 0, sending by bbr"]


def test_a_device_that_sends_all_its_steps_leaves_nothing_to_augment(trainer: Trainer, tmp_path: Path) -> None:
    trainer.sessions.stores = ActivationStores(tmp_path / STORE, 1e9, augments="--store-mix 1")
    with logged() as lines:
        trainer.hello()
        trainer.hello(session=2, device="nano", sends=SentSteps(3, 1))
    assert lines == [
        "device 'orin' at step 0, sending by bbr",
        "device 'orin' leaves no step to this trainer (serve --send-epochs): "
        "--store-mix 1 changes nothing of its training",
        "device 'nano' at step 0, sending by bbr",
    ]


@pytest.mark.parametrize(
    ("key_name", "told", "shown"),
    [
        (None, {"device": "ubuntu"}, "ubuntu"),
        (None, {"device": "lab bench", "named": True}, "lab bench"),
        ("orin-1", {"device": "ubuntu"}, "orin-1"),  # the host's name says no more
        ("orin-1", {"device": "lab bench", "named": True}, "orin-1 (lab bench)"),
        ("orin-1", {"device": "orin-1", "named": True}, "orin-1"),
    ],
)
def test_a_device_appears_under_the_name_of_its_key(
    trainer: Trainer, run: Path, key_name: str | None, told: dict[str, Any], shown: str
) -> None:
    trainer.context = dataclasses.replace(trainer.context, key_name=key_name)
    with logged() as lines:
        trainer.hello(**told)
        _, after_send = trainer.answers.answer(trainer.context, *step_message(trainer.bundle, 0))
    assert lines == [f"device {shown!r} at step 0, sending by bbr"]
    assert after_send is not None
    after_send()
    assert json.loads((run / "metrics.jsonl").read_text())["device"] == shown


def test_a_device_is_told_the_steps_of_others_that_its_head_begins_with(trainer: Trainer) -> None:
    assert trainer.hello().other_steps is UNSET
    trainer.training.steps = 72
    assert trainer.hello(session=2).other_steps == 72


def test_a_trainer_of_one_session_refuses_a_second_one_and_keeps_the_first(
    bundle: Bundle, training: HeadTraining, run: Path
) -> None:
    with closing(RunDir(run, {}, {})) as run_dir:
        trainer = Trainer(bundle, training, run_dir, one_session=True)
        trainer.hello()
        with pytest.raises(ProtocolError, match="a second session") as refusal:
            trainer.hello(session=2)
        assert "--fresh or another --run" in refusal.value.remedy
        assert trainer.hello().session == 1
