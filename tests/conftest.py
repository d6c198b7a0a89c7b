"""Fixtures: a small bundle, and a trainer that serves it from a thread or a process on loopback."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.export.build import ExportSettings, export_bundle
from adc_edge.method.ratio import Ratio
from adc_edge.method.split import head_from_manifest
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.security.keystore import make_keys
from adc_edge.storage.bundle import HEAD, Bundle
from tests.serving import logged, serving

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; what tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
TINY = {"patch_size": 4, "img_size": 16, "embed_dim": 32, "num_heads": 2, "depth": 4}  # 17 tokens of 32 channels

torch.set_num_threads(1)  # as many workers as cores: more threads only wait for each other, spinning


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Undo what a command that ran in the test's own process has configured."""
    logger = logging.getLogger("adc_edge")
    before = logger.handlers[:], logger.level
    yield
    logger.handlers[:], logger.level = before


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images and weights, where a machine has them."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a small ViT for the ten digits."""
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    export_bundle(
        ExportSettings(
            "vit_tiny_patch16_224",
            2,
            path,
            Ratio(xi=0.4),
            batch_size=16,
            precision="fp32",
            classes=10,
            model_args=TINY,
            crop_pct=1.0,  # a digit fills its picture
        )
    )
    return path


@pytest.fixture(scope="session")
def bundle(bundle_dir: Path) -> Bundle:
    """The same, loaded."""
    return Bundle.load(bundle_dir, (HEAD,))


@pytest.fixture
def training(bundle: Bundle) -> HeadTraining:
    """A head that learns, on the CPU."""
    from safetensors.torch import load_file

    head = head_from_manifest(bundle.manifest)
    head.vit.load_state_dict(load_file(bundle.path / HEAD))
    return HeadTraining(head, OptimizerSettings(lr=1e-3))


@pytest.fixture
def server(bundle: Bundle, training: HeadTraining, tmp_path: Path) -> Iterator[Server]:
    """A real trainer socket on loopback, served by a thread until the test ends."""
    with logged() as lines:
        server = Server(bundle, training, "tcp://127.0.0.1:*", SessionRegistry(tmp_path / "log"))
        server.lines = lines  # type: ignore[attr-defined]
        with serving(server):
            yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A trainer's key directory."""
    make_keys(tmp_path / "trainer")
    return tmp_path / "trainer"


class Command:
    """An adc-edge command in a process of its own."""

    def __init__(self, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "adc_edge", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, timeout_s: float = 120) -> tuple[int, str]:
        """Exit code and everything it printed."""
        output, _ = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, output

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def command() -> type[Command]:
    """To run commands as users do."""
    return Command


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Wait until something is so; fails after a minute."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "it never came"
            time.sleep(0.02)

    return wait


class Proxy:
    """A TCP proxy that counts, and can cut the connection after so many bytes up."""

    def __init__(self, endpoint: str) -> None:
        host, port = endpoint.removeprefix("tcp://").split(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.up = self.down = self.cuts = 0
        self._cut_at: int | None = None

    def cut_after(self, more: int) -> None:
        """Cut once ``more`` bytes have gone up from now on."""
        self._cut_at = self.up + more

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._shut(*self._ends)
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._ends):
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._ends.append(client)
                cloud = socket.create_connection(self._target)
                self._ends.append(cloud)
                for way in ((client, cloud, "up"), (cloud, client, "down")):
                    self._threads.append(threading.Thread(target=self._pump, args=way))
                    self._threads[-1].start()

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                setattr(self, way, getattr(self, way) + len(data))
                if way == "up" and self._cut_at is not None and self.up > self._cut_at:
                    self._cut_at, self.cuts = None, self.cuts + 1
                    break
                sink.sendall(data)
        self._shut(source, sink)

    @staticmethod
    def _shut(*ends: socket.socket) -> None:
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy_type() -> type[Proxy]:
    """To stand between a device and its trainer."""
    return Proxy
