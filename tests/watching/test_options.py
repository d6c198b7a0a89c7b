"""The options by which `trainer` and `serve` have a run watched, as the command that they start gets them."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from adc_edge.watching.options import WatchSettings, watch_options


@click.command()
@watch_options
@click.option("--other", default=1)
def command(watch: WatchSettings, other: int) -> None:
    """Print what is to show a run."""
    click.echo(f"{other} {watch.asked} {' '.join(watch.arguments(Path('/r')))}")


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("", "1 False watch --child --run /r"),
        ("--metrics-bind 0.0.0.0", "1 False watch --child --run /r"),
        ("--web 127.0.0.1:8080", "1 True watch --child --run /r --web 127.0.0.1:8080"),
        ("--metrics-port 0", "1 True watch --child --run /r --metrics-port 0 --metrics-bind 127.0.0.1"),
        (
            "--metrics-port 9 --metrics-bind ::1",
            "1 True watch --child --run /r --metrics-port 9 --metrics-bind ::1",
        ),
        ("--tensorboard /t", "1 True watch --child --run /r --tensorboard /t"),
        ("--tracker a --tracker b:c", "1 True watch --child --run /r --tracker a --tracker b:c"),
    ],
)
def test_the_options_are_handed_on(typed: str, shown: str) -> None:
    result = CliRunner().invoke(command, typed.split())
    assert result.output.strip() == shown


def test_a_port_that_is_none_is_refused() -> None:
    result = CliRunner().invoke(command, ["--metrics-port", "70000"])
    assert result.exit_code == 2
    assert "70000" in result.output
