"""The command line starts fast and explains mistakes."""

from __future__ import annotations

import resource
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from adc_edge.cli import COMMANDS, main
from adc_edge.cloud_trainer.server import Server


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=lambda c: c[0] if c else "adc-edge")
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys; from adc_edge.cli import main\n"
        f"try: main({[*command, '--help']!r})\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'timm', 'onnx', 'onnxruntime', 'numpy', 'zmq', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Usage:" in result.stdout


@pytest.mark.parametrize("module", ["click", "rich", "torch"])
def test_an_early_ctrl_c_shows_no_traceback(tmp_path: Path, module: str) -> None:
    """The signal comes while ``module`` has just been imported."""
    arguments = ["export", "--model", "vit_tiny_patch16_224", "--split", "2", "-o", str(tmp_path / "bundle")]
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "adc_edge", *arguments], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.rpartition("|")[2].strip() == module:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode in (130, -signal.SIGINT)  # shells show both as 130
    assert "Traceback" not in rest
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        "serve --bundle b --trainer tcp://127.0.0.1:1 --report {no}/report.json",
        "serve --bundle b --trainer tcp://127.0.0.1:1 --run {no}",
        "trainer --bundle b --run {no}/run",
        "export --model vit_tiny_patch16_224 --split 2 -o {no}",
        "merge --run-device a --run-trainer b -o {no}/model.safetensors",
        "evaluate --data digits -o {no}",
        "privacy --data digits -o {no}",
        "bench --bundle b --json {no}/bench.json",
        "bench --bundle b --markdown {no}/bench.md",
        "link --trainer tcp://127.0.0.1:1 --json {no}/link.json",
        "plan --bundle b --link l --json {no}/plan.json",
        "plan --bundle b --link l --plot {no}/front.png",
        "doctor --json {no}/doctor.json",
        "demo --report {no}/report.json",
        "demo --keep {no}",
    ],
)
def test_an_output_that_cannot_be_written_is_told_before_any_work(tmp_path: Path, arguments: str) -> None:
    no = tmp_path / "file"
    no.touch()
    code = (
        f"import sys; from adc_edge.cli import main\n"
        f"try: main({arguments.format(no=no).split()!r})\n"
        "except SystemExit as end: assert end.code == 2, end.code\n"
        "assert not {'torch', 'timm', 'onnx', 'onnxruntime', 'zmq'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "not a directory" in result.stderr
    assert "remedy:" in result.stderr


def cpu_seconds(*arguments: str) -> float:
    """User and system time of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_help_takes_little_more_time_than_an_import_of_click() -> None:
    """The budget is 0.3 s of CPU, where the import of click takes 0.08 s. The ratio holds on any machine."""
    runs = [(cpu_seconds("-m", "adc_edge", "--help"), cpu_seconds("-c", "import click")) for _ in range(4)]
    assert statistics.median(ours / click_alone for ours, click_alone in runs) <= 3, runs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("serve --bundle {tmp}/absent --trainer tcp://127.0.0.1:1", ["no bundle at", "adc-edge export"]),
        ("trainer --bundle {tmp}/absent", ["no bundle at", "adc-edge export"]),
        ("serve --bundle {bundle} --trainer 127.0.0.1:1", ["tcp://HOST:PORT"]),
        ("serve --bundle {bundle} --trainer tcp://192.0.2.1:5700", ["not loopback", "--insecure"]),
        ("trainer --bundle {bundle} --bind tcp://0.0.0.0:5700", ["not loopback", "--insecure"]),
        ("serve --bundle {bundle} --trainer tcp://127.0.0.1:1 --data nothing", ["digits, folder:PATH"]),
        ("serve --bundle {bundle} --trainer tcp://127.0.0.1:1 --data folder:{tmp}", ["holds no image"]),
        ("serve --bundle {bundle} --trainer tcp://127.0.0.1:1 --augment blur", ["blur", "flip"]),
        ("serve --bundle {bundle} --trainer tcp://127.0.0.1:1 --batch-size 5000", ["1437", "--batch-size"]),
        ("serve --bundle {bundle} --trainer tcp://127.0.0.1:1 --batch-ratio 0.5", ["--token-ratio"]),
        ("serve --bundle {bundle} --trainer tcp://127.0.0.1:1 --steps 1 --epochs 1", ["--steps and --epochs"]),
        ("serve --bundle {bundle} --trainer tcp://127.0.0.1:1 --keys {tmp}/none", ["no key at", "adc-edge keys new"]),
        ("trainer --bundle {bundle} --keys {tmp}/none", ["no key at", "adc-edge keys new"]),
        ("trainer --bundle {bundle} --keys {tmp} --insecure", ["--keys and --insecure", "leave one out"]),
        ("link --trainer tcp://127.0.0.1:1 --keys {tmp}/none", ["no key at", "adc-edge keys new"]),
        ("serve --bundle {bundle} --trainer tcp://127.0.0.1:1 --snr-up 900", ["900"]),
        ("export --model vit_tiny_patch16_224 --split 12 -o {tmp}/out", ["--split 12", "1 to 11"]),
        ("export --model vit_tiny_patch16_224 --split 3 --model-arg depth -o {tmp}/out", ["NAME=VALUE"]),
        (
            "export --model vit_tiny_patch16_224 --split 3 --ratio 0.1 --batch-ratio 0.5 -o {tmp}/out",
            ["either --ratio"],
        ),
        ("export --model vit_tiny_patch16_224 --split 3 -o {bundle}", ["holds a bundle already", "--force"]),
        ("merge --run-device {tmp} --run-trainer {tmp} -o {tmp}/model.safetensors", ["no run directory"]),
    ],
)
def test_a_mistake_gives_one_clear_error_and_the_remedy(
    arguments: str, words: list[str], bundle_dir: Path, tmp_path: Path
) -> None:
    code, output = run(*arguments.format(bundle=bundle_dir, tmp=tmp_path).split())
    assert code == (1 if arguments.startswith("merge") else 2), output
    for word in [*words, "expected:", "remedy:"]:
        assert word in output
    assert "Traceback" not in output
    assert not any(tmp_path.iterdir())  # nothing half-written


def test_labels_outside_the_classes_are_refused_with_the_class_count_to_export(
    bundle_dir: Path, tmp_path: Path
) -> None:
    import numpy as np

    images, labels = np.zeros((40, 8, 8), np.uint8), np.arange(40) % 12
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    code, output = run(
        "serve", "--bundle", bundle_dir, "--trainer", "tcp://127.0.0.1:1", "--data", f"npz:{tmp_path}/d.npz"
    )
    assert code == 2
    assert "labels from 0 to 11" in output
    assert "--num-classes 12" in output


def test_an_absent_trainer_is_named_with_the_time_of_the_attempts(bundle_dir: Path) -> None:
    code, output = run("serve", "--bundle", bundle_dir, "--trainer", "tcp://127.0.0.1:9", "--wait", "1")
    assert code == 1
    assert "no trainer at tcp://127.0.0.1:9 after" in output
    assert "--wait inf" in output


def test_a_changed_bundle_file_is_noticed(bundle_dir: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "bundle"
    shutil.copytree(bundle_dir, copy)
    data = bytearray((copy / "client.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "client.onnx").write_bytes(data)
    code, output = run("serve", "--bundle", copy, "--trainer", "tcp://127.0.0.1:9")
    assert code == 2
    assert "changed or damaged" in output


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_one_clear_error_and_leaves_no_torn_file(
    bundle_dir: Path, tmp_path: Path, server: Server
) -> None:
    command = f"{sys.executable} -m adc_edge serve --bundle {bundle_dir} --trainer {server.endpoint} --steps 3 "
    limited = f"ulimit -f 40; exec {command} --run {tmp_path / 'run'} --eval-images 16"  # no file above 40 KiB
    result = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "checkpoint-00000000.safetensors" in result.stderr  # before anything is sent
    assert "free space" in result.stderr
    assert "Traceback" not in result.stderr
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "settings.json",
        "shim-device",
        "manifest.json",
        "metrics.jsonl",
        "journal",
        "lock",
    }


@pytest.mark.slow
def test_a_report_that_fails_at_the_end_leaves_the_result_on_the_screen(
    bundle_dir: Path, tmp_path: Path, server: Server, command: Any, eventually: Any
) -> None:
    run, place = tmp_path / "run", tmp_path / "reports"
    options = ["--steps", "3", "--eval-images", "16", "--run", run, "--report", place / "report.json"]
    with command("serve", "--bundle", bundle_dir, "--trainer", server.endpoint, *options) as serving:
        eventually((run / "settings.json").exists)
        place.touch()  # where a directory was to be made
        code, output = serving.finish()
    assert code == 1
    assert "What the run did and what it cost" in output
    assert f"{place}" in output
    assert "Traceback" not in output


def test_a_command_knows_its_short_help_also_where_its_first_context_has_no_parent() -> None:
    command = main.get_command(click.Context(main), "doctor")
    assert command is not None
    command.make_context("doctor", [])
    assert CliRunner().invoke(main, ["doctor", "-h"]).exit_code == 0
