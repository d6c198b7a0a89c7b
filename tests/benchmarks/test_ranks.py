"""The benchmark of trainer ranks: its figures are what their names say, and every step counts once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ranks
from harness import Result
from ranks_trainer import TimedRank, losses

from tests.benchmarks.test_fleet import TINY


def test_a_rate_counts_the_steps_that_ended_between_two_times() -> None:
    assert ranks.rate_within([[[0.5, 1.5, 2.0], [1.0, 3.0, 3.5]]], 1.0, 3.0) == 1.5


def test_a_round_costs_from_its_last_rank_on_and_rounds_with_work_are_left_out() -> None:
    first = TimedRank([(0.0, 0.5, False), (2.0, 2.010, False), (3.0, 3.2, True), (4.0, 4.005, False)], {})
    second = TimedRank([(0.1, 0.5, False), (2.008, 2.009, False), (3.0, 3.1, True), (4.0, 4.002, False)], {})
    assert ranks.costs_ms([first, second]) == pytest.approx([2.0, 5.0])


def test_losses_are_means_over_as_many_steps_of_each_device(tmp_path: Path) -> None:
    lines = [{"kind": "step", "session": "a", "step": step, "loss": 10.0 - step} for step in (1, 0, 2, 3)]
    lines.append({"kind": "evaluation", "session": "b", "step": 3})
    others = [{"kind": "step", "session": "b", "step": step, "loss": 2.0 + step} for step in range(3)]
    runs = [tmp_path / "first", tmp_path / "second"]
    for run, written in ((runs[0], lines), (runs[1], others)):
        run.mkdir()
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written))
    assert losses(runs, 2) == [(9.5, 8.5), (2.5, 3.5)]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("sync", ["every", "2"])
def test_two_real_ranks_with_replaying_devices(sync: str, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--sync", sync, "--parts", "speed", "idle", "--devices", "2", "--turns", "1", "--seconds", "2"]
    args = ranks.options().parse_args([*options, "--idle-seconds", "4", "--profile"])
    results: list[Result] = ranks.measure(TINY, args)
    assert len(results) == 8
    assert all(result.value > 0 < result.reference for result in results), results
    said = capfd.readouterr().out
    assert said.count("each counted once") == 2
    assert all(f"rank {rank}: Exchange.sum" in said for rank in (0, 1))
