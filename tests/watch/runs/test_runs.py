"""`adc-edge runs`: which directories it finds, what it shows, and that it fits the terminal."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from adc_edge.cli import main
from tests.watch.made_runs import make_device_run, make_trainer_run, make_troubled_run, open_run

V0_6 = Path(__file__).parents[2] / "compatibility" / "v0_6"


def runs(*arguments: str | Path, columns: int = 80) -> str:
    result = CliRunner().invoke(main, ["runs", *map(str, arguments)], env={"COLUMNS": str(columns)})
    assert result.exit_code == 0, result.output
    return result.output


def rows(*arguments: str | Path) -> dict[str, dict[str, Any]]:
    return {row["run"]: row for row in json.loads(runs(*arguments, "--json"))}


@pytest.fixture
def house(tmp_path: Path) -> Path:
    make_device_run(tmp_path / "today" / "finished", 20)
    make_device_run(tmp_path / "today" / "killed", 7, planned=50, complete=False)
    make_troubled_run(tmp_path / "changed")
    make_trainer_run(tmp_path / "trainer", {1: "a", 2: "b"}, 5)
    damaged = make_device_run(tmp_path / "damaged", 3)
    (damaged / "settings.json").write_text("{")
    return tmp_path


def test_every_run_below_a_directory_is_listed_with_its_state(house: Path) -> None:
    with open_run(house / "now", "device", steps=30):
        found = rows(house)
    states = {name: row["state"] for name, row in found.items()}
    assert states == {
        "changed": "finished",
        "damaged": "damaged",
        "now": "running",
        "today/finished": "finished",
        "today/killed": "interrupted",
        "trainer": "finished",
    }
    changed = found["changed"]
    assert (changed["model"], changed["split"]) == ("vit_tiny_patch16_224", 2)
    assert (changed["xi"], changed["precision"], changed["gradient_precision"]) == (0.25, "pca0.5", "pca0.25")
    assert (changed["steps"], changed["steps_planned"], changed["accuracy"]) == (200, 200, 0.85)
    assert changed["bytes_up"] == 800_000 + 50_000 + 40_000 + 2000


@pytest.mark.parametrize("columns", [80, 140])
def test_the_table_fits_the_terminal_and_names_everything(house: Path, columns: int) -> None:
    output = runs(house, columns=columns)
    assert max(map(len, output.splitlines())) <= columns
    shown = ["today/killed", "vit_tiny_patch16_224/2", "0.25", "pca0.5:pca0.25", "200/200", "85.0 %", "1.52 MB"]
    assert [text for text in [*shown, "interrupted", "damaged", "2"] if text not in output] == []


def test_long_directory_names_are_broken_between_directories_or_lose_their_middle(tmp_path: Path) -> None:
    where = tmp_path / "experiments-of-november" / "kitchen-and-garage" / ("a-name-that-is-far-too-long-for-a-line" * 2)
    make_device_run(where, 3)
    output = runs(tmp_path, columns=80)
    names = [line.split("  ")[0].rstrip() for line in output.splitlines()[2:]]
    assert names[:2] == ["experiments-of-november/", "kitchen-and-garage/"]
    assert names[2].startswith("a-name-that-")
    assert "…" in names[2]
    assert names[2].endswith("for-a-line")
    assert max(map(len, output.splitlines())) <= 80


def test_directions_of_writing_in_names_are_spelled(tmp_path: Path) -> None:
    make_device_run(tmp_path / "a\u202eb", 3)
    assert "a\\u202eb" in runs(tmp_path, columns=140)


def test_links_in_a_circle_and_deep_directories_end(house: Path) -> None:
    (house / "today" / "circle").symlink_to(house, target_is_directory=True)
    make_device_run(house / "1" / "2" / "3" / "4" / "5", 2)
    assert len(rows(house)) == 5
    assert len(rows(house, "--depth", "5")) == 6
    assert len(rows(house, "--depth", "1")) == 3
    assert list(rows(house / "changed")) == ["changed"]


def test_old_runs_are_listed_too() -> None:
    found = rows(V0_6)
    assert [(row["steps"], row["state"]) for row in found.values()] == [(19, "interrupted"), (19, "interrupted")]


def test_a_directory_without_runs_and_one_that_is_not_there(tmp_path: Path) -> None:
    assert "no runs below" in runs(tmp_path)
    assert runs(tmp_path, "--json") == "[]\n"
    result = CliRunner().invoke(main, ["runs", str(tmp_path / "absent")])
    assert result.exit_code in (1, 2)
    assert "check the path" in result.output


def test_control_sequences_in_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = make_device_run(tmp_path / "a\x1b[31m[red]b", 3)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"model": "m\x1b]0;x\x07[bold]"}))
    make_device_run(tmp_path / os.fsdecode(b"raw\xff"), 3)
    output = runs(tmp_path, columns=200)
    assert "\x1b" not in output
    assert "a\\x1b[31m[red]b" in output
    assert "m\\x1b]0;x\\x07[bold]/2" in output
    assert "raw\\xff" in output


def test_memory_does_not_grow_with_the_number_of_runs(tmp_path: Path) -> None:
    peaks = []
    for count in (2, 12):
        for number in range(count):
            make_device_run(tmp_path / str(count) / str(number), 200)
        rows(tmp_path / str(count))  # what is loaded at the first use is not measured
        tracemalloc.start()
        rows(tmp_path / str(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
