"""The commands of deployment files, as words: recorded from the shell that fills in their variables, and checked."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import click
from torch.distributed.run import get_args_parser

from adc_edge.cli import main


def recorded(line: str, environment: Mapping[str, str], place: Path, *programs: str) -> list[list[str]]:
    """Run a line with sh, its programs replaced by ones that note their words. Return the words of each call."""
    (place / "bin").mkdir(parents=True)
    for program in programs:
        script = place / "bin" / program
        script.write_text(f'#!/bin/sh\nprintf "%s\\n" {program} "$@" END >>{place}/words\n')
        script.chmod(0o755)
    path = {"PATH": f"{place / 'bin'}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-ec", line], env={**environment, **path}, check=True, timeout=60)
    calls = (place / "words").read_text().split("\nEND\n")
    return [call.splitlines() for call in calls if call]


def check_ranks(words: list[str]) -> tuple[dict[str, object], dict[str, object]]:
    """Return the options of torchrun and of `adc-edge trainer` in the words that follow `torchrun`. Both know all."""
    options = vars(get_args_parser().parse_args(words))
    assert options["module"]
    assert options["training_script"] == "adc_edge"
    name, *rest = options["training_script_args"]
    assert name == "trainer"
    command = main.get_command(click.Context(main), "trainer")
    assert command is not None
    return options, command.make_context("trainer", rest).params
