"""A mistake in an option is told before torch is imported, which takes seconds; with the extra that a command needs."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adc_edge.cli import _EXTRAS
from adc_edge.storage.bundle import HEAD, MANIFEST
from adc_edge.storage.run_dir import RunDir

TRAINER = "trainer --bundle {bundle} --bind tcp://127.0.0.1:*"
SERVE = "serve --bundle {bundle} --trainer tcp://127.0.0.1:1"
EXPORT = "export --model vit_tiny_patch16_224 --split 2 -o {tmp}/new"
STUDY = "--data digits --model vit_tiny_patch16_224 -o {tmp}/new"
CASES = (  # a command line with a mistake, and words of the message
    ("trainer --bundle {tmp}/none", "no bundle at"),
    ("trainer --bundle {tmp}/headless", "head.safetensors is missing"),
    ("trainer --bundle {tmp}/changed", "head.safetensors was changed or damaged"),
    ("trainer --bundle {bundle} --bind 127.0.0.1:5700", "tcp://HOST:PORT"),
    ("trainer --bundle {bundle} --bind tcp://0.0.0.0:5700", "is not loopback, and there are no keys"),
    ("trainer --bundle {bundle} --bind tcp://127.0.0.1:{taken}", "is in use"),
    (f"{TRAINER} --keys {{tmp}}/none", "no key at"),
    (f"{TRAINER} --keys {{tmp}}/none --insecure", "--keys and --insecure"),
    (f"{TRAINER} --run {{tmp}}/begun", "holds a run of `serve`"),
    (f"{TRAINER} --run {{tmp}}/used", "is in use by another process"),
    (f"{TRAINER} --run {{tmp}}/damaged", "settings as adc-edge wrote them"),
    (f"{TRAINER} --one-session --devices 2", "--one-session and --devices 2"),
    ("trainer --resume {tmp}/none", "settings.json"),
    ("serve --bundle {tmp}/none --trainer tcp://127.0.0.1:1", "no bundle at"),
    ("serve --bundle {bundle} --trainer http://127.0.0.1:1", "tcp://HOST:PORT"),
    (f"{SERVE} --keys {{tmp}}/none", "no key at"),
    (f"{SERVE} --data folder:{{tmp}}/none", "folder:"),
    (f"{SERVE} --run {{tmp}}/begun", "holds another run"),
    (f"{SERVE} --run {{tmp}}/used", "is in use by another process"),
    (f"{SERVE} --steps 1 --epochs 1", "--steps and --epochs"),
    (f"{SERVE} --compute int8", "--trunk frozen"),
    (f"{SERVE} --micro-batches 3", "a number that divides the batch"),
    (f"{SERVE} --augment blur", "blur"),
    ("export --model vit_tiny_patch16_224 --split 2 -o {bundle}", "holds a bundle already"),
    (f"{EXPORT} --weights {{tmp}}/none.safetensors", "is no file"),
    (f"{EXPORT} --weights {{tmp}}", "is a directory"),
    (f"{EXPORT} --allow-missing head.*", "--allow-missing without weights"),
    (f"{EXPORT} --classes {{tmp}}/none.txt", "no such file"),
    (f"{EXPORT} --classes digits --num-classes 3", "--num-classes 3 and 10 names"),
    (f"{EXPORT} --model-arg depth", "NAME=VALUE"),
    (f"{EXPORT} --batch-ratio 0.5", "--token-ratio"),
    ("merge --run-device {tmp}/none --run-trainer {tmp}/none -o {tmp}/m.safetensors", "is no run directory"),
    ("merge --run-device {tmp}/a --run-trainer {tmp}/a -o {tmp}/m.safetensors", "keeps no trained weights"),
    ("merge --run-device {tmp}/a --run-trainer {tmp}/b -o {tmp}/m.safetensors", "runs of different bundles"),
    ("calibrate --bundle {tmp}/none --data digits", "no bundle at"),
    ("calibrate --bundle {bundle} --data digits --images 2", "--images 2"),
    ("calibrate --bundle {bundle} --data npz:{tmp}/none.npz", "none.npz"),
    ("calibrate --bundle {bundle} --data digits --method minmax --percentile 99", "--percentile 99"),
    (f"evaluate {STUDY} --methods mean", "setting 'mean"),
    (f"evaluate {STUDY} --seeds one", "--seeds one"),
    (f"evaluate {STUDY} --epochs 0", "--epochs 0"),
    (f"evaluate {STUDY} --weights {{tmp}}/none.pth", "is no file"),
    (f"evaluate {STUDY} --augment blur", "blur"),
    ("evaluate --data folder:{tmp}/none -o {tmp}/new", "folder:"),
    ("evaluate --data digits --split 2 -o {tmp}/study", "holds another study: split 3 there, 2 here"),
    (f"privacy {STUDY} --setting topk", "setting 'topk'"),
    (f"privacy {STUDY} --weights {{tmp}}/none.pth", "is no file"),
    ("privacy --data npz:{tmp}/none.npz -o {tmp}/new", "none.npz"),
    ("bench --bundle {tmp}/none", "no bundle at"),
    ("bench --bundle {bundle} --batch-ratio 0.5", "--token-ratio"),
    ("profile --bundle {tmp}/none", "no bundle at"),
    ("profile --bundle {bundle} --trainer 127.0.0.1:1", "tcp://HOST:PORT"),
    ("profile --bundle {bundle} --batch-ratio 0.5", "--token-ratio"),
    ("link --trainer 127.0.0.1:1", "tcp://HOST:PORT"),
)
_RUN = """
import json, sys
from click.testing import CliRunner
from adc_edge.cli import main
for line in json.load(sys.stdin):
    result = CliRunner().invoke(main, line.split())
    heavy = sorted({"torch", "timm"} & set(sys.modules))
    print(json.dumps([result.exit_code, result.output, repr(result.exception), heavy]), flush=True)
    for name in [name for name in sys.modules if name.partition(".")[0] in heavy]:
        del sys.modules[name]  # the next case is judged by itself
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, bundle_dir: Path) -> Iterator[dict[str, Any]]:
    """Bundles, run directories and a port that cannot be used, by the names in the command lines."""
    tmp = tmp_path_factory.mktemp("mistakes")
    for name in ("headless", "changed"):
        shutil.copytree(bundle_dir, tmp / name)
    (tmp / "headless" / HEAD).unlink()
    (tmp / "changed" / HEAD).write_bytes(b"?")
    with closing(RunDir(tmp / "begun", {"role": "device", "seed": 7}, {})) as run:
        run.checkpoint(3, {"x": np.zeros(1, np.float32)}, {})
    with closing(RunDir(tmp / "damaged", {}, {})):
        (tmp / "damaged" / "settings.json").write_text("{")
    for name in ("a", "b"):
        (tmp / name).mkdir()
        manifest = (bundle_dir / MANIFEST).read_text()
        (tmp / name / MANIFEST).write_text(manifest.replace("0.4", "0.5") if name == "b" else manifest)
    study = {"format": 1, "study": {"data": "digits", "crop_pct": "model"}, "settings": ["none"], "seeds": [0]}
    (tmp / "study" / "runs").mkdir(parents=True)
    (tmp / "study" / "runs" / "none.json").touch()
    (tmp / "study" / "study.json").write_text(json.dumps(study))
    with closing(RunDir(tmp / "used", {}, {})), socket.create_server(("127.0.0.1", 0)) as taken:
        yield {"tmp": tmp, "bundle": bundle_dir, "taken": taken.getsockname()[1]}


