"""`adc-edge evaluate`, as a user types it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pytest
from click.testing import CliRunner

from adc_edge.cli import main
from adc_edge.evaluation.study.presets import PRESETS, preset
from adc_edge.evaluation.study.records import Study
from adc_edge.evaluation.study.setting import Setting, parse_setting, product

TASK = (
    "--data digits --model vit_tiny_patch16_224 --img-size 16 --model-arg patch_size=4 --model-arg embed_dim=32 "
    "--model-arg num_heads=2 --model-arg depth=4 --split 2 --batch-size 32 --epochs 0.25 --train-images 256 "
    "--test-images 50"
).split()


@pytest.mark.slow
def test_one_command_gives_table_plot_page_and_data_and_a_second_adds_to_it(tmp_path: Path, command: Any) -> None:
    asked = [*TASK, "--methods", "none,adc", "--ratios", "0.3", "--seeds", "0", "-o", tmp_path / "out"]
    with command("evaluate", *asked) as process:
        code, text = process.finish()
    assert code == 0, text
    assert "adc@0.3" in text
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "index.html",
        "plot.png",
        "curves.png",
        "results.csv",
        "results.json",
        "results.md",
        "pictures.json",
        "totals.png",
        "runs",
        "study.json",
    }
    assert "the images, sent once" in text
    points = pd.read_csv(tmp_path / "out" / "results.csv")
    assert set(points["setting"]) == {"none", "adc@0.3"}
    assert json.loads((tmp_path / "out" / "results.json").read_text())["study"]["batch_size"] == 32

    with command("evaluate", *asked, "--setting", "none/int4:int2") as process:
        code, text = process.finish()
    assert code == 0, text
    assert "2 of 3 runs are there already" in text
    assert set(pd.read_csv(tmp_path / "out" / "results.csv")["setting"]) == {"none", "adc@0.3", "none/int4:int2"}


def alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] not in "ZX"
    except OSError:
        return False


@pytest.mark.slow
def test_ctrl_c_ends_the_runs_that_go_on_in_other_processes(tmp_path: Path, command: Any, eventually: Any) -> None:
    asked = [*TASK, "--epochs", "400", "--jobs", "2", "--seeds", "0", "-o", tmp_path / "out"]
    with command("evaluate", *asked) as process:
        main_thread = Path(f"/proc/{process.process.pid}/task/{process.process.pid}")
        while len((main_thread / "children").read_text().split()) < 4:  # two workers, queue, tracker
            time.sleep(0.1)
        children = (main_thread / "children").read_text().split()
        process.process.send_signal(signal.SIGINT)
        code, text = process.finish()
    assert code == 130, text
    assert "finished runs are kept" in text
    eventually(lambda: not any(map(alive, children)))


EARLY = """
import os, signal, sys
from adc_edge.evaluation.study import runner
unblock = signal.pthread_sigmask
def interrupted(how, signals):
    if how == signal.SIG_UNBLOCK:
        os.kill(os.getpid(), signal.SIGINT)
    return unblock(how, signals)
