"""The settings of a step are those that the run began with, or those of the last decision before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adc_edge.codec.by_epoch import PrecisionsByEpoch
from adc_edge.edge_runtime.choosing.course import Course, form_of
from adc_edge.edge_runtime.choosing.precisions import with_epochs
from adc_edge.edge_runtime.settings import StepSettings
from adc_edge.method.ratio import Shape
from adc_edge.planning.following.follow import MessageForm
from adc_edge.storage.decisions import Decision, Decisions
from adc_edge.storage.run_dir import RunDir
from tests.edge_runtime.choosing.epochs import Epochs

BASE = StepSettings(1, Shape(16, 17, 16, 17), 1, 32, 10, "pca1", "pca0.25", 100)
FINER = Decision(10, 1, 1, 16, 17, "int8", "int8", "a fast link")
SEVERAL = Decision(20, 4, 2, 4, 9, "int8", "int4", "a slow one")


@pytest.fixture
def decisions(tmp_path: Path) -> Iterator[Decisions]:
    run_dir = RunDir(tmp_path / "run", {"role": "device"}, {})
    yield Decisions(run_dir)
    run_dir.close()


def test_decisions_change_shape_precisions_and_messages_of_the_steps_after_them(decisions: Decisions) -> None:
    course = Course(BASE, decisions)
    assert form_of(course.at(99)) == MessageForm(1, BASE.shape, "pca1", "pca0.25")
    decisions.add(FINER)
    decisions.add(SEVERAL)
    assert [form_of(course.at(step)) for step in (9, 10, 20)] == [
        MessageForm(1, BASE.shape, "pca1", "pca0.25"),
        MessageForm(1, BASE.shape, "int8", "int8"),
        MessageForm(4, Shape(4, 17, 4, 9), "int8", "int4"),
    ]
    assert course.at(20).window == 2
    assert course.changes == 2


def test_evaluations_keep_to_the_precision_that_the_run_began_with_whatever_is_decided(decisions: Decisions) -> None:
    course = Course(BASE, decisions)
    decisions.add(FINER)
    assert (course.at(10).precision, course.lasting_precision) == ("int8", "pca1")


def test_evaluations_of_a_list_have_its_last_precision_from_the_first_step_on(decisions: Decisions) -> None:
    listed = PrecisionsByEpoch(("pca4", "pca2"), ("pca0.25",))
    course = Course(with_epochs(BASE, listed, Epochs(10)), decisions)
    assert (course.at(0).precision, course.at(10).precision, course.lasting_precision) == ("pca4", "pca2", "pca2")


def test_messages_tell_their_number_once_it_has_changed(decisions: Decisions) -> None:
    course = Course(BASE, decisions)
    decisions.add(FINER)
    assert not course.at(15).varies  # a trainer of 0.8 reads it
    decisions.add(SEVERAL)
    assert course.at(25).varies


def test_the_first_step_of_a_decision_is_known_for_the_record(decisions: Decisions) -> None:
    course = Course(BASE, decisions)
    decisions.add(FINER)
    assert [course.begun_at(step) for step in (9, 10, 11)] == [None, FINER, None]
