"""Logs of a trainer: JSON lines from the command on request, and silence in a program that uses it as a library."""

from __future__ import annotations

import json
import logging
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adc_edge.cloud_trainer.ranks.state.shared_run import SharedRun, rank_file
from adc_edge.cloud_trainer.runner import Trainer, TrainerSettings
from adc_edge.storage.events import Warned


def test_log_json_gives_one_object_a_line(bundle_dir: Path, tmp_path: Path, command: Any, eventually: Any) -> None:
    options = ["--bind", "tcp://127.0.0.1:*", "--run", tmp_path / "run", "--threads", "1", "--log-json"]
    with command("trainer", "--bundle", bundle_dir, *options) as trainer:
        eventually((tmp_path / "run" / "endpoint").exists)
        trainer.process.terminate()
        code, output = trainer.finish()
    assert code == 0, output
    lines = [json.loads(line) for line in output.splitlines()]
    assert {tuple(line) for line in lines} == {("time", "level", "logger", "message")}
    assert any(line["message"].startswith("listens  tcp://127.0.0.1:") for line in lines)
    assert lines[-1]["message"] == f"stopped after 0 steps; run kept in {tmp_path / 'run'}"
    assert {line["logger"] for line in lines} == {"adc_edge.cloud_trainer.runner"}


def test_a_program_that_uses_the_trainer_as_a_library_decides_what_is_logged(
    bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    settings = TrainerSettings(bundle_dir, "tcp://127.0.0.1:*", run=tmp_path / "run", device="cpu")
    with caplog.at_level(logging.INFO, "adc_edge"):
        Trainer(settings, Console(), stop=lambda: True).run()
    assert [record.getMessage().split(" ")[0] for record in caplog.records] == ["model", "head", "listens", "stopped"]
    assert capsys.readouterr() == ("", "")


def test_a_trainer_without_ranks_takes_in_what_ranks_have_left(bundle_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = TrainerSettings(bundle_dir, "tcp://127.0.0.1:*", run=run, device="cpu")
    Trainer(settings, Console(), stop=lambda: True).run()
    with closing(SharedRun(run, 1)) as other:
        other.event(Warned(level="warning", text="of rank 1, before it was killed"))
    assert rank_file(run, 1).exists()
    Trainer(settings, Console(), stop=lambda: True).run()
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["text"] for event in events if "text" in event] == ["of rank 1, before it was killed"]
    assert not list(run.glob("rank-*"))
