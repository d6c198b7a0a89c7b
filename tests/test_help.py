"""The help of the commands: headings, complete sentences, and the defaults that the settings have."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner

from adc_edge.cli import main
from adc_edge.cloud_trainer.command import trainer
from adc_edge.cloud_trainer.runner import TrainerSettings
from adc_edge.edge_runtime.command import serve
from adc_edge.edge_runtime.noise import NoiseSettings
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.evaluation.command import evaluate
from adc_edge.optimizer.settings import OptimizerSettings, take_settings
from adc_edge.watching.options import WatchSettings


def sections(command: str) -> dict[str, list[str]]:
    """Option lines under each heading of a command's help."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in CliRunner().invoke(main, [command, "--help"]).output.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            title = line[:-1]
        elif line.startswith("  -"):
            found.setdefault(title, []).append(line.split()[0].rstrip(","))
    return found


def test_the_options_of_serve_stand_under_headings_with_the_most_used_first() -> None:
    found = sections("serve")
    assert list(found) == [
        "Bundle and trainer",
        "Data",
        "Compression",
        "Optimisation",
        "Engine",
        "Run",
        "Link",
        "Studies",
        "Watching",
        "Logging",
        "Configuration",
        "Help",
    ]
    assert found["Bundle and trainer"] == ["--bundle", "--trainer"]
    assert found["Data"][:2] == ["--data", "--steps"]
    assert found["Help"] == ["-h"]


@pytest.mark.parametrize("command", ["serve", "trainer", "evaluate"])
def test_only_help_itself_has_no_heading(command: str) -> None:
    found = sections(command)
    assert len(found) > 3
    assert found["Help"] == ["-h"]


def parsed(command: click.Command, *arguments: str) -> dict[str, object]:
    return dict(command.make_context(command.name, list(arguments)).params)


def defaults_of(settings: msgspec.Struct) -> dict[str, object]:
    return {name: getattr(settings, name) for name in settings.__struct_fields__}


def test_the_defaults_of_serve_are_those_of_its_settings() -> None:
    options = parsed(serve, "--bundle", "b", "--trainer", "t")
    assert take_settings(options) == OptimizerSettings()
    noise = defaults_of(NoiseSettings())
    assert [options.pop(name) for name in ("snr_up", "snr_down", "bit_errors")] == list(noise.values())
    assert options.pop("outage_s") == float("inf")  # which the settings write as None
    assert [options.pop(name) for name in ("ratio", "batch_ratio", "token_ratio")] == [None, None, None]
    assert not any(options.pop(name) for name in ("verbose", "quiet", "log_json"))
    assert WatchSettings(**{name: options.pop(name) for name in WatchSettings._fields}) == WatchSettings()  # type: ignore[arg-type]
    settings = defaults_of(ServeSettings(Path("b"), "t"))
    assert options.items() <= settings.items()
    assert settings.keys() - options.keys() == {"optimizer", "noise", "ratio", "outage_s"}


def test_the_defaults_of_trainer_are_those_of_its_settings() -> None:
    options = parsed(trainer, "--bundle", "b")
    assert take_settings(options) == OptimizerSettings()
    settings = defaults_of(TrainerSettings(Path("b")))
    assert settings.keys() - options.keys() == {"optimizer"}
    assert settings.items() <= {**options, "optimizer": OptimizerSettings()}.items()


def test_the_optimizer_of_evaluate_has_the_same_defaults() -> None:
    assert take_settings(parsed(evaluate, "-o", "out")) == OptimizerSettings()