@pytest.fixture(scope="module")
def outcomes(places: dict[str, Any]) -> list[Any]:
    """Exit code, output, exception and heavy modules of each command line, in one fresh process."""
    given = json.dumps([line.format(**places) for line, _ in CASES])
    done = subprocess.run(
        [sys.executable, "-c", _RUN], input=given, capture_output=True, text=True, check=False, timeout=120
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(CASES), done.stderr
    return found


@pytest.mark.parametrize(
    "number",
    range(len(CASES)),
    ids=[line.format_map({}.fromkeys(["tmp", "bundle", "taken"], "_")) for line, _ in CASES],
)
def test_a_mistake_is_told_before_torch_is_imported(outcomes: list[Any], number: int) -> None:
    code, output, exception, heavy = outcomes[number]
    assert CASES[number][1] in output, (output, exception)
    assert code in (1, 2)
    assert heavy == []


def extra(name: str) -> set[str]:
    """The packages that an extra of pyproject.toml brings, with those of the extras that it names."""
    text = Path(__file__).parents[1].joinpath("pyproject.toml").read_text()
    found = re.search(rf"^{name} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    assert found, name
    packages = re.findall(r'"([\w-]+)', found[1])
    others = ",".join(re.findall(r'"adc-edge\[([\w,]+)\]', found[1])).split(",")
    return set(packages).union(*(extra(other) for other in others if other))


@pytest.mark.parametrize("command", ["trainer", "export", "merge", "evaluate", "privacy", "calibrate"])
def test_the_extra_that_a_command_names_brings_torch_and_timm(command: str) -> None:
    assert {"torch", "timm"} <= extra(_EXTRAS[command])
    assert "timm" not in extra(_EXTRAS["serve"])  # a device does without
