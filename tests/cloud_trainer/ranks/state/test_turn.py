"""Ranks that were started earlier notice that others have their run."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest

from adc_edge.cloud_trainer.ranks.state import turn as turns
from adc_edge.cloud_trainer.ranks.state.turn import TURN, RunTurn, take_turn
from adc_edge.errors import RanksLost, SettingError
from adc_edge.storage.run_dir import RunDir


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a run, at which every check looks."""
    monkeypatch.setattr(turns, "_LOOK_S", 0.0)
    return tmp_path / "run" / TURN


def test_the_ranks_of_the_last_world_go_on_and_those_before_end(file: Path) -> None:
    with closing(RunDir(file.parent, {}, {}, {})) as run_dir:
        first = RunTurn(file, take_turn(run_dir))
        first.check()
        second = RunTurn(file, take_turn(run_dir))
        second.check()
        with pytest.raises(RanksLost, match="taken over"):
            first.check()


def test_storage_that_is_away_ends_nothing(file: Path) -> None:
    with closing(RunDir(file.parent, {}, {}, {})) as run_dir:
        turn = RunTurn(file, take_turn(run_dir))
        file.unlink()
        turn.check()


def test_the_file_belongs_to_the_run_and_goes_with_it(file: Path) -> None:
    with closing(RunDir(file.parent, {}, {}, {})) as run_dir:
        take_turn(run_dir)
    with closing(RunDir(file.parent, {}, {}, {}, fresh=True)):
        assert not file.exists()


def test_a_directory_that_is_not_shared_is_noticed_at_the_start(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_APPEARS_S", 0.0)
    elsewhere = file.parent.parent / "elsewhere" / TURN
    with closing(RunDir(file.parent, {}, {}, {})) as run_dir, closing(RunDir(elsewhere.parent, {}, {}, {})) as other:
        token = take_turn(run_dir)
        RunTurn(file, token).find()
        with pytest.raises(SettingError, match=r"(?s)no file of rank 0.*use storage that all hosts share"):
            RunTurn(elsewhere, token).find()
        take_turn(other)
        with pytest.raises(SettingError, match="not what rank 0 has written there"):
            RunTurn(elsewhere, token).find()


def test_a_directory_that_is_seen_late_is_waited_for(file: Path) -> None:
    with closing(RunDir(file.parent, {}, {}, {})) as run_dir:
        token = take_turn(run_dir)
        file.rename(file.with_name("hidden"))
        appears = threading.Timer(0.5, lambda: file.with_name("hidden").rename(file))
        appears.start()
        RunTurn(file, token).find()
        appears.join()
        assert file.read_bytes() == token
