"""The state of a resumed run: step, session, metrics, and the cost of the steps that are repeated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adc_edge.edge_runtime.state import RunState
from adc_edge.edge_runtime.tally import Evaluation
from adc_edge.storage.run_dir import RunDir


@contextmanager
def incarnation(path: Path) -> Iterator[tuple[RunState, RunDir]]:
    """One process's time with a run directory."""
    run_dir = RunDir(path, {}, {})
    try:
        yield RunState(run_dir, None), run_dir
    finally:
        run_dir.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def work(state: RunState, run_dir: RunDir, until: int) -> None:
    while state.step < until:
        run_dir.metric(kind="step", step=state.step, bytes_up=100, bytes_down=10)
        state.step += 1


def judge(state: RunState, run_dir: RunDir) -> None:
    state.tally.evaluations.append(Evaluation(state.step, 8, 0.5, 1.0))
    run_dir.metric(kind="evaluation", step=state.step, bytes_up=7, bytes_down=1)


def test_a_killed_run_resumes_the_same_session_at_its_checkpoint(tmp_path: Path) -> None:
    with incarnation(tmp_path) as (state, run_dir):
        state.save()
        session, first = state.session, state.incarnation
        work(state, run_dir, 7)
    with incarnation(tmp_path) as (state, _):
        assert state.session != session
        assert state.resume()
        assert (state.session, state.step) == (session, 0)
        assert state.incarnation != first
    assert lines(tmp_path) == []


def test_repeated_steps_are_counted_however_often_the_process_is_killed(tmp_path: Path) -> None:
    with incarnation(tmp_path) as (state, _):
        state.save()
    for _ in range(3):
        with incarnation(tmp_path) as (state, run_dir):
            assert state.resume()
            work(state, run_dir, 4)
    with incarnation(tmp_path) as (state, _):
        assert state.resume()
        assert state.tally.steps_repeated == 12
        assert (state.tally.bytes_repeated_up, state.tally.bytes_repeated_down) == (1200, 120)
        assert (state.tally.bytes_up, state.tally.bytes_down) == (1200, 120)


def test_an_evaluation_in_the_checkpoint_stays_and_a_later_one_is_repeated(tmp_path: Path) -> None:
    with incarnation(tmp_path) as (state, run_dir):
        work(state, run_dir, 5)
        judge(state, run_dir)
        state.save()  # stopped here
    with incarnation(tmp_path) as (state, run_dir):
        assert state.resume()
        assert [line["kind"] for line in lines(tmp_path)] == ["step"] * 5 + ["evaluation"]
        work(state, run_dir, 8)
        judge(state, run_dir)
    with incarnation(tmp_path) as (state, _):
        assert state.resume()
        assert [e.step for e in state.tally.evaluations] == [5]
        assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2, 3, 4, 5]
        assert state.tally.bytes_evaluation_up == 7


def test_the_oldest_step_to_resume_from_is_the_older_of_two_checkpoints(tmp_path: Path) -> None:
    with incarnation(tmp_path) as (state, run_dir):
        assert state.durable == 0
        state.save()
        work(state, run_dir, 5)
        state.save()
        assert state.durable == 0
        work(state, run_dir, 9)
        state.save()
        assert state.durable == 5


def test_a_run_without_a_directory_never_resumes(tmp_path: Path) -> None:
    run_dir = RunDir(None, {}, {})
    state = RunState(run_dir, None)
    state.step = 40
    state.save()
    assert state.durable is None
    assert not state.resume()
    run_dir.close()
