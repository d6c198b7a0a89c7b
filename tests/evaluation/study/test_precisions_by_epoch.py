"""A run whose precisions change by epoch: the real bytes of each epoch, and the same numbers after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from adc_edge.codec.precision import Precision
from adc_edge.evaluation.fleet.setting import StudyFleet
from adc_edge.evaluation.study.records import Run, Study
from adc_edge.evaluation.study.resuming import Unfinished
from adc_edge.evaluation.study.setting import parse_setting
from adc_edge.evaluation.study.training import train
from tests.evaluation.study.carrying import counted_as_carried
from tests.evaluation.study.test_resuming import Killed, killed_at, numbers
from tests.evaluation.study.test_training import STUDY

LISTED = "none/pca4,int8,pca1:int8,pca2"


def study_with(**changes: Any) -> Study:
    return msgspec.structs.replace(STUDY, **changes)


def epochs_of(run: Run) -> list[tuple[int, int]]:
    """The bytes up and down of each epoch."""
    ups, downs = ([getattr(point, name) for point in run.curve] for name in ("bytes_up", "bytes_down"))
    return [(u - v, d - e) for u, v, d, e in zip(ups, [0, *ups], downs, [0, *downs], strict=False)]


def one_epoch(up: Precision, down: Precision) -> tuple[int, int]:
    return epochs_of(train(STUDY, parse_setting(f"none/{up}:{down}"), seed=0))[0]


def test_every_epoch_has_the_bytes_of_its_own_precisions_and_the_last_ones_hold() -> None:
    found = epochs_of(train(study_with(epochs=4.0), parse_setting(LISTED), seed=0))
    forms: list[tuple[Precision, Precision]] = [("pca4", "int8"), ("int8", "pca2"), ("pca1", "pca2")]
    expected = [one_epoch(*form) for form in forms]
    for mine, plain in zip(found, [*expected, expected[-1]], strict=True):
        assert mine == pytest.approx(plain, abs=40)  # larger numbers of steps take a byte more in a header
    assert len(set(found)) >= 3


def test_the_first_epoch_is_that_of_its_precisions_and_the_next_is_not() -> None:
    study = study_with(epochs=2.0)
    listed, plain = (train(study, parse_setting(text), 1) for text in ("adc@0.5/int8,pca1", "adc@0.5/int8"))
    assert listed.curve[0].loss == plain.curve[0].loss
    assert listed.curve[1].loss != plain.curve[1].loss
    repeated = train(study, parse_setting("adc@0.5/int8,int8"), 1)
    assert [point.loss for point in repeated.curve] == [point.loss for point in plain.curve]


def test_counted_bytes_are_those_that_the_kernel_carries() -> None:
    study, setting = study_with(epochs=3.0), parse_setting(LISTED + "+freeze2")
    counted_as_carried(study, setting)


def test_views_sent_after_a_freeze_have_the_precision_of_their_epoch() -> None:
    study = study_with(epochs=4.0)
    found = epochs_of(train(study, parse_setting("none/pca4,pca2,pca1,int8+freeze1x2"), seed=0))
    up = [one_epoch(precision, "int8")[0] for precision in ("pca4", "pca2", "pca1")]
    assert [mine for mine, _ in found] == pytest.approx([*up, 0], abs=200)


@pytest.mark.parametrize(
    "setting", [pytest.param(LISTED, marks=pytest.mark.slow), "adc@0.5/int8,pca2,pca1:int8+freeze1x2"]
)
def test_a_run_that_was_cut_short_in_each_epoch_equals_an_undisturbed_one_bit_for_bit(
    setting: str, tmp_path: Path
) -> None:
    study, method = study_with(epochs=4.0, evaluate_every=0.25), parse_setting(setting)
    whole = train(study, method, 3)
    for share in (0.2, 0.4, 0.6, 0.8):
        with pytest.raises(Killed):
            train(study, method, 3, progress=killed_at(share), unfinished=Unfinished(tmp_path, study, method, 3))
    assert numbers(train(study, method, 3, unfinished=Unfinished(tmp_path, study, method, 3))) == numbers(whole)


def test_each_device_of_a_fleet_counts_its_own_epochs() -> None:
    study, fleet = study_with(epochs=2.0, evaluate_every=0.5), StudyFleet(2)
    listed = train(study, parse_setting("int8,pca1"), 0, fleet=fleet)
    plain = [train(study, parse_setting(text), 0, fleet=fleet) for text in ("int8", "pca1")]
    (first, *_), (second, *_) = (epochs_of(run) for run in plain)
    found = epochs_of(listed)
    assert found[:2] == [pytest.approx(first, abs=40)] * 2  # an epoch of all is one of each device
    assert found[2:] == [pytest.approx(second, abs=40)] * 2
