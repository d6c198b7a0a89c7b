"""Checkpoints of ranks in one process: all agree on them, and heads that are not alike are never written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.ranks.devices.owners import Owners
from adc_edge.cloud_trainer.ranks.learning.lockstep import Lockstep
from adc_edge.cloud_trainer.ranks.members import RankMembers
from adc_edge.cloud_trainer.ranks.rounds import Outcome, RankRounds
from adc_edge.cloud_trainer.ranks.state.checkpoints import RankCheckpoints, digest_of
from adc_edge.cloud_trainer.ranks.state.shared_run import SharedRun, WrittenLines
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.errors import CheckpointError, RunError
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.checkpoint import checkpoint_steps, load_checkpoint
from adc_edge.storage.run_dir import RunDir
from tests.cloud_trainer.ranks.rank_steps import RankOfSessions
from tests.cloud_trainer.ranks.rank_trainers import lines_of
from tests.cloud_trainer.ranks.replicas import MemoryExchange, on_all_ranks, replicas
from tests.serving import logged

T = TypeVar("T")


class Rank:
    """One rank without a socket, on a run directory that all share."""

    def __init__(
        self, bundle: Bundle, training: HeadTraining, run: Path, exchange: MemoryExchange, stack: ExitStack
    ) -> None:
        self.training, self.exchange, rank, world = training, exchange, exchange.rank, exchange.meeting.world
        first = RunDir(run, {}, {}) if rank == 0 else None
        exchange.least(1)
        self.run_dir = stack.enter_context(closing(first or SharedRun(run, rank)))
        sessions = SessionRegistry(self.run_dir.journal)
        self.owners = Owners(rank, world, f"tcp://127.0.0.1:{5000 + rank}", sessions)
        self.checkpoints = RankCheckpoints(training, sessions, self.run_dir, 4, exchange, self.owners, rank)
        lines = self.run_dir.lines if isinstance(self.run_dir, SharedRun) else WrittenLines(self.run_dir)
        self.checkpoints.resume(lines.take_in if isinstance(lines, WrittenLines) else None)
        self.sessions = RankOfSessions(bundle, training, run / "journal", self.checkpoints, sessions)
        learner = Lockstep(training, self.sessions.steps, exchange, rank)
        members = RankMembers({"lines": lines, "owners": self.owners})
        self.rounds = RankRounds(exchange, learner, self.checkpoints, members, RankMembers({"lines": lines}))

    def step(self) -> Outcome:
        """Have this rank's session do a step, and join a round."""
        self.sessions.learn(self.exchange.rank + 1)
        return self.rounds.turn()


def with_ranks(bundle: Bundle, training: HeadTraining, run: Path, work: Callable[[Rank], T], world: int = 2) -> list[T]:
    """Have each rank do its work on a run, with a session of its own."""
    heads = replicas(training, world)

    def of_rank(exchange: MemoryExchange) -> T:
        with ExitStack() as stack:
            rank = Rank(bundle, heads[exchange.rank], run, exchange, stack)
            rank.sessions.open(exchange.rank + 1)
            return work(rank)

    return on_all_ranks(world, of_rank)


