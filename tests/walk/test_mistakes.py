"""A person's mistakes: one message tells what came, what was expected and how to mend it, and nothing is written."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from adc_edge.cli import main
from adc_edge.evaluation.study.records import STUDY_FORMAT, Study
from adc_edge.files import json_bytes
from adc_edge.security.keystore import allow, make_keys
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.run_dir import RunDir
from tests.walk.mistakes import HEAVY, LIGHT, Mistake

MOST_CPU_SECONDS = 2.0  # of a mistake that needs no torch


@pytest.fixture(scope="module")
def places(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files and directories that the lines name."""
    top = tmp_path_factory.mktemp("mistakes")
    t = top / "t"
    for name in ("empty", "flat", "one/cat", "photos/cat"):
        (t / name).mkdir(parents=True)
    shutil.copytree(bundle_dir, top / "b")
    latin = t / os.fsdecode(b"caf\xe9")
    (latin / "cat").mkdir(parents=True)
    _write_data(t)
    _write_bundles(top / "b", t)
    _write_texts(t)
    own = make_keys(t / "keys")
    make_keys(t / "keys-trainer")
    allow(t / "keys-trainer", "x", own.public)
    shutil.copytree(top / "b", top / "other")
    with (top / "other" / "manifest.json").open("a") as file:
        file.write("\n")  # another digest
    return {"b": top / "b", "other": top / "other", "t": t, "latin": latin, **_runs(top)}


def _write_data(t: Path) -> None:
    image = Image.fromarray(np.zeros((24, 24, 3), np.uint8))
    for number in range(4):
        image.save(t / "flat" / f"{number}.png")
        image.save(t / "photos" / "cat" / f"{number}.png")
    image.save(t / "one" / "cat" / "0.png")
    x, y = np.zeros((40, 8, 8), np.uint8), np.arange(40) % 10
    x[0] = 255
    np.savez(t / "d.npz", x=x, y=y)
    np.savez(t / "labels.npz", y=y)
    np.savez(t / "fewer.npz", x=x, y=y[:30])
    np.savez(t / "twelve.npz", x=x, y=np.arange(40) % 12)
    np.savez(t / "nan.npz", x=np.full((40, 8, 8), np.nan, np.float32), y=y)


def _write_bundles(bundle: Path, t: Path) -> None:
    """Damaged copies of a bundle."""
    for name in ("newer", "cut", "mempty", "headless"):
        shutil.copytree(bundle, t / name)
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    (t / "newer" / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    (t / "cut" / "client.onnx").write_bytes(b"")
    (t / "mempty" / "manifest.json").write_bytes(b"")
    (t / "headless" / "head.safetensors").unlink()


def _write_texts(t: Path) -> None:
    (t / "nothing").touch()
    texts = {
        "text": "hello\n",
        "two.txt": "cat\ndog\n",
        "columns.csv": "name,kind\na.png,cat\n",
        "gone.csv": "path,label\n" + "".join(f"{n}.png,c{n % 2}\n" for n in range(20)),
        "typo.toml": '[serve]\nprecison = "int8"\n',
        "broken.toml": "[serve\n",
        "link.json": '{"trainer": "tcp://127.0.0.1:5700", "up_mbit_s": 5, "down_mbit_s": 20, "rtt_p50_ms": 40}',
    }
    for name, text in texts.items():
        (t / name).write_text(text)
    plan = {"format": STUDY_FORMAT, "study": Study("digits", "vit_tiny_patch16_224"), "settings": [], "seeds": []}
    (t / "other-study" / "runs").mkdir(parents=True)
    (t / "other-study" / "runs" / "none-0.json").write_text("{}")
    (t / "other-study" / "study.json").write_bytes(json_bytes(msgspec.to_builtins(plan)))


def _runs(top: Path) -> dict[str, Path]:
    """Runs of a device and a trainer that have done a step."""
    bundle = Bundle.load(top / "b", ())
    for name, role in (("device", "device"), ("cloud", "trainer")):
        fixed: dict[str, Any] = {"role": role, "bundle": bundle.digest, "optimizer": {"lr": 1e-4}}
        with closing(RunDir(top / name, fixed, {}, options={"bundle": str(top / "b")})) as run:
            run.metric(kind="step", step=0)
            run.keep("manifest.json", (top / "b" / "manifest.json").read_bytes())
    return {"device": top / "device", "cloud": top / "cloud"}


def _state(places: dict[str, Path]) -> dict[str, int]:
    """Every file, with its size."""
    return {str(file): file.lstat().st_size for file in places["b"].parent.rglob("*")}


def _check(mistake: Mistake, code: int, output: str, places: dict[str, Path]) -> None:
    assert code == mistake.code, output
    assert "Traceback" not in output
    for word in mistake.words:
        assert word.format(**places) in output, output
    used_wrongly = "Usage: " in output  # click's own words, which name the option and what it takes
    told = "expected:" in output and "remedy:" in output
    assert used_wrongly or told or mistake.line.startswith("doctor"), output


@pytest.fixture
def untouched(places: dict[str, Path]) -> Iterator[dict[str, Path]]:
    """The places, in which nothing is written, changed or removed."""
    before = _state(places)
    yield places
    assert _state(places) == before


@pytest.mark.parametrize(
    "mistake", [*LIGHT, *(pytest.param(m, marks=pytest.mark.slow) for m in HEAVY)], ids=lambda m: m.what
)
def test_a_mistake_is_told_with_what_is_expected_and_nothing_is_written(
    mistake: Mistake, untouched: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # nothing is wrapped
    words = [word.format(**untouched) for word in shlex.split(mistake.line)]
    result = CliRunner().invoke(main, words, prog_name="adc-edge")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    _check(mistake, result.exit_code, result.output, untouched)


@pytest.mark.slow
@pytest.mark.parametrize("mistake", [m for m in LIGHT if m.code == 2][::3], ids=lambda m: m.what)
def test_a_process_tells_it_within_two_seconds_of_computing(mistake: Mistake, untouched: dict[str, Path]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "adc_edge", *(word.format(**untouched) for word in shlex.split(mistake.line))],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "COLUMNS": "400"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    _check(mistake, done.returncode, done.stdout + done.stderr, untouched)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MOST_CPU_SECONDS


@pytest.mark.slow
def test_two_trainers_on_one_port_or_in_one_run_are_refused(bundle_dir: Path, tmp_path: Path, command: Any) -> None:
    trainer = ("trainer", "--bundle", bundle_dir, "--bind", "tcp://127.0.0.1:*", "--run", tmp_path / "run")
    with command(*trainer):
        while not (tmp_path / "run" / "endpoint").exists():
            time.sleep(0.05)
        port = (tmp_path / "run" / "endpoint").read_text()
        for arguments, words in (
            ((*trainer[:3], "--bind", port), ("cannot listen on", "in use", "remedy:")),
            (trainer, ("in use by another process", "one process for each run", "remedy:")),
        ):
            with command(*arguments) as second:
                code, output = second.finish()
            assert code == 2, output
            assert "Traceback" not in output
            for word in words:
                assert word in output


def test_there_are_mistakes_of_many_kinds() -> None:
    lines = [mistake.line for mistake in (*LIGHT, *HEAVY)]
    assert len(set(lines)) == len(lines) >= 60
