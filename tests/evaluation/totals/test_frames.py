"""The bytes of whole trainings, compared with values computed by hand."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pandas as pd
import pytest

from adc_edge.data.pictures import SplitPictures
from adc_edge.data.preprocessing import Preprocessing
from adc_edge.evaluation.fleet.setting import StudyFleet
from adc_edge.evaluation.report.views import records
from adc_edge.evaluation.study.records import Guess, Point, Run
from adc_edge.evaluation.totals.beside import Beside
from adc_edge.evaluation.totals.frames import (
    break_even,
    by_total,
    evaluations_of,
    evaluations_sent,
    picture_shares,
    whole_pictures,
)
from adc_edge.evaluation.totals.pictures import PICTURES_FORMAT, Pictures
from adc_edge.evaluation.totals.sending import StudyTrunk, evaluation_bytes
from tests.evaluation.report.test_views import STUDY, a_run, rises

TRUNK = StudyTrunk(17, 32, 5_000, Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3, "bicubic"))
TRAIN = SplitPictures(100, 100, 0, 30_000, 9_000, 4_000)
TEST = SplitPictures(50, 50, 0, 15_000, 4_500, 2_000)
BESIDE = Beside(Pictures(PICTURES_FORMAT, (16, 16), "Pillow", TRAIN, TEST), TRUNK)
ONE, OF_FP32 = (evaluation_bytes(TRUNK, 50, STUDY.batch_size, training=precision) for precision in ("pca1", "fp32"))
EVALUATION = ONE.up + ONE.down  # of a run that trains in pca1


def judged_on_50(runs: list[Run]) -> list[Run]:
    return [msgspec.structs.replace(run, guess=Guess(50, 0.1)) for run in runs]


RUNS = judged_on_50(
    [*rises(0.90, 0.92, setting="none", share=1.0), *rises(0.85, 0.88, setting="none/pca1:pca2", share=0.2)]
)


def row(frame: pd.DataFrame, setting: str) -> dict[str, Any]:
    (found,) = [one for one in records(frame) if one["setting"] == setting]
    return found


def test_a_whole_training_is_steps_evaluations_and_first_weights() -> None:
    found = row(by_total(STUDY, RUNS, BESIDE), "none/pca1:pca2")
    assert found["bytes_training"] == 40 * 200  # steps of 120 + 80 bytes
    assert (found["evaluations"], found["bytes_evaluations"]) == (4, 4 * EVALUATION)
    assert found["bytes_weights"] == 5_000
    assert found["bytes_total"] == 8_000 + 4 * EVALUATION + 5_000
    assert (found["seeds"], found["accuracy"], found["group"]) == (2, pytest.approx(0.865), "adc-edge")


def test_a_run_is_evaluated_in_the_precision_that_serve_chooses_by_that_of_its_training() -> None:
    found = evaluations_of(RUNS, STUDY, BESIDE)
    assert {setting: one.precision for setting, one in found.items()} == {"none": "pca4", "none/pca1:pca2": "pca1"}
    listed = judged_on_50(rises(0.8, setting="none/int8,pca2,pca0.5:fp32", share=0.2))
    assert [one.precision for one in evaluations_of(listed, STUDY, BESIDE).values()] == ["pca1"]
    named = evaluations_of(RUNS, STUDY, BESIDE._replace(evaluation="pca2"))
    assert {one.precision for one in named.values()} == {"pca2"}
    assert evaluations_of(RUNS, STUDY, Beside()) == {}


def test_after_a_trunk_is_frozen_and_all_is_sent_the_trainer_evaluates_alone() -> None:
    runs = judged_on_50(rises(0.8, setting="none/pca1:pca0.25+freeze1x2", share=0.1))
    found = row(by_total(STUDY, runs, BESIDE), "none/pca1:pca0.25+freeze1x2")
    assert (found["evaluations"], found["bytes_evaluations"]) == (4, 3 * EVALUATION)
    assert found["group"] == "adc-edge, frozen trunk"
    between = judged_on_50(rises(0.8, setting="int8+freeze0.5", share=0.1))
    assert [evaluations_sent(between[0], point.step) for point in between[0].curve] == [1, 2, 2, 2]


def test_break_even_is_the_epoch_at_which_the_steps_have_cost_the_pictures() -> None:
    frame = by_total(STUDY, RUNS, BESIDE)
    plain = row(frame, "none")  # 10,000 bytes an epoch
    assert [plain[name] for name in ("passes_files", "passes_q90", "passes_q75")] == pytest.approx([3.0, 0.9, 0.4])
    ours = row(frame, "none/pca1:pca2")  # 2,000 an epoch, 8,000 in all
    assert math.isnan(ours["passes_files"])
    assert math.isnan(ours["passes_q90"])
    assert ours["passes_q75"] == pytest.approx(2.0)


def test_a_run_that_goes_on_after_the_studys_epochs_passes_there_and_one_seed_that_never_does_says_so() -> None:
    longer = a_run("none/pca1:pca2", [0.5] * 6, share=0.2)  # 12,000 bytes
    found = row(by_total(STUDY, judged_on_50([longer]), BESIDE), "none/pca1:pca2")
    assert (found["bytes_training"], found["passes_q90"]) == (8_000, pytest.approx(4.5))
    both = judged_on_50([longer, a_run("none/pca1:pca2", [0.5] * 4, seed=1, share=0.2)])
    assert math.isnan(row(by_total(STUDY, both, BESIDE), "none/pca1:pca2")["passes_q90"])


def test_between_evaluations_break_even_lies_by_proportion() -> None:
    run = a_run("int8", (0.5, 0.6), share=0.5)  # 5,000 bytes an epoch
    assert break_even(run, 2_500, STUDY, TRUNK) == pytest.approx(0.5)
    assert break_even(run, 10_000, STUDY, TRUNK) == pytest.approx(2.0)
    assert math.isnan(break_even(run, 10_001, STUDY, TRUNK))


def test_a_run_judged_at_its_end_passes_where_its_messages_were_sent() -> None:
    """12,000 of 20,000 bytes went up, in the three epochs before the trainer was alone; gradients came in the first."""
    end = Point(
        step=100,
        epoch=10.0,
        bytes_up=12_000,
        bytes_down=8_000,
        accuracy=0.5,
        accuracy_through=None,
        loss=1.0,
        seconds=1.0,
    )
    run = msgspec.structs.replace(a_run("none/pca1:pca2+freeze1x2", (0.5,)), steps_per_epoch=10, curve=(end,))
    found = [break_even(run, size, STUDY, TRUNK) for size in (6_000, 12_000, 16_000, 20_000)]
    assert found == pytest.approx([0.5, 1.0, 2.0, 3.0])
    listed = msgspec.structs.replace(run, setting="none/fp32,fp16:fp32+freeze1x2")  # 2, 1 and 1 parts go up
    found = [break_even(listed, size, STUDY, TRUNK) for size in (14_000, 17_000, 20_000)]
    assert found == pytest.approx([1.0, 2.0, 3.0], abs=1e-3)


def test_the_pictures_are_a_share_of_an_uncompressed_run() -> None:
    assert picture_shares(STUDY, RUNS, BESIDE) == {"own files": 0.75, "JPEG q90": 0.225, "JPEG q75": 0.1}
    assert picture_shares(STUDY, RUNS, Beside()) == {}


def test_all_pictures_are_those_evaluated_too_unless_the_trainer_has_them() -> None:
    assert whole_pictures(BESIDE) == {"own files": 45_000, "JPEG q90": 13_500, "JPEG q75": 6_000}
    central = BESIDE._replace(evaluation="central")
    assert whole_pictures(central) == {"own files": 30_000, "JPEG q90": 9_000, "JPEG q75": 4_000}
    assert row(by_total(STUDY, RUNS, central), "none")["bytes_evaluations"] == 0


def test_every_device_of_a_fleet_gets_the_trunk_and_evaluates() -> None:
    fleet = [msgspec.structs.replace(run, fleet=StudyFleet(4)) for run in RUNS]
    alone, four = (row(by_total(STUDY, runs, BESIDE), "none") for runs in (RUNS, fleet))
    assert four["bytes_weights"] == 4 * alone["bytes_weights"]
    assert four["bytes_evaluations"] == 4 * alone["bytes_evaluations"]
    assert four["bytes_training"] == alone["bytes_training"]


def test_a_run_of_0_7_has_the_test_images_of_the_pictures_and_without_them_no_total() -> None:
    old = [msgspec.structs.replace(run, guess=None) for run in RUNS]
    assert row(by_total(STUDY, old, BESIDE), "none")["bytes_evaluations"] == 4 * (OF_FP32.up + OF_FP32.down)
    found = row(by_total(STUDY, old, BESIDE._replace(pictures=None)), "none")
    assert math.isnan(found["bytes_total"])
    assert found["bytes_training"] == 40_000


def test_without_a_trunk_there_is_no_row() -> None:
    assert by_total(STUDY, RUNS, Beside()).empty