def test_a_checkpoint_has_the_sessions_of_all_ranks_and_all_come_back_to_it(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def work(rank: Rank) -> tuple[list[bool | None], int]:
        committed = [rank.step().committed for _ in range(5)]
        return committed, digest_of(rank.training.arrays())

    first = with_ranks(bundle, training, run, work)
    assert [committed for committed, _ in first] == [[None, True, None, True, None]] * 2
    assert checkpoint_steps(run) == [4, 8]
    kept = load_checkpoint(run / "checkpoint-00000008.safetensors")
    assert {int(n): record["applied"] for n, record in kept.meta["sessions"].items()} == {1: 4, 2: 4}
    assert len(lines_of(run)) == 8 + 1  # the last one of rank 1 would have come with the next round

    def again(rank: Rank) -> tuple[int, int, dict[int, int], int | None]:
        applied = {session.id: session.applied for session in rank.sessions.sessions}
        before = len(lines_of(run))
        rank.exchange.least(1)
        durable = rank.checkpoints.durable(rank.exchange.rank + 1)
        rank.step()
        return before, rank.training.steps, applied, durable

    assert with_ranks(bundle, training, run, again) == [(8, 10, {1: 4}, 0), (8, 10, {2: 4}, 0)]


def test_sessions_are_dealt_out_anew_where_the_number_of_ranks_differs(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with_ranks(bundle, training, run, lambda rank: [rank.step() for _ in range(4)], world=4)

    def owned(rank: Rank) -> set[int]:
        return {session.id for session in rank.sessions.sessions if session.applied}

    for world in (3, 1):
        parts = with_ranks(bundle, training, run, owned, world)
        assert set().union(*parts) == {1, 2, 3, 4}
        assert sum(map(len, parts)) == 4


def test_a_wish_of_one_rank_is_a_checkpoint_of_all_and_nothing_new_is_not_written_twice(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def work(rank: Rank) -> list[bool | None]:
        outcomes = [rank.step()]
        for _ in range(2):
            if rank.exchange.rank == 1:
                rank.checkpoints.save()
            outcomes.append(rank.rounds.turn())
        written = (run / "checkpoint-00000002.safetensors").stat().st_mtime_ns
        if rank.exchange.rank == 0:
            rank.checkpoints.save()
        outcomes.append(rank.rounds.turn())
        assert (run / "checkpoint-00000002.safetensors").stat().st_mtime_ns == written
        return [outcome.committed for outcome in outcomes]

    assert with_ranks(bundle, training, run, work) == [[None, True, True, True]] * 2


def test_heads_that_differ_in_one_bit_stop_the_run_and_are_not_written(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    def work(rank: Rank) -> None:
        rank.step()
        if rank.exchange.rank == 1:
            with torch.no_grad():
                weights = rank.training.parameters[-1].view(-1)
                weights[0] = torch.nextafter(weights[0], torch.tensor(9.0))
        rank.checkpoints.save()
        rank.rounds.turn()

    with pytest.raises(RunError, match="different heads"):
        with_ranks(bundle, training, tmp_path / "run", work)
    assert checkpoint_steps(tmp_path / "run") == []


@pytest.mark.parametrize("faulty", [0, 1])
def test_a_full_disk_leaves_earlier_checkpoints_and_the_training_goes_on(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, faulty: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, full = tmp_path / "run", threading.Event()

    def work(rank: Rank) -> list[bool | None]:
        if rank.exchange.rank == faulty:
            if faulty:  # the log of a session cannot be synced
                (served,) = rank.sessions.sessions
                monkeypatch.setattr(served, "sync", lambda: _raise_if(full))
            else:
                checkpoint = rank.run_dir.checkpoint
                monkeypatch.setattr(rank.run_dir, "checkpoint", lambda *a: _raise_if(full, lambda: checkpoint(*a)))
        outcomes = [rank.step() for _ in range(2)]
        rank.exchange.least(1)
        full.set()
        outcomes += [rank.step() for _ in range(2)]
        rank.exchange.least(1)
        full.clear()
        outcomes += [rank.step() for _ in range(2)]
        return [outcome.committed for outcome in outcomes]

    with logged() as lines:
        assert with_ranks(bundle, training, run, work) == [[None, True, None, False, None, True]] * 2
    assert sum("no checkpoint at step 8" in line for line in lines) == 1  # rank 0 alone tells it
    assert checkpoint_steps(run) == [4, 12]


def _raise_if(full: threading.Event, work: Callable[[], None] = lambda: None) -> None:
    if full.is_set():
        raise OSError(28, "No space left on device")
    work()


def test_a_run_that_a_rank_wants_to_end_ends_on_all_with_a_checkpoint(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    def work(rank: Rank) -> Outcome:
        rank.step()
        outcome = rank.rounds.turn(stop=rank.exchange.rank == 1)
        rank.rounds.end()
        return outcome

    assert with_ranks(bundle, training, tmp_path / "run", work) == [Outcome(False, True, True)] * 2
    assert checkpoint_steps(tmp_path / "run") == [2]
    assert len(lines_of(tmp_path / "run")) == 2


def test_a_rank_that_does_not_see_the_checkpoint_of_rank_0_refuses(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with_ranks(bundle, training, run, lambda rank: [rank.step() for _ in range(2)])
    heads = replicas(training, 2)

    def work(exchange: MemoryExchange) -> None:
        with ExitStack() as stack:
            where = run if exchange.rank == 0 else tmp_path / "elsewhere"
            where.mkdir(exist_ok=True)
            Rank(bundle, heads[exchange.rank], where, exchange, stack)

    with pytest.raises(CheckpointError, match="no whole checkpoint of step 4"):
        on_all_ranks(2, work)
