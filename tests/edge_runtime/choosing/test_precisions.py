"""Precisions by epoch in `serve`: those of a step, what they take in bytes, and a run that sends them."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from adc_edge.cloud_trainer.server import Server
from adc_edge.codec.by_epoch import PrecisionsByEpoch
from adc_edge.codec.precision import PRECISIONS, Precision, encoded_bytes
from adc_edge.data.sources import load_dataset
from adc_edge.edge_runtime.choosing.course import Course
from adc_edge.edge_runtime.choosing.cut import RunCut
from adc_edge.edge_runtime.choosing.precisions import (
    largest_precision,
    mean_bytes_up,
    precisions_of,
    sent_bytes,
    settings_of_step,
    with_epochs,
)
from adc_edge.edge_runtime.runner import Serve
from adc_edge.edge_runtime.screen.banner import banner, planned_bytes
from adc_edge.edge_runtime.screen.result import report_table
from adc_edge.edge_runtime.settings import ServeSettings, StepSettings
from adc_edge.errors import CheckpointError, SettingError
from adc_edge.method.ratio import Shape
from adc_edge.planning.message_sizes import sizes_of_messages
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.decisions import Decisions
from adc_edge.storage.run_dir import RunDir
from tests.edge_runtime.choosing.epochs import Epochs

SHAPE = Shape(16, 17, 16, 17)
BASE = StepSettings(1, SHAPE, 1, 32, 10, "pca4", "pca1", 70, micro_batches=2)
BY_EPOCH = PrecisionsByEpoch(("pca4", "pca1", "pca0.5"), ("pca1", "pca0.25"))
LISTS = st.lists(st.sampled_from(PRECISIONS), min_size=1, max_size=4)
EPOCH = 1437 // 256  # steps of an epoch of the digits


def test_the_course_gives_each_step_the_precisions_of_its_epoch(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run", {"role": "device"}, {})
    course = Course(with_epochs(BASE, BY_EPOCH, Epochs(10)), Decisions(run_dir))
    found = [(course.at(step).precision, course.at(step).gradient_precision) for step in (0, 9, 10, 19, 20, 69)]
    assert found == [("pca4", "pca1")] * 2 + [("pca1", "pca0.25")] * 2 + [("pca0.5", "pca0.25")] * 2
    assert {course.begun_at(step) for step in range(70)} == {None}
    assert course.at(33).lasting_precision == "pca0.5"
    run_dir.close()


def test_settings_without_a_list_stay_as_they_are() -> None:
    same = PrecisionsByEpoch(("pca4",), ("pca1",))
    assert with_epochs(BASE, same, Epochs(10)) is BASE
    assert settings_of_step(BASE, 50) is BASE
    assert BASE.lasting_precision == "pca4"
    assert precisions_of(BASE, False) == [(0, "pca4", "pca1")]


def test_a_run_that_ends_before_its_last_precision_ends_with_that_of_its_last_step() -> None:
    settings = with_epochs(msgspec.structs.replace(BASE, planned_steps=15), BY_EPOCH, Epochs(10))
    assert settings_of_step(settings, 15).precision == settings_of_step(settings, 14).precision == "pca1"
    assert precisions_of(settings, False) == [(0, "pca4", "pca1"), (10, "pca1", "pca0.25")]


@pytest.mark.parametrize(
    ("by_epoch", "frozen_from", "frozen", "expected"),
    [
        (BY_EPOCH, 10, False, [(0, "pca4", "pca1"), (10, "pca1", None), (20, "pca0.5", None)]),
        (
            BY_EPOCH,
            25,
            False,
            [(0, "pca4", "pca1"), (10, "pca1", "pca0.25"), (20, "pca0.5", "pca0.25"), (25, "pca0.5", None)],
        ),
        (BY_EPOCH, None, True, [(0, "pca4", None), (10, "pca1", None), (20, "pca0.5", None)]),
        (PrecisionsByEpoch(("pca4",), ("pca1", "pca0.25")), None, True, [(0, "pca4", None)]),
        (PrecisionsByEpoch(("pca4",), ("pca1", "pca0.25")), 5, False, [(0, "pca4", "pca1"), (5, "pca4", None)]),
        (PrecisionsByEpoch(("pca4",), ("pca1",)), 30, False, [(0, "pca4", "pca1"), (30, "pca4", None)]),
    ],
)
def test_no_gradients_come_for_a_trunk_that_is_frozen_and_only_what_changes_is_told(
    by_epoch: PrecisionsByEpoch, frozen_from: int | None, frozen: bool, expected: list[tuple[int, str, str | None]]
) -> None:
    base = msgspec.structs.replace(BASE, frozen_from=frozen_from)
    assert precisions_of(with_epochs(base, by_epoch, Epochs(10)), frozen) == expected


@given(LISTS, LISTS, st.integers(1, 12), st.integers(1, 40), st.none() | st.integers(1, 40), st.booleans())
def test_every_step_has_the_precisions_that_were_told_last(
    up: Sequence[Precision], down: Sequence[Precision], length: int, steps: int, frozen_from: int | None, frozen: bool
) -> None:
    by_epoch = PrecisionsByEpoch(tuple(up), tuple(down))
    base = msgspec.structs.replace(
        BASE, precision=up[0], gradient_precision=down[0], planned_steps=steps, frozen_from=frozen_from
    )
    told = precisions_of(with_epochs(base, by_epoch, Epochs(length)), frozen)
    for step in range(steps):
        learns = not frozen and (frozen_from is None or step < frozen_from)
        epoch_up, epoch_down = by_epoch.of_step(step, length)
        last = max(one for one in told if one.first_step <= step)
        assert last[1:] == (epoch_up, epoch_down if learns else None)
    assert all(one[1:] != following[1:] for one, following in itertools.pairwise(told))


def sizes(by_epoch: PrecisionsByEpoch, step: int, length: int, learns: bool) -> int:
    up, down = by_epoch.of_step(step, length)
    return sum(sizes_of_messages(SHAPE, 32, (up, down if learns else None)))


@given(LISTS, LISTS, st.integers(1, 12), st.integers(1, 40), st.none() | st.integers(1, 40), st.booleans())
def test_the_bytes_of_a_run_are_those_of_its_steps(
    up: Sequence[Precision], down: Sequence[Precision], length: int, steps: int, frozen_from: int | None, frozen: bool
) -> None:
    by_epoch = PrecisionsByEpoch(tuple(up), tuple(down))
    base = msgspec.structs.replace(BASE, planned_steps=steps, frozen_from=frozen_from)
    learning = 0 if frozen else steps if frozen_from is None else frozen_from
    each = [sizes(by_epoch, step, length, step < learning) for step in range(steps)]
    asked = msgspec.structs.replace(base, precision=up[0], gradient_precision=down[0])
    assert sent_bytes(with_epochs(asked, by_epoch, Epochs(length)), frozen) == 2 * sum(each)  # of two micro-batches


def test_a_trainer_is_told_of_the_largest_message_and_of_the_mean_of_those_that_it_keeps() -> None:
    rising = PrecisionsByEpoch(("pca1", "int8", "pca4"), ("pca1",))
    assert largest_precision(rising, SHAPE, 32) == "int8"
    assert encoded_bytes((16, 17, 32), "int8") > encoded_bytes((16, 17, 32), "pca4")
    bytes_of = {one: sizes_of_messages(SHAPE, 32, (one, None))[0] for one in rising.up}
    assert mean_bytes_up(rising, range(20), 10, SHAPE, 32) == round((bytes_of["pca1"] + bytes_of["int8"]) / 2)
    assert mean_bytes_up(rising, range(20, 30), 10, SHAPE, 32) == bytes_of["pca4"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((None, None), (("pca1",), ("pca0.25",))),
        (("pca4,pca1", None), (("pca4", "pca1"),) * 2),
        (("pca4,pca1,pca1", "int8"), (("pca4", "pca1"), ("int8",))),
        ((None, "pca1,pca0.25"), (("pca1",), ("pca1", "pca0.25"))),
    ],
)
def test_a_list_is_for_both_ways_unless_gradients_have_their_own(
    asked: tuple[Any, Any], expected: tuple[Any, Any], bundle: Bundle
) -> None:
    manifest = msgspec.structs.replace(bundle.manifest, precision="pca1", gradient_precision="pca0.25")
    settings = ServeSettings(bundle.path, "", precision=asked[0], gradient_precision=asked[1])
    assert settings.by_epoch(manifest) == PrecisionsByEpoch(*expected)


def settings(bundle: Bundle, endpoint: str = "tcp://127.0.0.1:1", **more: Any) -> ServeSettings:
    usual = {"batch_size": 256, "steps": 3 * EPOCH, "evaluate_images": 16, "threads": 1, "micro_batches": 1}
    return ServeSettings(bundle.path, endpoint, **(usual | more))


def serve(settings: ServeSettings) -> dict[str, Any]:
    return Serve(settings, Console(file=io.StringIO(), width=200), stop=lambda: False).run()


def steps_of(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "step"]


def test_a_run_sends_what_was_said_before_and_tells_the_precisions_of_each_step(
    bundle: Bundle, server: Server, tmp_path: Path
) -> None:
    lists = {"precision": "fp32,int8,pca1", "gradient_precision": "int8,pca1"}
    asked = settings(bundle, server.endpoint, run=tmp_path / "run", **lists)
    report = serve(asked)
    assert len(load_dataset("digits").train.labels) // 256 == EPOCH
    forms = [(line["precision"], line["gradient_precision"]) for line in steps_of(tmp_path / "run")]
    assert forms == [("fp32", "int8")] * EPOCH + [("int8", "pca1")] * EPOCH + [("pca1", "pca1")] * EPOCH
    assert (report["precision"], report["gradient_precision"]) == ("pca1", "pca1")
    assert report["precision_by_epoch"] == ["fp32", "int8", "pca1"]
    assert report["gradient_precision_by_epoch"] == ["int8", "pca1"]
    shown = Console(width=100)
    with shown.capture() as text:
        shown.print(report_table(report))
    assert "fp32,int8,pca1 / int8,pca1" in text.get()

    manifest, by_epoch = bundle.manifest, asked.by_epoch(bundle.manifest)
    shape = RunCut(asked, manifest).shape
    first = StepSettings(1, shape, manifest.prefix, manifest.dim, 10, *by_epoch.of_epoch(0), planned_steps=3 * EPOCH)
    step = with_epochs(first, by_epoch, Epochs(EPOCH))
    planned = planned_bytes(asked, manifest, settings_of_step(step, 2 * EPOCH), 16)
    assert planned.training == pytest.approx(report["bytes_up"] + report["bytes_down"], rel=0.05)
    assert planned.uncompressed == report["bytes_uncompressed_fp32"]
    assert (planned.evaluated, report["evaluations"][-1]["precision"]) == ("pca1", "pca1")
    said = list(banner(asked, manifest, step, 16, None))
    then = [line for line in said if line.startswith("then")]
    assert len(then) == 2
    assert " up in int8, " in then[0]
    assert then[0].endswith(" down in pca1, from epoch 2 on")
    assert " up in pca1, " in then[1]
    assert max(map(len, said)) <= 80


def test_a_run_goes_on_with_its_own_list_alone(bundle: Bundle, server: Server, tmp_path: Path) -> None:
    half = settings(bundle, server.endpoint, run=tmp_path / "run", precision="int8,pca1", steps=EPOCH + 1)
    serve(half)
    for other in ("int8", "int8,pca2", "int8,int8,pca1"):
        with pytest.raises(CheckpointError, match="precision"):
            serve(msgspec.structs.replace(half, precision=other))
    whole = msgspec.structs.replace(half, steps=EPOCH + 3, precision="int8, pca1,pca1")  # the same list
    assert serve(whole)["steps"] == EPOCH + 3
    assert [line["precision"] for line in steps_of(tmp_path / "run")] == ["int8"] * EPOCH + ["pca1"] * 3


@pytest.mark.parametrize("plan", ["auto", "file"])
def test_a_plan_chooses_precisions_itself(plan: Literal["auto", "file"], bundle: Bundle, tmp_path: Path) -> None:
    where: Any = "auto" if plan == "auto" else tmp_path / "plan.json"
    with pytest.raises(SettingError, match="change by epoch: pca4,pca1 up, pca4,pca1 down") as caught:
        Serve(settings(bundle, plan=where, precision="pca4,pca1"), Console(), stop=lambda: False)
    assert "leave --plan out" in str(caught.value)


def test_micro_batches_of_a_step_have_one_precision(bundle: Bundle, server: Server, tmp_path: Path) -> None:
    """The same images in two messages: the same bytes, but for headers and scales."""
    sent = {}
    for count in (1, 2):
        run = tmp_path / str(count)
        serve(settings(bundle, server.endpoint, run=run, precision="fp16,int8", steps=EPOCH + 2, micro_batches=count))
        sent[count] = [line["bytes_up"] for line in steps_of(run)]
    for one, two in itertools.zip_longest(sent[1], sent[2]):
        assert one == pytest.approx(two, rel=0.05)
    assert sent[2][EPOCH] == pytest.approx(sent[2][0] / 2, rel=0.1)
