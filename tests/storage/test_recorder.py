"""The beginning, the warnings and the end of a process's work, as its run tells them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from adc_edge.errors import LinkError
from adc_edge.storage.recorder import TEXT_LENGTH, Recorder, cut
from adc_edge.storage.run_dir import RunDir

logger = logging.getLogger("adc_edge.some.part")


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[RunDir]:
    with closing(RunDir(tmp_path, {}, {})) as run_dir:
        yield run_dir


@pytest.fixture
def events(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    return lambda: [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]


def test_a_run_tells_its_beginning_and_its_end(run_dir: RunDir, events: Callable[[], list[dict[str, Any]]]) -> None:
    step = 7
    with Recorder(run_dir, lambda: step) as recorder:
        recorder.begun("device", "tcp://cloud:5700", 40)
        step = 40
        recorder.ending(True)
    started, ended = events()
    assert {name: started[name] for name in ("kind", "role", "pid", "step", "steps", "peer")} == {
        "kind": "started",
        "role": "device",
        "pid": os.getpid(),
        "step": 7,
        "steps": 40,
        "peer": "tcp://cloud:5700",
    }
    assert (ended["kind"], ended["step"], ended["complete"]) == ("ended", 40, True)


def test_an_error_is_the_reason_of_the_end(run_dir: RunDir, events: Callable[[], list[dict[str, Any]]]) -> None:
    with suppress(LinkError), Recorder(run_dir, lambda: 3) as recorder:
        recorder.begun("device", "")
        raise LinkError("no trainer at tcp://a:1", "one", "start it")
    assert (events()[-1]["complete"], events()[-1]["why"]) == (False, "no trainer at tcp://a:1")


def test_a_process_that_never_began_tells_no_end(run_dir: RunDir, tmp_path: Path) -> None:
    with Recorder(run_dir, lambda: 0):
        pass
    assert not (tmp_path / "events.jsonl").exists()


def test_warnings_and_errors_are_recorded_while_the_run_is_open_and_cut(
    run_dir: RunDir, events: Callable[[], list[dict[str, Any]]]
) -> None:
    logger.warning("before")
    with Recorder(run_dir, lambda: 0):
        logger.info("the step is done")
        logger.warning("%s is full\x1b[31m", "/disk")
        logger.error("e" * 3000)
    logger.warning("after")
    first, second = events()
    assert (first["kind"], first["level"], first["text"]) == ("warned", "warning", "/disk is full\x1b[31m")
    assert (second["level"], len(second["text"])) == ("error", TEXT_LENGTH)
    assert cut("/disk/\udcff") == "/disk/\\xff"  # a name of a file that is not UTF-8


def test_a_warning_that_cannot_be_written_ends_no_run(run_dir: RunDir, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()  # as unwritable as a full disk
    with Recorder(run_dir, lambda: 0):
        logger.warning("the disk is full")
