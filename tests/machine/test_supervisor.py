"""Tests of what a trainer tells its supervisor: wrong use, unless it may mend itself or ranks were at work."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from adc_edge.cli import main
from adc_edge.machine.supervisor import WRONG_USE, note_at_work, note_wrong_use
from adc_edge.storage.run_dir import RunDir


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "note"
    file.touch()
    monkeypatch.setenv(WRONG_USE, str(file))
    return file


@pytest.mark.parametrize("words", [["--bundle", "nowhere"], ["--bundel", "x"], ["--devices", "many"]])
def test_wrong_use_of_the_trainer_is_written(note: Path, words: list[str]) -> None:
    assert CliRunner().invoke(main, ["trainer", "--insecure", *words]).exit_code == 2
    assert words[-1] in note.read_text() or words[0] in note.read_text()
    assert note.read_text().count("\n") == 1


def test_what_another_process_has_may_be_free_later(note: Path, tmp_path: Path, bundle_dir: Path) -> None:
    run = RunDir(tmp_path / "run", {}, {})
    assert run.path is not None
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        for words in (
            ["--bind", taken, "--run", str(tmp_path / "other")],
            ["--run", str(run.path), "--bind", "tcp://127.0.0.1:*"],
        ):
            done = CliRunner().invoke(main, ["trainer", "--insecure", "--bundle", str(bundle_dir), *words])
            assert (done.exit_code, note.read_text()) == (2, ""), done.output
            assert "in use" in done.output
    run.close()


def test_after_ranks_were_at_work_nothing_is_written(note: Path) -> None:
    note_at_work()
    note_wrong_use("the bundle's volume is gone")
    assert not note.exists()


def test_without_a_supervisor_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WRONG_USE, raising=False)
    note_wrong_use("x")
    note_at_work()
