"""Docstrings and help texts begin with a noun phrase or an imperative, never with an elliptic question word."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from adc_edge.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
TREES = "adc_edge calibration cloud_trainer edge_runtime evaluation export watch tests benchmarks deploy".split()
SUB_FOLDERS = [
    f"{tree}/{path.name}"
    for tree in TREES
    for path in sorted((ROOT / tree).iterdir())
    if path.is_dir() and not path.is_symlink() and path.name != "__pycache__"
]
ELLIPTIC = re.compile(r"\W*(Of|What|Whose|Who|How|As)\b")


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Name and docstring of a module, its classes and its functions."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield getattr(node, "name", "module"), ast.get_docstring(node) or ""


def elliptic_docstrings(folder: Path, recursive: bool = True) -> list[str]:
    files = sorted(folder.rglob("*.py") if recursive else folder.glob("*.py"))
    found = [(path, *pair) for path in files for pair in docstrings(path)]
    return [f"{path}: {name}: {text}" for path, name, text in found if ELLIPTIC.match(text)]


def help_texts(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
    """Name and text of every help of a command, its options and its sub-commands."""
    yield name, command.help or ""
    for parameter in command.params:
        yield f"{name} {parameter.opts[-1]}", getattr(parameter, "help", None) or ""
    if isinstance(command, click.Group):
        for sub_name in command.list_commands(click.Context(command)):
            sub_command = command.get_command(click.Context(command), sub_name)
            assert sub_command is not None
            yield from help_texts(sub_command, f"{name} {sub_name}")


def elliptic_helps(command: click.Command, name: str) -> list[str]:
    return [f"{where}: {text}" for where, text in help_texts(command, name) if ELLIPTIC.match(text)]


@pytest.mark.parametrize("name", COMMANDS)
def test_no_help_text_begins_elliptically(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert len(list(help_texts(command, name))) > 1
    assert elliptic_helps(command, name) == []


@pytest.mark.parametrize("folder", [*TREES, *SUB_FOLDERS])
def test_no_docstring_begins_elliptically(folder: str) -> None:
    assert elliptic_docstrings(ROOT / folder, recursive=folder in SUB_FOLDERS) == []


def test_an_elliptic_docstring_is_found(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    text = '"""Of order."""\nclass A:\n    """Often."""\n    async def f(self) -> None:\n        """`What` came."""\n'
    (tmp_path / "room" / "a.py").write_text(text)
    first, second = elliptic_docstrings(tmp_path)
    assert "a.py: module: Of order." in first
    assert "a.py: f: `What` came." in second
    assert elliptic_docstrings(tmp_path, recursive=False) == []


def test_an_elliptic_help_text_is_found() -> None:
    seed, other = click.Option(["--seed"], help="Of order."), click.Option(["--other"], help="Whatever.")
    sub = click.Command("sub", params=[seed, other], help="Show it.")
    group = click.Group("group", {"sub": sub}, help="What it shows.")
    assert elliptic_helps(group, "group") == ["group: What it shows.", "group sub --seed: Of order."]
