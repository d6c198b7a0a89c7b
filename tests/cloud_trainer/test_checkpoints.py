"""Checkpoints of a trainer without a socket: what they keep, when they are made, and the way back to one."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from adc_edge.cloud_trainer import checkpoints as module
from adc_edge.cloud_trainer.accumulator import StepAccumulator
from adc_edge.cloud_trainer.checkpoints import TrainerCheckpoints
from adc_edge.cloud_trainer.head import HeadTraining, Judged
from adc_edge.cloud_trainer.registry import RequestContext, SessionRegistry
from adc_edge.cloud_trainer.served_session import ServedSession, SessionRecord
from adc_edge.errors import CheckpointError
from adc_edge.storage.checkpoint import checkpoint_steps
from adc_edge.storage.run_dir import RunDir
from adc_edge.wire.framing import Assembler
from adc_edge.wire.headers import unpack_from_device
from adc_edge.wire.messages import Evaluate, Step
from tests.serving import logged


class TrainerState:
    """Head and sessions of a trainer on a run directory; a step here is a count without a gradient."""

    def __init__(self, training: HeadTraining, run_dir: RunDir, every: int) -> None:
        self.training, self.sessions = training, SessionRegistry(run_dir.journal)
        self.checkpoints = TrainerCheckpoints(training, self.sessions, run_dir, every)
        peer = self.sessions.peer(b"route", 5, "", lambda: Assembler(unpack_from_device, lambda message: 0))
        self.context = RequestContext(b"route", peer)
        self.checkpoints.resume()

    def applied(self) -> dict[int, int]:
        return {number: record.applied for number, record in self.sessions.records().items()}

    def step(self, session: int, bytes_up: int = 0) -> None:
        records = self.sessions.records()
        record = records.setdefault(session, SessionRecord("orin", "", 0))
        record.applied += 1
        self.sessions.restore(records)
        self.training.steps += 1
        totals = StepAccumulator(1)
        totals.bytes_up = bytes_up
        served = next(other for other in self.sessions if other.id == session)
        message = Step(session, record.applied - 1, 0, 1, bytes_up, 8, 4, 7, 4, "fp32", "fp32")
        self.checkpoints.record.step(served, message, totals, self.context, self.training.steps)
        self.checkpoints.count_steps([totals])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@contextmanager
def state(training: HeadTraining, run: Path | None, every: int = 2) -> Iterator[TrainerState]:
    with closing(RunDir(run, {}, {})) as run_dir:
        yield TrainerState(training, run_dir, every)


def test_checkpoints_are_made_when_due_and_the_older_one_is_durable(training: HeadTraining, run: Path) -> None:
    durable = []
    with state(training, run) as trainer:
        for _ in range(6):
            trainer.step(1)
            durable.append(trainer.checkpoints.durable(1))
        assert trainer.checkpoints.durable(2) == 0
    assert durable == [0, 0, 0, 2, 2, 4]
    assert checkpoint_steps(run) == [4, 6]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"], line["head_step"]) for line in lines] == [("step", n, n + 1) for n in range(6)]


def test_a_restart_resumes_at_the_newest_checkpoint(training: HeadTraining, run: Path) -> None:
    with state(training, run) as trainer:
        for session in (1, 2, 1, 1, 1):
            trainer.step(session)
    with logged() as lines, state(training, run) as again:
        assert again.applied() == {1: 3, 2: 1}
        assert training.steps == 4
        assert again.checkpoints.durable(1) == 0  # of the older checkpoint this process knows nothing
    assert lines == [f"resuming {run} at step 4"]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4  # the fifth is done again


def test_a_restart_keeps_the_evaluations_of_sessions_that_it_knows(training: HeadTraining, run: Path) -> None:
    """Their devices have the answers and do not evaluate again; steps after the checkpoint they do again."""
    with closing(RunDir(run, {}, {})) as run_dir:
        trainer = TrainerState(training, run_dir, every=2)
        for _ in range(3):
            trainer.step(1)
        for session in (1, 2):
            run_dir.metric(kind="evaluation", session=f"{session:016x}", step=3, head_step=3, images=8, accuracy=0.5)
    with state(training, run):
        pass
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [("step", 0), ("step", 1), ("evaluation", 3)]
    assert lines[-1]["session"] == "0000000000000001"


def test_devices_that_keep_many_bytes_get_a_checkpoint_out_of_turn(
    training: HeadTraining, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIMIT_BYTES", 200)
    with state(training, run, every=0) as trainer:
        for _ in range(5):
            trainer.step(1, bytes_up=60)
    assert checkpoint_steps(run) == [2, 4]


def test_a_run_that_is_not_kept_has_no_durable_step(training: HeadTraining) -> None:
    with state(training, None) as trainer:
        for _ in range(4):
            trainer.step(1)
        trainer.checkpoints.save()
        assert trainer.checkpoints.durable(1) is None
        assert not trainer.checkpoints.go_back(1, 0)
        assert trainer.applied() == {1: 4}


def test_a_checkpoint_that_cannot_be_written_is_logged_and_leaves_the_durable_steps(
    training: HeadTraining, run: Path
) -> None:
    with state(training, run) as trainer:
        for _ in range(4):
            trainer.step(1)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))  # metrics fit, a checkpoint does not
        try:
            with logged() as lines:
                trainer.step(1)
                trainer.step(1)
            with pytest.raises(OSError, match="checkpoint"):
                trainer.checkpoints.save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert len(lines) == 1
        assert lines[0].startswith("no checkpoint at step 6: ")
        assert trainer.checkpoints.durable(1) == 2
        assert checkpoint_steps(run) == [2, 4]
        trainer.checkpoints.save()
        assert trainer.checkpoints.durable(1) == 4


def test_metrics_that_cannot_be_written_are_logged_once(training: HeadTraining, run: Path) -> None:
    with state(training, run, every=0) as trainer:
        trainer.step(1)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, ((run / "metrics.jsonl").stat().st_size, limits[1]))
        try:
            with logged() as lines:
                trainer.step(1)
                trainer.step(1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        trainer.step(1)
    assert lines == ["no metrics of step 2: [Errno 27] File too large; going on"]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if line]
    assert [line["step"] for line in metrics] == [0, 3]


def test_going_back_takes_a_checkpoint_that_is_not_ahead_of_the_device(training: HeadTraining, run: Path) -> None:
    with state(training, run) as trainer:
        for _ in range(5):
            trainer.step(1)
        assert not trainer.checkpoints.go_back(1, step=1)
        assert trainer.applied() == {1: 5}
        assert trainer.checkpoints.go_back(1, step=3)
        assert trainer.applied() == {1: 2}
        assert training.steps == 2
        assert checkpoint_steps(run) == [2]
        assert trainer.checkpoints.durable(1) == 0


def test_going_back_forgets_what_later_heads_judged(training: HeadTraining, run: Path) -> None:
    def judge(trainer: TrainerState, number: int, step: int, part: int, correct: int) -> None:
        message = Evaluate(number, step, part, 1, 1, 8, "fp32")
        session = ServedSession(number, SessionRecord("orin", "", step), run / "log")
        trainer.checkpoints.record.judged(session, message, Judged(correct, 1.0, 0.1), training.steps)
        if part:
            trainer.checkpoints.record.evaluated(session)

    with state(training, run) as trainer:
        for _ in range(5):
            trainer.step(1)
        for part in (0, 1):
            judge(trainer, 2, 0, part, correct=4)  # a device that the checkpoint does not know
        judge(trainer, 1, 5, 0, correct=0)
        assert trainer.checkpoints.go_back(1, step=3)
        judge(trainer, 1, 5, 1, correct=8)  # its first part comes again too
        for part in (0, 1):
            judge(trainer, 2, 0, part, correct=4)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = [(int(line["session"]), line["images"]) for line in lines if line["kind"] == "evaluation"]
    assert told == [(2, 16)]


def test_going_back_is_refused_if_another_device_would_lose_steps(training: HeadTraining, run: Path) -> None:
    with state(training, run) as trainer:
        for session in (1, 1, 2, 1):
            trainer.step(session)
        assert not trainer.checkpoints.go_back(1, step=2)
        trainer.sessions.records()[2].finished = True
        assert trainer.checkpoints.go_back(1, step=2)


def test_a_checkpoint_of_another_kind_of_run_is_refused(training: HeadTraining, run: Path) -> None:
    with closing(RunDir(run, {}, {})) as run_dir:
        run_dir.checkpoint(3, training.arrays(), {"stream": []})
    with pytest.raises(CheckpointError, match="a trainer's checkpoint"), state(training, run):
        pass
