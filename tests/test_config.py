"""Options come from a file or from the run that goes on, and those typed take precedence."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from adc_edge.cli import COMMANDS, main
from adc_edge.config import chosen_options


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "adc.toml"
    path.write_text(text, encoding="utf-8")
    return path


REQUIRED = {
    "bench": "--bundle b",
    "calibrate": "--bundle b --data digits",
    "evaluate": "--data digits -o new/out",
    "export": "--model m --split 2 -o new/out",
    "fleet": "--run a",
    "infer": "--bundle b",
    "link": "--trainer tcp://127.0.0.1:1",
    "merge": "--run-device a --run-trainer b -o new/out",
    "plan": "--bundle b --link link.json",
    "privacy": "--data digits -o new/out",
    "profile": "--bundle b",
    "report": "a -o new/report.html",
    "serve": "--bundle b --trainer tcp://127.0.0.1:1",
    "trainer": "--bundle b",
    "watch": "--run a",
}


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "keys"])
def test_what_a_command_dumps_it_reads_back(tmp_path: Path, command: str) -> None:
    code, text = run(command, *REQUIRED.get(command, "").split(), "--dump-config")
    assert code == 0, text
    assert text.startswith(f"[{command}]\n")
    runs = ["a"] if command == "report" else []  # arguments are no options
    assert run(command, *runs, "--config", config(tmp_path, text), "--dump-config") == (0, text)


def test_an_option_that_is_typed_takes_precedence(tmp_path: Path) -> None:
    path = config(tmp_path, 'bundle = "café"\nlr = 0.5\neval_every = 7\n')
    code, text = run("serve", "--config", path, "--trainer", "tcp://127.0.0.1:1", "--lr", "0.25", "--dump-config")
    assert code == 0, text
    assert "lr = 0.25\n" in text
    assert "eval-every = 7\n" in text
    assert f'bundle = "{Path("café").absolute()}"\n' in text


def test_one_file_holds_a_table_for_each_command(tmp_path: Path) -> None:
    path = config(
        tmp_path, '[serve]\nbundle = "s"\ntrainer = "tcp://a:1"\nlr = 0.5\n\n[trainer]\nbundle = "t"\nlr = 2\n'
    )
    assert "lr = 0.5\n" in run("serve", "--config", path, "--dump-config")[1]
    assert "lr = 2.0\n" in run("trainer", "--config", path, "--dump-config")[1]
    code, text = run("bench", "--config", path)
    assert code == 2
    assert "tables serve, trainer" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("bundel = 'x'", ["'bundel'", "do you mean bundle?"]),
        ("zzz = 1", ["'zzz'", "adc-edge trainer --help lists them"]),
        ("lr = [1, 2]", ["--lr", "1,2"]),
        ("lr = 'much'", ["--lr", "much"]),
        ("devices = 2.7", ["--devices", "2.7"]),
        ("devices = true", ["--devices", "True"]),
        ("lr = nan", ["--lr", "nan"]),
        ("lr = -1", ["--lr", "-1"]),
        ("optimizer = 'sgdd'", ["--optimizer", "sgd"]),
        ("lr = ", ["adc.toml", "a TOML file with options"]),
        ("[trainer.deep]\nlr = 1", ["'deep'"]),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, content: str, words: list[str]) -> None:
    code, text = run("trainer", "--config", config(tmp_path, content), "--bundle", "b")
    assert code == 2
    for word in words:
        assert word in text


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"bundle = '\xe4'")
    for path, words in (
        (tmp_path / "absent", "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "latin", "utf-8"),
    ):
        code, text = run("trainer", "--config", path)
        assert code == 2
        assert words in text


def kept(tmp_path: Path, **content: object) -> Path:
    (tmp_path / "settings.json").write_text(json.dumps(content))
    return tmp_path


def test_resume_takes_the_options_of_the_run(tmp_path: Path) -> None:
    options = {"bundle": "/b", "trainer": "tcp://a:1", "lr": 0.5}
    code, text = run("serve", "--resume", kept(tmp_path, fixed={"role": "device"}, options=options), "--dump-config")
    assert code == 0, text
    assert "lr = 0.5\n" in text
    assert f'run = "{tmp_path}"\n' in text
    assert "steps = 9\n" in run("serve", "--resume", tmp_path, "--steps", "9", "--dump-config")[1]


def test_every_option_of_a_run_is_kept_as_it_was(tmp_path: Path) -> None:
    options = ["--bundle", "b", "--trainer", "tcp://127.0.0.1:1", "--outage", "inf", "--precision", "pca2,int8"]
    with get_command("serve").make_context("serve", options) as ctx:
        stored = json.loads(json.dumps(chosen_options(ctx), allow_nan=False))
        before = dict(ctx.params)
    run = kept(tmp_path, fixed={"role": "device"}, options=stored)
    with get_command("serve").make_context("serve", ["--resume", str(run)]) as ctx:
        assert ctx.params | {"run": None} == before | {"bundle": Path("b").absolute()}


def test_a_list_by_epoch_may_be_a_list_in_a_file_of_options(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('bundle = "b"\ntrainer = "tcp://127.0.0.1:1"\nprecision = ["pca4", "pca1"]\n')
    code, text = run("serve", "--config", file, "--dump-config", "--gradient-precision", "pca1, int8")
    assert code == 0, text
    assert 'precision = "pca4,pca1"\n' in text
    assert 'gradient-precision = "pca1,int8"\n' in text
    code, text = run("serve", "--config", file, "--dump-config", "--gradient-precision", "pca1,")
    assert code == 2
    assert "'' is not one of" in text


def get_command(name: str) -> click.Command:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"fixed": {"role": "trainer"}, "options": {}}, ["a run of trainer", "type adc-edge trainer"]),
        ({"fixed": {"role": "device"}}, ["version 0.6", "with --run instead of --resume"]),
        ({}, ["settings.json"]),
        ([], ["settings.json"]),
    ],
)
def test_a_run_that_cannot_be_resumed_is_refused(tmp_path: Path, content: object, words: list[str]) -> None:
    (tmp_path / "settings.json").write_text(json.dumps(content))
    code, text = run("serve", "--resume", tmp_path)
    assert code == 2
    for word in words:
        assert word in text
    code, text = run("serve", "--resume", tmp_path / "absent")
    assert (code, "No such file" in text) == (2, True)
