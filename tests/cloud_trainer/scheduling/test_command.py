"""`adc-edge fleet`: names, numbers, mistakes, and orders that outlive the trainer."""

from __future__ import annotations

import fcntl
import json
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from adc_edge.cli import main
from adc_edge.cloud_trainer.scheduling.control import SessionControl, read_control
from adc_edge.storage.events import Away, Done, Joined
from adc_edge.storage.run_dir import RunDir
from adc_edge.storage.run_lock import LOCK

ONE, TWO, THREE, FOUR = (f"{number:016x}" for number in (1, 2, 0xABC, 4))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that no trainer is at work on: two devices of one name, one away, one done."""
    path = tmp_path / "cloud"
    with closing(RunDir(path, {"role": "trainer", "mode": "parallel"}, {})) as run_dir:
        for session, device, step in ((ONE, "orin", 0), (TWO, "orin", 3), (THREE, "nano", 0), (FOUR, "nano", 0)):
            run_dir.event(Joined(session=session, device=device, step=step, steps=20))
        run_dir.event(Away(session=TWO))
        run_dir.event(Done(session=FOUR, step=9))
        for session, seconds in ((ONE, 0.3), (THREE, 0.1)):
            run_dir.metric(kind="step", session=session, device="", step=6, head_step=7, seconds_cloud=seconds)
    return path


def typed(run: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["fleet", "--run", str(run), *words])


def test_the_devices_are_listed_with_state_priority_steps_and_share_of_time(run: Path) -> None:
    assert typed(run, "pause", "nano").exit_code == 0
    assert typed(run, "priority", "1", "2.5").exit_code == 0
    with closing(RunDir(run, {"role": "trainer", "mode": "parallel"}, {})):  # at work
        result = typed(run)
    assert result.output.splitlines() == [
        "device  session           state      priority  steps  time",
        f"orin    {ONE}  connected       2.5      7  75 %",
        f"orin    {TWO}  away              1      3   0 %",
        f"nano    {THREE}  paused            1      7  25 %",
        f"nano    {FOUR}  finished          1      0   0 %",
    ]
    assert [line.split()[2] for line in typed(run, "list").output.splitlines()[1:]] == [
        "away",
        "away",
        "paused",
        "finished",
    ]


def test_somebody_else_who_looks_at_the_run_is_no_trainer_at_work(run: Path) -> None:
    before = typed(run).output
    with (run / LOCK).open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert typed(run).output == before


def test_orders_are_kept_by_session_and_dropped_when_they_are_the_defaults(run: Path) -> None:
    assert typed(run, "pause", "nano").output == f"nano (session {THREE}) is paused: its messages wait\n"
    assert typed(run, "priority", "ABC", "3").output == f"nano (session {THREE}) has priority 3\n"
    assert typed(run, "pause", ONE).exit_code == 0
    assert read_control(run).sessions == {
        THREE: SessionControl("nano", 3.0, paused=True),
        ONE: SessionControl("orin", paused=True),
    }
    assert (read_control(run).priorities()[0xABC], read_control(run).paused()) == (3.0, {0xABC, 1})
    assert typed(run, "resume", ONE).output == f"orin (session {ONE}) goes on\n"
    assert typed(run, "resume", "nano").exit_code == typed(run, "priority", "nano", "1").exit_code == 0
    assert json.loads((run / "fleet.json").read_text()) == {"sessions": {}}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["pause", "orin"],
            f"2 devices named 'orin'\n  expected: one session\n  remedy:   give its number: {ONE} (away, 7",
        ),
        (["pause", "nanno"], "did you mean 'nano'?"),
        (["pause", "xyz"], "expected: one of its devices: orin, nano"),
        (["pause"], "expected: fleet pause NAME"),
        (["pause", "nano", "2"], "expected: fleet pause NAME"),
        (["priority", "nano"], "expected: fleet priority NAME X"),
        (["priority", "nano", "0"], "a number from 0.001 to 1000"),
        (["priority", "nano", "nan"], "a number from 0.001 to 1000"),
        (["list", "nano"], "no name: all devices are listed"),
        (["stop", "nano"], "'stop' is not one of"),
    ],
)
def test_a_mistake_is_told_and_changes_nothing(run: Path, words: list[str], told: str) -> None:
    result = typed(run, *words)
    assert result.exit_code == 2
    assert told in result.output
    assert not (run / "fleet.json").exists()


def test_a_directory_without_a_trainers_run_and_damaged_orders_are_refused(run: Path, tmp_path: Path) -> None:
    with closing(RunDir(tmp_path / "device", {"role": "device"}, {})):
        pass
    for path in (tmp_path / "nothing", tmp_path / "device"):
        result = typed(path)
        assert (result.exit_code, "holds no run of a trainer" in result.output) == (2, True)
    for damaged in ("{", '{"sessions": {"xyz": {}}}', '{"sessions": {"1": {"priority": 0}}}'):
        (run / "fleet.json").write_text(damaged)
        result = typed(run, "pause", "nano")
        assert (result.exit_code, "delete" in result.output) == (2, True)


def test_a_run_that_no_device_has_joined_says_so(tmp_path: Path) -> None:
    with closing(RunDir(tmp_path / "cloud", {"role": "trainer", "mode": "parallel"}, {})):
        pass
    assert typed(tmp_path / "cloud").output == "no device has joined this run yet\n"
    assert "none yet: no device has joined this run" in typed(tmp_path / "cloud", "pause", "orin").output
