"""Lockstep of ranks in one process: their heads are those of one trainer's merged passes, and stay alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.ranks.learning.lockstep import Lockstep
from adc_edge.cloud_trainer.ranks.learning.rows import RankRows
from adc_edge.cloud_trainer.ranks.state.checkpoints import digest_of
from adc_edge.cloud_trainer.scheduling.steps import StepAnswers
from adc_edge.errors import ProtocolError, RunError
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.storage.bundle import Bundle
from tests.cloud_trainer.ranks.rank_steps import RankOfSessions
from tests.cloud_trainer.ranks.replicas import MemoryExchange, on_all_ranks, replicas

Steps = Mapping[int, int]  # images of each session's step


class Trainers:
    """Some ranks in lockstep; ``round`` has each one learn steps of its sessions."""

    def __init__(
        self, bundle: Bundle, training: HeadTraining, directory: Path, owners: Sequence[Sequence[int]]
    ) -> None:
        self.trainings = replicas(training, len(owners))
        self.ranks = [RankOfSessions(bundle, training, directory / f"{n}") for n, training in enumerate(self.trainings)]
        self.owners = owners
        for rank, sessions in zip(self.ranks, owners, strict=True):
            for session in sessions:
                rank.open(session, planned=100)

    def rounds(self, all_steps: Sequence[Steps], merge: bool = False) -> None:
        def work(exchange: MemoryExchange) -> None:
            rank = self.ranks[exchange.rank]
            learner = Lockstep(rank.training, rank.steps, exchange, exchange.rank)
            for steps in all_steps:
                own = [number for number in steps if number in self.owners[exchange.rank]]
                if merge and len(own) > 1:
                    after = rank.steps.learn_together([rank.request(number, steps[number]) for number in own])
                    assert after is not None
                    after()
                else:
                    for number in own:
                        rank.learn(number, steps[number])
                assert learner.ready == bool(own)
                learner.learn(RankRows.of(exchange.rows(learner.row())), False)

        on_all_ranks(len(self.ranks), work)

    def digests(self) -> set[int]:
        return {digest_of(training.arrays()) for training in self.trainings}


def merged(bundle: Bundle, training: HeadTraining, directory: Path, all_steps: Sequence[Steps]) -> HeadTraining:
    """One trainer that learns the steps of each round in a merged pass."""
    (alone,) = replicas(training, 1)
    rank = RankOfSessions(bundle, alone, directory)
    rank.steps.__class__ = StepAnswers  # type: ignore[assignment] # the same, applied at once
    for session in sorted({session for steps in all_steps for session in steps}):
        rank.open(session, planned=100)
    for steps in all_steps:
        after = rank.steps.learn_together([rank.request(number, images) for number, images in steps.items()])
        assert after is not None
        after()
    return alone


def check_close(training: HeadTraining, other: HeadTraining) -> None:
    for name, weights in training.head.vit.state_dict().items():
        torch.testing.assert_close(weights, other.head.vit.state_dict()[name], rtol=0, atol=1e-5, msg=name)


@pytest.fixture(params=["adamw", "sgd"])
def learner(training: HeadTraining, request: pytest.FixtureRequest) -> HeadTraining:
    return HeadTraining(training.head, OptimizerSettings(name=request.param, lr=1e-3, schedule="cosine"))


@pytest.mark.parametrize("owners", [[[1], [2]], [[1], [2], [3], [4]], [[1, 2], [3], []]])
def test_ranks_learn_what_merged_passes_of_one_trainer_do(
    bundle: Bundle, learner: HeadTraining, tmp_path: Path, owners: list[list[int]]
) -> None:
    sessions = [session for rank in owners for session in rank]
    all_steps = [{session: 8 + 4 * session for session in sessions}] * 20
    trainers = Trainers(bundle, learner, tmp_path, owners)
    trainers.rounds(all_steps, merge=True)
    assert len(trainers.digests()) == 1
    alone = merged(bundle, learner, tmp_path / "alone", all_steps)
    check_close(trainers.trainings[0], alone)
    assert {training.steps for training in trainers.trainings} == {alone.steps} == {20 * len(sessions)}


@pytest.mark.parametrize("owners", [[[1, 2]], [[1, 2], [3]], [[3], [1, 2], []]])
def test_steps_that_could_not_be_merged_count_by_their_images(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, owners: list[list[int]]
) -> None:
    learner = HeadTraining(training.head, OptimizerSettings(name="sgd", lr=1e-2))
    images = {1: 8, 2: 24, 3: 12}
    all_steps = [{session: images[session] for rank in owners for session in rank}] * 3
    trainers = Trainers(bundle, learner, tmp_path, owners)
    trainers.rounds(all_steps, merge=False)  # each step of a rank was answered alone, before one round
    assert len(trainers.digests()) == 1
    check_close(trainers.trainings[0], merged(bundle, learner, tmp_path / "alone", all_steps))


def test_a_rank_that_learns_alone_gives_the_bits_of_a_trainer_without_ranks(
    bundle: Bundle, learner: HeadTraining, tmp_path: Path
) -> None:
    all_steps = [{1: 8}, {2: 12}, {1: 8}, {}, {1: 7}, {2: 9}]
    trainers = Trainers(bundle, learner, tmp_path, [[1], [2]])
    trainers.rounds(all_steps)
    (alone,) = replicas(learner, 1)
    rank = RankOfSessions(bundle, alone, tmp_path / "alone")
    rank.steps.__class__ = StepAnswers  # type: ignore[assignment]
    for session in (1, 2):
        rank.open(session, planned=100)
    for steps in all_steps:
        for session, images in steps.items():
            rank.learn(session, images)
    assert trainers.digests() == {digest_of(alone.arrays())}


def test_steps_are_numbered_by_rank_and_sessions_know_the_head_after_the_round(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    trainers = Trainers(bundle, training, tmp_path, [[1], [2, 3]])
    told: list[tuple[int, int]] = []
    for rank in trainers.ranks:
        rank.checkpoints.record.step = lambda session, *rest: told.append((session.id, rest[-1]))  # type: ignore[method-assign]
    trainers.rounds([{1: 8, 2: 8, 3: 8}, {3: 8}], merge=True)
    assert sorted(told) == [(1, 1), (2, 2), (3, 3), (3, 4)]
    heads = {session.id: session.record.head_step for rank in trainers.ranks for session in rank.sessions}
    assert heads == {1: 3, 2: 3, 3: 4}


def test_only_the_message_that_completes_a_step_takes_part_and_a_nan_changes_nothing(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    (alone,) = replicas(training, 1)
    rank = RankOfSessions(bundle, alone, tmp_path)
    rank.open(1, micro_batches=2)
    rank.open(2)
    rank.learn(1, images=8)
    assert not rank.steps.waiting
    with pytest.raises(ProtocolError):
        rank.steps.learn(*rank.request(2, scale=float("nan")))
    assert not rank.steps.waiting
    rank.learn(1, images=6, part=1)
    assert rank.steps.row().steps == 1
    assert rank.steps.row().images == 14


def test_a_gradient_that_is_not_finite_ends_on_all_ranks_as_in_one_trainer(
    bundle: Bundle, learner: HeadTraining, tmp_path: Path
) -> None:
    """Where a loss and the answer are finite, but the head's own gradient overflows, devices are refused afterwards."""
    heads, (alone,) = replicas(learner, 2), replicas(learner, 1)
    ranks = [RankOfSessions(bundle, head, tmp_path / f"{number}") for number, head in enumerate([*heads, alone])]
    ranks[2].steps.__class__ = StepAnswers  # type: ignore[assignment]
    for number in (0, 2):
        ranks[number].open(1)
        after = ranks[number].steps.learn(*ranks[number].request(1))
        (micro,) = after.args[0]  # type: ignore[attr-defined]
        micro.totals.gradients[0] = torch.full_like(micro.totals.gradients[0], 3e38) * 2
        after()

    def work(exchange: MemoryExchange) -> None:
        rank = ranks[exchange.rank]
        lockstep = Lockstep(rank.training, rank.steps, exchange, exchange.rank)
        lockstep.learn(RankRows.of(exchange.rows(lockstep.row())), False)

    on_all_ranks(2, work)
    assert {digest_of(head.arrays()) for head in heads} == {digest_of(alone.arrays())}
    for rank in ranks:
        rank.open(2)
        with pytest.raises(ProtocolError, match="--clip-norm") as caught:
            rank.steps.learn(*rank.request(2))
        assert caught.value.code == "nan"


def test_heads_that_have_come_apart_are_not_trained_on(bundle: Bundle, training: HeadTraining, tmp_path: Path) -> None:
    trainers = Trainers(bundle, training, tmp_path, [[1], [2]])
    trainers.trainings[1].steps = 3
    with pytest.raises(RunError, match="0, 3 steps"):
        trainers.rounds([{1: 8, 2: 8}])
