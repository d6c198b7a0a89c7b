"""Decisions of a run are recorded before they hold, and a process that comes back repeats them."""

from __future__ import annotations

from pathlib import Path

import pytest

from adc_edge.errors import CheckpointError
from adc_edge.storage.decisions import Decision, Decisions
from adc_edge.storage.run_dir import DECISIONS, RunDir

COARSE = Decision(10, 4, 2, 8, 20, "pca1", "pca0.25", "a slow link")
FINE = Decision(30, 1, 1, 8, 20, "int8", "int8", "a fast link")


def opened(path: Path | None) -> RunDir:
    return RunDir(path, {"role": "device"}, {})


def test_a_decision_holds_from_its_step_on(tmp_path: Path) -> None:
    run_dir = opened(tmp_path / "run")
    decisions = Decisions(run_dir)
    assert decisions.at(0) is None
    decisions.add(COARSE)
    decisions.add(FINE)
    assert [decisions.at(step) for step in (9, 10, 29, 30, 99)] == [None, COARSE, COARSE, FINE, FINE]
    run_dir.close()


def test_a_process_that_comes_back_repeats_them(tmp_path: Path) -> None:
    run_dir = opened(tmp_path / "run")
    Decisions(run_dir).add(COARSE)
    run_dir.close()
    again = opened(tmp_path / "run")
    assert Decisions(again).at(10) == COARSE
    again.close()


def test_none_is_made_for_a_step_that_a_side_has_begun(tmp_path: Path) -> None:
    run_dir = opened(tmp_path / "run")
    decisions = Decisions(run_dir)
    decisions.add(COARSE)
    assert decisions.may_begin(20, trainer_step=20)
    assert not decisions.may_begin(20, trainer_step=21)
    assert not decisions.may_begin(10, trainer_step=5)
    assert not decisions.may_begin(5, trainer_step=0)
    run_dir.close()


def test_a_damaged_record_is_refused_with_its_name(tmp_path: Path) -> None:
    run_dir = opened(tmp_path / "run")
    run_dir.keep(DECISIONS, b"[{")
    with pytest.raises(CheckpointError, match=DECISIONS):
        Decisions(run_dir)
    run_dir.close()


def test_a_run_that_is_not_kept_remembers_its_decisions() -> None:
    run_dir = opened(None)
    decisions = Decisions(run_dir)
    decisions.add(COARSE)
    assert decisions.at(11) == COARSE
    run_dir.close()


def test_a_fresh_run_forgets_them(tmp_path: Path) -> None:
    run_dir = opened(tmp_path / "run")
    Decisions(run_dir).add(COARSE)
    run_dir.close()
    fresh = RunDir(tmp_path / "run", {"role": "device"}, {}, fresh=True)
    assert Decisions(fresh).at(10) is None
    fresh.close()


def test_it_tells_how_many_micro_batches_each_step_has_and_where_that_changes(tmp_path: Path) -> None:
    run_dir = opened(tmp_path / "run")
    decisions = Decisions(run_dir)
    decisions.begin(1)
    for decision in (COARSE, Decision(20, 4, 4, 8, 20, "pca1", "pca1", "another precision"), FINE):
        decisions.add(decision)
    assert [decisions.micro_batches(step) for step in (0, 9, 10, 20, 29, 30)] == [1, 1, 4, 4, 4, 1]
    assert decisions.changes(after=0) == [(10, 4), (30, 1)]
    assert decisions.changes(after=10) == [(30, 1)]
    run_dir.close()