signal.pthread_sigmask = interrupted
from adc_edge.cli import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_ctrl_c_ends_the_runs_that_have_just_begun(tmp_path: Path) -> None:
    asked = ["evaluate", *TASK, "--epochs", "400", "--jobs", "2", "--seeds", "0", "-o", tmp_path / "out"]
    words = [sys.executable, "-c", EARLY, *map(str, asked)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 130, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--methods", "adcc"], "METHOD"),
        (["--ratios", "2"], "0, 1"),
        (["--seeds", "one"], "--seeds"),
        (["--budgets", "much"], "--budgets"),
        (["--epochs", "0"], "--epochs"),
        (["--max-epochs", "0.1"], "--max-epochs"),
        (["--data", "nothing"], "digits, folder:PATH"),
        (["--split", "9"], "--split 9"),
        (["--devices", "0"], "--devices 0"),
        (["--devices", "four"], "--devices four"),
        (["--devices", "4", "--mode", "federated"], "parallel, averaged, sequential, frozen"),
        (["--devices", "4", "--partition", "dirichlet:x"], "--partition dirichlet:x"),
        (["--devices", "300"], "300 devices and 256 training images"),
        (["--devices", "8", "--partition", "by-class", "--batch-size", "30"], "--partition by-class"),
        (["--devices", "4", "--methods", "none,topk"], "a method that `serve` has"),
        (["--devices", "4", "--robust", "median"], "a fleet whose trunks are averaged"),
        (["--average-every", "0"], "--average-every"),
        (["--average-precision", "int4"], "fp32"),
        (["--eval-precision", "int5"], "central"),
    ],
)
def test_wrong_use_ends_with_exit_code_2_and_says_what_was_expected(
    wrong: list[str], told: str, tmp_path: Path
) -> None:
    asked = ["evaluate", *TASK, "--seeds", "0", "--methods", "adc", *wrong, "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 2, result.output
    assert told in result.output
    assert "Traceback" not in result.output


def test_the_papers_grid_is_the_papers() -> None:
    cifar, food = preset("paper", "cifar100:/data"), preset("paper", "food101:/data")
    assert (cifar["batch_size"], food["batch_size"]) == (128, 256)
    assert cifar["batch_size"] // 128 * 50_000 * cifar["epochs"] == 500_000
    assert 75_750 * food["epochs"] == pytest.approx(750_000, rel=0.01)
    assert cifar["seeds"] == "43422,51,114"
    assert set(cifar["augment"].split(",")) == {"randaugment", "jitter", "flip"}
    assert cifar["split"] == 3


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_names_options_and_settings_that_exist(name: str) -> None:
    from adc_edge.evaluation.command import evaluate

    values = PRESETS[name]
    assert values.keys() <= {parameter.name for parameter in evaluate.params}
    settings = product(values["methods"].split(","), values["ratios"].split(","), ["fp32"])
    assert len(settings) > 5
    for text in values.get("extra", ()):
        parse_setting(text)


Asked = list[tuple[Study, Sequence[Setting]]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The studies, with their settings, that commands ask for; none is run."""
    from adc_edge.evaluation.study import runner

    seen: Asked = []

    def note(study: Study, settings: Sequence[Setting], *rest: Any) -> list[Any]:
        seen.append((study, settings))
        return []

    monkeypatch.setattr(runner, "run_study", note)
    monkeypatch.setattr(runner, "read_runs", lambda directory: (seen[-1][0], []))
    return seen


def test_an_option_that_is_typed_wins_over_the_preset(tmp_path: Path, asked: Asked) -> None:
    typed = ["evaluate", "--preset", "small", "--epochs", "1", "-o", str(tmp_path)]
    assert CliRunner().invoke(main, typed).exit_code == 0
    study, settings = asked[0]
    assert study.epochs == 1.0
    assert study.compute == "bf16"
    assert parse_setting("none/pca1:pca0.25") in settings


def test_a_learning_rate_of_the_trunks_own_reaches_the_study(tmp_path: Path, asked: Asked) -> None:
    for typed, expected in (([], 4e-4), (["--trunk-lr", "2e-4"], 2e-4), (["--trunk-lr", "0"], 0.0)):
        result = CliRunner().invoke(main, ["evaluate", "--lr", "4e-4", "-o", str(tmp_path), *typed])
        assert result.exit_code == 0, result.output
        study, _ = asked[-1]
        assert (study.trunk_optimizer.lr, study.optimizer.lr) == (expected, 4e-4)
    refused = CliRunner().invoke(main, ["evaluate", "--trunk-lr", "-1", "-o", str(tmp_path)])
    assert refused.exit_code == 2
    assert "--trunk-lr" in refused.output


def test_augmentation_of_what_is_stored_reaches_the_study_and_is_refused_where_nothing_is(
    tmp_path: Path, asked: Asked
) -> None:
    def typed(*options: str) -> Any:
        return CliRunner().invoke(main, ["evaluate", "--epochs", "4", "-o", str(tmp_path), *options])

    augmented = ("--store-mix", "1", "--store-drop", "0.2")
    assert typed(*augmented, "--setting", "none/pca1+freeze2").exit_code == 0
    assert (asked[-1][0].store_mix, asked[-1][0].store_drop) == (1.0, 0.2)
    assert typed("--setting", "none/pca1+freeze2").exit_code == 0
    new = {"store_mix", "store_drop", "trunk_lr"}
    assert not new & set(msgspec.to_builtins(asked[-1][0])), "as study.json of 0.15 has it"
    for setting in ("none/pca1", "none/pca1+freeze2x2"):  # the second is never alone
        refused = typed(*augmented, "--setting", setting)
        assert refused.exit_code == 2
        assert "--store-drop 0.2 and --store-mix 1, and no setting" in refused.output
