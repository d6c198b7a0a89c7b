"""`serve --micro-batches auto`: what it chooses on a fast and on a slow link, and that the run keeps it."""

from __future__ import annotations

import itertools
import json
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file

from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.edge_runtime.runner import Serve
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.errors import CheckpointError
from adc_edge.method.split import head_from_manifest
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.storage.bundle import HEAD, Bundle
from tests.chaos.proxy import BadLink
from tests.serving import serving

SLOW: dict[str, Any] = {"rate_mbit_s": 4.0, "delay_ms": 10.0}


class Trainer:
    """A trainer with the bundle's head, on a fast link or a slow one."""

    def __init__(self, bundle: Bundle, log: Path, stack: ExitStack) -> None:
        head = head_from_manifest(bundle.manifest)
        head.vit.load_state_dict(load_file(bundle.path / HEAD))
        self.training = HeadTraining(head, OptimizerSettings(lr=1e-3))
        self.server = stack.enter_context(
            serving(Server(bundle, self.training, "tcp://127.0.0.1:*", SessionRegistry(log)))
        )
        port = int(self.server.endpoint.rpartition(":")[2])
        self.fast = self.server.endpoint
        self.slow = stack.enter_context(BadLink(port, random.Random(0), **SLOW)).endpoint


@pytest.fixture
def trainer(bundle: Bundle, tmp_path: Path) -> Iterator[Callable[[], Trainer]]:
    """A function that starts trainers with equal weights."""
    with ExitStack() as stack:
        numbers = itertools.count()
        yield lambda: Trainer(bundle, tmp_path / f"log-{next(numbers)}", stack)


def run(bundle: Bundle, endpoint: str, stop: Callable[[], bool] = lambda: False, **more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "steps": 5,
        "batch_size": 64,
        "precision": "fp16",
        "threads": 1,
        "evaluate_images": 16,
    } | more
    return Serve(ServeSettings(bundle.path, endpoint, **given), Console(quiet=True), stop=stop).run()


def steps(directory: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "step"]


def test_a_fast_link_gets_one_message_a_step_and_nothing_is_measured_but_the_link(
    bundle: Bundle, trainer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "adc_edge")
    report = run(bundle, trainer().fast, run=tmp_path / "run")
    assert report["micro_batches"] == 1
    assert json.loads((tmp_path / "run" / "micro-batches").read_text())["micro_batches"] == 1
    assert "micro-batches" not in caplog.text
    sent = steps(tmp_path / "run")[1]["bytes_up"]
    assert report["bytes_probe_up"] < 4 * sent + 2000


@pytest.mark.slow
def test_a_slow_link_gets_several_in_one_line_and_equals_a_run_with_that_number_named(
    bundle: Bundle, trainer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "adc_edge")
    chosen, named = trainer(), trainer()
    report = run(bundle, chosen.slow, run=tmp_path / "auto")
    count = report["micro_batches"]
    assert count in (2, 4, 8)
    record = json.loads((tmp_path / "auto" / "micro-batches").read_text())
    assert (record["micro_batches"], record["seconds"] < 0.9 * record["seconds_alone"]) == (count, True)
    (line,) = [each for each in caplog.messages if each.startswith("micro-batches")]
    assert line.startswith(f"micro-batches {count}, window {record['window']}: predicted ")
    assert line.endswith(" with 1")
    run(bundle, named.fast, run=tmp_path / "named", micro_batches=count)
    assert chosen.training.safetensors() == named.training.safetensors()
    ours, theirs = (load_file(tmp_path / name / "trunk.safetensors") for name in ("auto", "named"))
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)
    assert [step["loss"] for step in steps(tmp_path / "auto")] == [step["loss"] for step in steps(tmp_path / "named")]


def test_a_frozen_trunk_is_measured_too(bundle: Bundle, trainer: Any, tmp_path: Path) -> None:
    report = run(bundle, trainer().slow, run=tmp_path / "run", trunk="frozen", steps=1)
    record = json.loads((tmp_path / "run" / "micro-batches").read_text())
    assert record["micro_batches"] == report["micro_batches"]
    assert record["seconds_alone"] > 0.05  # 29 kB at 4 Mbit/s, and 20 ms


@pytest.mark.slow
def test_a_process_that_comes_back_goes_on_with_the_record_whatever_the_link_is(
    bundle: Bundle, trainer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there, device = trainer(), tmp_path / "device"
    until: dict[str, Any] = {"steps": 6, "run": device, "evaluate_images": 16}
    first = run(
        bundle, there.slow, stop=lambda: (device / "metrics.jsonl").exists() and len(steps(device)) >= 2, **until
    )
    assert not first["complete"]
    count = first["micro_batches"]
    assert count > 1
    caplog.set_level(logging.INFO, "adc_edge")
    second = run(bundle, there.fast, **until)
    assert (second["micro_batches"], second["steps"]) == (count, 6)
    assert second["bytes_probe_up"] == first["bytes_probe_up"]
    assert not [each for each in caplog.messages if each.startswith("micro-batches")]
    undisturbed = trainer()
    run(bundle, undisturbed.fast, **(until | {"run": tmp_path / "undisturbed", "micro_batches": count}))
    assert there.training.safetensors() == undisturbed.training.safetensors()


def test_a_run_takes_up_the_number_that_it_began_with_and_refuses_another(
    bundle: Bundle, trainer: Any, tmp_path: Path
) -> None:
    there = trainer()
    run(bundle, there.fast, run=tmp_path / "run", steps=1, micro_batches=4)  # as 0.8 did: without a record
    assert not (tmp_path / "run" / "micro-batches").exists()
    assert run(bundle, there.fast, run=tmp_path / "run", steps=2)["micro_batches"] == 4
    for wrong in (1, 2):
        with pytest.raises(CheckpointError, match=f"micro_batches was 4, is {wrong}"):
            run(bundle, there.fast, run=tmp_path / "run", steps=3, micro_batches=wrong)
    assert run(bundle, there.fast, run=tmp_path / "run", steps=3, micro_batches=4)["steps"] == 3


def test_the_number_that_was_chosen_may_be_named_and_another_is_refused(
    bundle: Bundle, trainer: Any, tmp_path: Path
) -> None:
    there = trainer()
    run(bundle, there.fast, run=tmp_path / "run", steps=1)
    with pytest.raises(CheckpointError, match="micro_batches was 1, is 2"):
        run(bundle, there.fast, run=tmp_path / "run", steps=2, micro_batches=2)
    assert run(bundle, there.fast, run=tmp_path / "run", steps=2, micro_batches=1)["steps"] == 2
    with pytest.raises(CheckpointError, match="shape images was 64, is 32"):
        run(bundle, there.fast, run=tmp_path / "run", steps=2, batch_size=32)


def test_a_damaged_record_is_refused_by_name(bundle: Bundle, trainer: Any, tmp_path: Path) -> None:
    there = trainer()
    run(bundle, there.fast, run=tmp_path / "run", steps=1)
    (tmp_path / "run" / "micro-batches").write_text("{")
    with pytest.raises(CheckpointError, match="micro-batches: Input data"):
        run(bundle, there.fast, run=tmp_path / "run", steps=2)
    assert run(bundle, trainer().fast, run=tmp_path / "run", steps=2, fresh=True)["steps"] == 2
