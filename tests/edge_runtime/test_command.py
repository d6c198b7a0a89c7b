"""The log of `adc-edge serve`: JSON lines for machines, and nothing but warnings where asked for."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from adc_edge.cli import main
from adc_edge.cloud_trainer.server import Server


def log_lines(bundle_dir: Path, *options: str) -> list[str]:
    """The log of a device whose trainer is not there, after the data; the error that ends it goes to stderr."""
    arguments = ["--bundle", str(bundle_dir), "--trainer", "tcp://127.0.0.1:9", "--wait", "0.3", "--trunk", "frozen"]
    result = CliRunner().invoke(main, ["serve", *arguments, *options])
    assert result.exit_code == 1, result.output
    return [line for line in result.stdout.splitlines() if "data     " not in line and "classes " not in line]


def test_json_lines_tell_time_level_and_message(bundle_dir: Path) -> None:
    (line,) = map(json.loads, log_lines(bundle_dir, "--log-json"))
    assert line["message"].startswith("waiting for the trainer at tcp://127.0.0.1:9")
    assert (line["level"], line["logger"]) == ("info", "adc_edge.wire.channel")


def test_quiet_logs_warnings_only(bundle_dir: Path) -> None:
    assert not log_lines(bundle_dir, "--quiet")
    (line,) = log_lines(bundle_dir)
    assert "INFO" in line


def test_a_finished_run_tells_what_to_type_next_and_that_nothing_is_left_to_do(
    bundle_dir: Path, server: Server, tmp_path: Path
) -> None:
    run = tmp_path / "my run"
    arguments = ["--bundle", str(bundle_dir), "--trainer", server.endpoint, "--trunk", "frozen", "--eval-images", "16"]
    first, again = (
        CliRunner().invoke(main, ["serve", *arguments, "--steps", "2", "--run", str(run)]).output for _ in range(2)
    )
    command = f"adc-edge merge --run-device '{run}' --run-trainer RUN_OF_THE_TRAINER -o model.safetensors"
    assert first.endswith(f"\n\nnext:\n  {command}\n")
    assert "sends    " in first
    assert "engine   onnxruntime on cpu" in first
    assert "nothing is left to do" not in first
    assert "nothing is left to do: this run is complete" in again
    assert "sends    " not in again
    assert "test accuracy" in again


def test_ratio_auto_means_plan_auto(bundle_dir: Path) -> None:
    arguments = ["--bundle", str(bundle_dir), "--trainer", "tcp://127.0.0.1:9", "--wait", "0.1", "--trunk", "frozen"]
    for words, says in (
        (["--ratio", "auto"], "no trainer at"),
        (["--plan", "auto"], "no trainer at"),
        ([], "--min-accuracy -2 without --plan auto"),
    ):
        result = CliRunner().invoke(main, ["serve", *arguments, "--min-accuracy", "-2", *words])
        assert says in " ".join(result.stderr.split())
