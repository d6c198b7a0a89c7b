"""The log of `adc-edge serve`: JSON lines for machines, and nothing but warnings where asked for."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from adc_edge.cli import main


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
