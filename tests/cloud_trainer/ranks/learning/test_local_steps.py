"""Local steps with averages, for ranks in one process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.ranks.learning.local_steps import LocalSteps
from adc_edge.cloud_trainer.ranks.learning.rows import RankRow, RankRows
from adc_edge.cloud_trainer.ranks.state.checkpoints import digest_of
from adc_edge.errors import RunError
from adc_edge.optimizer import torch_optimizer
from adc_edge.optimizer.settings import OptimizerSettings, learning_rate
from adc_edge.storage.bundle import Bundle
from tests.cloud_trainer.ranks.rank_steps import RankOfSessions
from tests.cloud_trainer.ranks.replicas import Meeting, MemoryExchange, on_all_ranks, replicas


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_heads_become_their_mean_weighted_by_images(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, name: str
) -> None:
    settings = OptimizerSettings(name=name, lr=1e-2)  # type: ignore[arg-type]
    heads = replicas(HeadTraining(training.head, settings), 3)
    ranks = [RankOfSessions(bundle, head, tmp_path / f"{n}") for n, head in enumerate(heads)]
    numbers: list[tuple[int, int]] = []

    def work(exchange: MemoryExchange) -> list[int]:
        rank = ranks[exchange.rank]
        record = rank.checkpoints.record
        record.step = lambda session, *rest: numbers.append((session.id, rest[-1]))  # type: ignore[method-assign]
        learner = LocalSteps(rank.training, rank.steps, exchange, exchange.rank, every=2)
        counts = []
        for round_number in range(3):
            if exchange.rank < 2 and round_number < 2:  # the third rank has no device
                if round_number == 0:
                    rank.open(exchange.rank + 1)
                rank.learn(exchange.rank + 1, images=8 if exchange.rank else 24)
            row = learner.row()
            counts.append(learner.learn(RankRows.of(exchange.rows(row)), wanted=round_number == 2))
        return counts

    assert on_all_ranks(3, work) == [[0, 4, 0]] * 3
    # The first round averaged nothing, the second one did; the last had nothing to average.
    assert {head.steps for head in heads} == {4}
    assert len({digest_of(head.arrays()) for head in heads}) == 1
    assert sorted(numbers) == [(1, 1), (1, 2), (2, 3), (2, 4)]


def test_the_mean_is_the_one_that_is_documented(bundle: Bundle, training: HeadTraining, tmp_path: Path) -> None:
    heads = replicas(training, 2)
    alone = replicas(training, 2)
    for number, head in enumerate(alone):
        rank = RankOfSessions(bundle, head, tmp_path / f"alone-{number}")
        rank.open(number + 1)
        rank.learn(number + 1, images=24 - 16 * number)
        head.update(rank.steps.waiting[0].totals, 0)

    def work(exchange: MemoryExchange) -> None:
        rank = RankOfSessions(bundle, heads[exchange.rank], tmp_path / f"{exchange.rank}")
        learner = LocalSteps(rank.training, rank.steps, exchange, exchange.rank, every=8)
        rank.open(exchange.rank + 1)
        rank.learn(exchange.rank + 1, images=24 - 16 * exchange.rank)
        learner.learn(RankRows.of(exchange.rows(learner.row())), wanted=True)

    on_all_ranks(2, work)
    pairs = zip(*(head.parameters for head in alone), strict=True)
    for mine, (first, second) in zip(heads[0].parameters, pairs, strict=True):
        torch.testing.assert_close(mine, 0.75 * first + 0.25 * second, rtol=0, atol=1e-6)
    states = zip(*(head.optimizer.arrays().items() for head in alone), strict=True)
    found = heads[1].optimizer.arrays()
    for (name, first_state), (_, second_state) in states:
        np.testing.assert_allclose(found[name], 0.75 * first_state + 0.25 * second_state, rtol=0, atol=1e-6)


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """The length of the cosine at each step of the optimizer; its rates are computed as always."""
    seen: dict[int, int] = {}

    def rate(settings: OptimizerSettings, step: int, planned: int) -> float:
        seen[step] = planned
        return learning_rate(settings, step, planned)

    monkeypatch.setattr(torch_optimizer, "learning_rate", rate)
    return seen


def test_the_cosine_counts_own_sessions_that_are_new_since_the_last_round(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, lengths: dict[int, int]
) -> None:
    head = HeadTraining(training.head, OptimizerSettings(lr=1e-2, schedule="cosine"))
    rank = RankOfSessions(bundle, head, tmp_path)
    learner = LocalSteps(rank.training, rank.steps, MemoryExchange(Meeting(1), 0), 0, every=4)
    rank.open(1, planned=100)
    for number in range(6):
        rank.learn(1)
        if learner.ready:
            assert learner.learn(RankRows.of([learner.row()]), False) == 4
        if number == 4:  # in the middle between two averages
            rank.open(2, planned=50)
            rank.learn(2)
            assert not learner.ready
    assert list(lengths.values()) == [100] * 5 + [150] * 2


def test_the_cosine_counts_what_other_ranks_have_learned_and_have_to_come(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, lengths: dict[int, int]
) -> None:
    head = HeadTraining(training.head, OptimizerSettings(lr=1e-2, schedule="cosine"))
    rank = RankOfSessions(bundle, head, tmp_path)
    learner = LocalSteps(rank.training, rank.steps, MemoryExchange(Meeting(1), 0), 0, every=8)
    rank.open(1, planned=100)
    for done in (0, 3, 5):  # steps of the other rank since the last average, out of 60
        rank.learn(1)
        other = RankRow(done, 8 * done, to_come=60 - done)
        assert learner.learn(RankRows.of([learner.row(), other]), False) == 0
    rank.learn(1)
    learner.row()
    assert list(lengths.values()) == [100, 160, 160, 160]


def test_a_head_that_is_not_finite_is_named_by_its_rank_and_never_averaged(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    heads = replicas(training, 3)

    def work(exchange: MemoryExchange) -> str:
        rank = RankOfSessions(bundle, heads[exchange.rank], tmp_path / f"{exchange.rank}")
        learner = LocalSteps(rank.training, rank.steps, exchange, exchange.rank, every=1)
        if exchange.rank == 1:
            rank.open(1)
            rank.learn(1)
            rank.steps.waiting[0].totals.gradients[0] = torch.full_like(heads[1].parameters[0], float("inf"))
        row = learner.row()
        with pytest.raises(RunError) as caught:
            learner.learn(RankRows.of(exchange.rows(row)), wanted=True)
        return str(caught.value)

    (said,) = set(on_all_ranks(3, work))
    assert "rank 1" in said
    assert "--clip-norm" in said
    assert "version" not in said
    assert digest_of(heads[2].arrays()) == digest_of(heads[0].arrays())  # as they were
