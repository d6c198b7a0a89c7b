"""The time that a device waits for its trainer, as its events tell it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from adc_edge.cloud_trainer.server import Server
from adc_edge.edge_runtime import waiting as module
from adc_edge.edge_runtime.waiting import TrainerWaits
from adc_edge.errors import LinkError
from adc_edge.storage.run_dir import RunDir
from adc_edge.wire.channel import Channel


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[RunDir]:
    with closing(RunDir(tmp_path / "run", {}, {})) as run_dir:
        yield run_dir


def events(run_dir: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(str(run_dir.path)) / "events.jsonl").read_text().splitlines()]


def test_an_outage_is_told_at_once_and_its_end_with_its_length(run_dir: RunDir) -> None:
    shown: list[bool] = []
    waits = TrainerWaits(run_dir, shown.append)
    waits.tried(0)  # the trainer answers: nothing is told
    waits.outage(True)
    begun = events(run_dir)
    time.sleep(0.05)
    for tries in range(1, 100):
        waits.tried(tries)  # within 5 s
    waits.tried(0)
    waits.outage(False)
    assert shown == [True, False]
    assert [(line["kind"], line["tries"]) for line in begun] == [("waiting", 0)]
    waiting, resumed = events(run_dir)
    assert resumed["kind"] == "resumed"
    assert 0.05 <= resumed["seconds"] < 60
    assert abs(waiting["since"] - waiting["time"]) < 1


def test_further_tries_are_told_every_few_seconds(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVERY_S", 0.0)
    waits = TrainerWaits(run_dir)
    for tries in (1, 2, 3):
        waits.tried(tries)
    told = events(run_dir)
    assert [line["tries"] for line in told] == [1, 2, 3]
    assert len({line["since"] for line in told}) == 1


def test_a_trainer_that_is_not_there_yet_is_waited_for_with_a_count_of_tries(server: Server, run_dir: RunDir) -> None:
    waits, tries = TrainerWaits(run_dir), list[int]()

    def tried(failed: int) -> None:
        tries.append(failed)
        waits.tried(failed)
        if failed >= 2:
            channel.route.door = server.endpoint  # now it listens

    channel = Channel("tcp://127.0.0.1:9", on_try=tried)
    with closing(channel):
        channel.open(60)
    assert tries[:2] == [1, 2]
    assert tries[-1] == 0
    assert [line["kind"] for line in events(run_dir)][-1] == "resumed"


def test_a_trainer_that_never_comes_leaves_the_run_waiting(run_dir: RunDir) -> None:
    waits = TrainerWaits(run_dir)
    with closing(Channel("tcp://127.0.0.1:9", on_try=waits.tried)) as channel, pytest.raises(LinkError):
        channel.open(0.5)
    assert {line["kind"] for line in events(run_dir)} == {"waiting"}
