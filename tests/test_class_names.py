"""Devices with different classes train one head, and labels stay what they are when folders come and go."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from adc_edge.cloud_trainer.server import Server
from adc_edge.data.sources import load_dataset
from adc_edge.edge_runtime.classes.labels import DeviceClasses
from adc_edge.edge_runtime.runner import Serve
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.errors import CheckpointError
from adc_edge.storage.bundle import Bundle
from tests.serving import logged
from tests.stub_device import Device

COLOURS = {"cat": (200, 40, 40), "dog": (40, 200, 40), "zebra": (40, 40, 200), "ant": (200, 200, 40)}


def photos(root: Path, *names: str, train: int = 24, test: int = 8) -> str:
    """Make a folder of noisy images, a colour for each class, and return its data source."""
    rng = np.random.default_rng(0)
    for name in names:
        for split, count in (("train", train), ("test", test)):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                noise = rng.integers(-40, 40, (16, 16, 3))
                pixels = (np.array(COLOURS[name]) + noise).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return f"folder:{root}"


def serve(bundle: Bundle, server: Server, source: str, steps: int, **more: Any) -> dict[str, Any]:
    """Train with a frozen trunk, so that accuracy is the head's alone."""
    options: dict[str, Any] = {"threads": 1, "trunk": "frozen", "evaluate_images": 0, **more}
    settings = ServeSettings(bundle.path, server.endpoint, source, steps=steps, **options)
    return Serve(settings, Console(quiet=True), stop=lambda: False).run()


@pytest.fixture
def all_three(tmp_path: Path) -> str:
    return photos(tmp_path / "all", "cat", "dog", "zebra")


@pytest.mark.slow
def test_two_devices_with_different_classes_train_one_head_as_well_as_one_device_with_all_of_them(
    bundle: Bundle, server: Server, all_three: str, tmp_path: Path
) -> None:
    sources = photos(tmp_path / "a", "cat", "dog"), photos(tmp_path / "b", "dog", "zebra")
    with ThreadPoolExecutor(2) as both:
        list(both.map(lambda source: serve(bundle, server, source, 60), sources))
    together = serve(bundle, server, all_three, 0)["accuracy"]
    assert together >= 0.95
    assert sorted(server._answers._classes.names) == ["cat", "dog", "zebra"]


@pytest.mark.slow
def test_one_device_with_all_classes_is_the_measure(bundle: Bundle, server: Server, all_three: str) -> None:
    assert serve(bundle, server, all_three, 120)["accuracy"] >= 0.95


def test_a_class_folder_added_before_a_resume_shifts_no_label(bundle: Bundle, server: Server, tmp_path: Path) -> None:
    source, run = photos(tmp_path / "photos", "cat", "dog"), {"run": tmp_path / "run"}
    assert serve(bundle, server, source, 40, **run)["accuracy"] == 1.0
    photos(tmp_path / "photos", "ant", test=0)
    with logged("adc_edge.edge_runtime") as lines:
        spelt = f"folder:{tmp_path}/./photos/"
        assert serve(bundle, server, spelt, 42, **run)["accuracy"] == 1.0
    assert "classes  cat 24+8, dog 24+8, ant 24+0 (train+test)" in lines
    assert "new classes in the data: ant" in lines
    assert server._answers._classes.names == ["cat", "dog", "ant"]


def test_a_trainer_that_lost_its_list_and_learned_another_is_refused(
    bundle: Bundle, server: Server, tmp_path: Path
) -> None:
    source = photos(tmp_path / "photos", "cat", "dog")
    serve(bundle, server, source, 2, run=tmp_path / "run")
    server._answers._classes.__init__(bundle.manifest)  # type: ignore[misc]
    server._answers._classes.learn(["dog", "cat"], False, "another")
    with pytest.raises(CheckpointError, match="'cat' at output 1"):
        serve(bundle, server, source, 4, run=tmp_path / "run")


@pytest.mark.slow
def test_a_trainer_killed_right_after_it_has_learned_names_comes_back_with_the_same_list(
    bundle: Bundle, tmp_path: Path, command: Any
) -> None:
    run = tmp_path / "trainer"

    def endpoint() -> str:
        deadline = time.monotonic() + 100
        while not (run / "endpoint").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return (run / "endpoint").read_text()

    def names_after_open(number: int, *names: str) -> list[str]:
        data = load_dataset(photos(tmp_path / str(number), *names, train=2, test=2))
        classes = DeviceClasses(data, bundle.manifest)
        device = Device(bundle, endpoint(), session=number, classes=classes)
        try:
            device.session.open(60)
        finally:
            device.session.close()
        return classes._known

    start = ("trainer", "--bundle", bundle.path, "--bind", "tcp://127.0.0.1:*", "--run", run, "--threads", "1")
    with command(*start) as trainer:
        assert names_after_open(1, "zebra", "dog") == ["dog", "zebra"]
        trainer.process.send_signal(signal.SIGKILL)
        trainer.process.wait()
    (run / "endpoint").unlink()
    with command(*start):
        assert names_after_open(2, "ant", "dog") == ["dog", "zebra", "ant"]
        assert names_after_open(1, "zebra", "dog") == ["dog", "zebra", "ant"]
