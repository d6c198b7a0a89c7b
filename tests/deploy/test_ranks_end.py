"""deploy/ranks.sh on a host whose torchrun fails while the others have ended the run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import msgspec
import pytest

from adc_edge.storage.events import EVENTS_FILE, Ended, Event, Started

SCRIPT = Path(__file__).parents[2] / "deploy" / "ranks.sh"
TORCHRUN = """#!/usr/bin/env bash
# Stands for a torchrun that finds no other host: it notes its start, and what happens on the others meanwhile.
echo >>starts
[[ $(wc -l <starts) -eq 2 ]] && cat meanwhile >>run/events.jsonl
[[ $(wc -l <starts) -eq 3 ]] && exit 0
exit 1
"""
STARTED = Started(role="trainer", version="1", pid=1, step=0)
COMPLETE, STOPPED = Ended(step=9, complete=True), Ended(step=9, complete=False, why="stopped")


def starts(place: Path, before: list[Event], meanwhile: list[Event], *arguments: str) -> int:
    """Number of times that torchrun is started, until the script ends with 0; the third start succeeds."""
    (place / "torchrun").write_text(TORCHRUN)
    (place / "torchrun").chmod(0o755)
    (place / "run").mkdir()
    for name, events in ((f"run/{EVENTS_FILE}", before), ("meanwhile", meanwhile)):
        (place / name).write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in events))
    environment = os.environ | {"ADC_EDGE_TORCHRUN": str(place / "torchrun")}
    subprocess.run(["bash", SCRIPT, *arguments], cwd=place, env=environment, check=True, timeout=60)
    return (place / "starts").read_text().count("\n")


def test_it_ends_once_the_other_hosts_have_ended_the_run(tmp_path: Path) -> None:
    assert starts(tmp_path, [STARTED], [COMPLETE], "--run", "run", "--devices=3") == 2


@pytest.mark.parametrize(
    ("meanwhile", "devices"),
    [
        ([STOPPED], "3"),  # before its devices were done
        ([COMPLETE, STARTED], "3"),  # and it goes on
        ([COMPLETE], "0"),  # it has no end of its own: a host was stopped
    ],
)
def test_it_starts_torchrun_again_while_the_run_goes_on(tmp_path: Path, meanwhile: list[Event], devices: str) -> None:
    before: list[Event] = [STARTED, COMPLETE]  # a run that goes on with more devices
    assert starts(tmp_path, before, meanwhile, "--run=run", "--devices", devices) == 3
