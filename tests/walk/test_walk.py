"""README, quickstart and boards, typed from top to bottom as a new user does.

Each command runs in the environment that it is meant for, in the directory of its machine. A trainer runs beside the
device, on loopback. What a test must change in a line stands in ``CHANGES``, what it leaves out in ``LEFT_OUT``.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image

from tests.walk.environments import ROOT, Environment, copy_checkout

# `timed`: by itself, so that the environments are made once, not in each worker.
pytestmark = [pytest.mark.slow, pytest.mark.timed, pytest.mark.timeout(900)]

INSTALL = {  # environment: the line of README, and its extras
    "device": ("pip install .", ()),
    "learning device": ("pip install '.[train]'", ("train",)),
    "host": ("pip install '.[export,cloud]'", ("export", "cloud")),
}
LACKS = {
    "device": ("torch", "timm", "torchvision", "onnx", "onnxscript", "pandas", "sklearn", "pytest"),
    "learning device": ("timm", "torchvision", "onnx", "onnxscript", "pandas", "sklearn", "pytest"),
    "host": ("pandas", "matplotlib", "joblib", "sklearn", "pytest"),
}
ON_A_HOST = ("export", "trainer", "merge", "calibrate", "keys allow")  # the others run on the device
SMALL = " --img-size 32 --model-arg patch_size=8 --model-arg embed_dim=48 --model-arg num_heads=3 --model-arg depth=8"
CHANGES = {  # pattern: what a test types instead; no network, small numbers, one machine
    r" +#.*": "",
    r" --pretrained| --weights \S+": "",
    r"(--model deit_tiny_patch16_224)": r"\1" + SMALL,
    r"tcp://(cloud\.example|127\.0\.0\.1|0\.0\.0\.0):5700": "tcp://127.0.0.1:{port}",
    r"^(adc-edge trainer (?!.*--bind).*)": r"\1 --bind tcp://127.0.0.1:{port}",
    r"--steps 400 --eval-every 100": "--steps 4 --eval-every 2",
    r"--steps 800 --eval-every 100": "--steps 8 --eval-every 2",
    r"--epochs 3": "--epochs 1",
    r"--images 256": "--images 32 --max-drop 100",
    r"^(adc-edge bench .*)": r"\1 --rounds 1",
    r"^(adc-edge link .*)": r"\1 --seconds 0.5",
}
LEFT_OUT = (
    r"make|docker|sudo|python3 -m venv|pip install|_ADC_EDGE"  # set-up; `environments` types what README installs
    r"|.*--shim-device cuda"  # no GPU here
)
SAYS = {  # a line that a person looks for
    "export": r"wrote +\w+",
    "calibrate": r"wrote +out: client.int8.onnx",
    "keys new": "made keys in keys",
    "keys pin": "this device trusts only the trainer",
    "keys allow": "orin-1 may connect",
    "link": "link to tcp://127.0.0.1",
    "plan": "chosen   the fastest of",
    "profile": "trunk, ms for an image",
    "doctor": "can serve",
    "bench": "onnxruntime",
    "serve": "test accuracy",
    "merge": r"wrote [\w-]+\.safetensors: step \d+ of the device",
}


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Environment]:
    """The three environments that README tells to make."""
    top, readme = tmp_path_factory.mktemp("environments"), (ROOT / "README.md").read_text()
    checkout, found = copy_checkout(top / "checkout"), {}
    for name, (line, extras) in INSTALL.items():
        assert f"$ {line} " in readme
        found[name] = Environment(top / name.replace(" ", "-"), checkout, line, extras)
    return found


def typed_lines(page: str) -> list[str]:
    """The commands of a page in their order, continued lines joined."""
    blocks = re.findall(r"^```console\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line[2:] for line in lines if line.startswith("$ ") and not re.match(LEFT_OUT, line[2:])]


class Walk:
    """Two machines, a host and a device, each with its directory."""

    def __init__(self, top: Path, environments: dict[str, Environment], device: str, more: str = "") -> None:
        self._environments, self._device, self._more = environments, device, more
        self.host, self.device = top / "host", top / "device"
        self._trainer: subprocess.Popen[str] | None = None
        self._log: IO[str] = (top / "trainer.log").open("w+")
        with socket.create_server(("127.0.0.1", 0)) as server:
            self._port = str(server.getsockname()[1])
        for machine in (self.host, self.device):
            _make_photos(machine / "photos")

    def type(self, line: str) -> str:
        """Type a line of a page where it belongs, and return what it prints."""
        line = " ".join(line.split())
        for pattern, instead in CHANGES.items():
            line = re.sub(pattern, instead.replace("{port}", self._port), line)
        command = re.match(r"adc-edge (keys \w+|\w+)", line)
        assert command is not None, line
        on_host = command[1] in ON_A_HOST or (command[1] == "keys new" and not (self.host / "keys").exists())
        where = self.host if on_host else self.device
        environment = self._environments["host" if on_host else self._device]
        self._prepare(command[1])
        if command[1] == "trainer":
            self._start(environment, line)
            return ""
        output = environment.run(line + (self._more if command[1] == "serve" else ""), where)
        assert re.search(SAYS[command[1]], output), f"$ {line}\n{output}"
        return output

    def _prepare(self, command: str) -> None:
        """Do by hand what a page says in words: copy bundles, keys and runs, and end the trainer."""
        if command == "trainer":
            self.end()
            for bundle in self.host.glob("*/manifest.json"):
                shutil.copytree(bundle.parent, self.device / bundle.parent.name, dirs_exist_ok=True)
        elif command == "merge":
            self.end()
            shutil.copytree(self.device / "runs", self.host / "runs", dirs_exist_ok=True)
        elif command == "keys pin":
            shutil.copy(self.host / "keys" / "public.key", self.device)
        elif command == "keys allow":
            shutil.copy(self.device / "keys" / "public.key", self.host)

    def _start(self, environment: Environment, line: str) -> None:
        self._trainer = subprocess.Popen(
            ["bash", "-c", f"exec {line}"],
            cwd=self.host,
            env=environment.variables(),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._wait(lambda: "listens " in self.log())

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert self._trainer is not None
            assert self._trainer.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def log(self) -> str:
        """Return what the trainers have printed."""
        return Path(self._log.name).read_text()

    def end(self) -> None:
        """End the trainer with Ctrl-C, unless it ends by itself once its devices are done."""
        if self._trainer is None:
            return
        if "--devices" not in str(self._trainer.args):
            self._trainer.send_signal(signal.SIGINT)
        assert self._trainer.wait(60) == 0, self.log()
        assert "Traceback" not in self.log()
        self._trainer = None

    def close(self) -> None:
        if self._trainer is not None and self._trainer.poll() is None:
            self._trainer.kill()
            self._trainer.wait()
        self._log.close()


def _make_photos(folder: Path) -> None:
    for number in range(120):
        file = folder / f"class{number % 4}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (24, 24, 3), np.uint8)).save(file)


@pytest.fixture
def new_walk(tmp_path: Path, environments: dict[str, Environment]) -> Iterator[Callable[..., Walk]]:
    walks = []

    def make(device: str, more: str = "") -> Walk:
        walks.append(Walk(tmp_path, environments, device, more))
        return walks[-1]

    yield make
    for walk in walks:
        walk.close()


@pytest.mark.parametrize("name", INSTALL)
def test_an_environment_has_what_readme_says_and_nothing_else(name: str, environments: dict[str, Environment]) -> None:
    environment = environments[name]
    assert environment.has("adc_edge")
    assert environment.has("torch") == (name != "device")
    assert not [module for module in LACKS[name] if environment.has(module)]
    assert "No broken requirements found" in environment.run("pip check", environment.path)


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_a_device_that_learns_types_the_page_to_a_merged_model(page: str, new_walk: Callable[..., Walk]) -> None:
    walk = new_walk("learning device")
    for line in typed_lines(page):
        walk.type(line)
    assert (walk.host / "model.safetensors").exists()
    assert "is done after" in walk.log()


def test_a_device_without_torch_types_the_page_of_boards_with_a_frozen_trunk(new_walk: Callable[..., Walk]) -> None:
    walk = new_walk("device", " --trunk frozen")
    said = [walk.type(line) for line in typed_lines("docs/boards.md")]
    assert "is done after" in walk.log()
    assert any("agree" in text for text in said)  # bench, with the golden pair
    again = walk.type(
        "adc-edge serve --bundle out/ --trainer tcp://127.0.0.1:5700 --keys keys/ --data folder:photos --epochs 1 "
        "--run runs/int8 --compute int8"
    )
    assert "test accuracy" in again
    assert (walk.device / "report.json").exists()
    walk.end()
