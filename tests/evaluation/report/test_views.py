"""Views of finished runs, compared with values computed by hand and by NumPy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from adc_edge.codec.precision import PRECISIONS
from adc_edge.errors import SettingError
from adc_edge.evaluation.report.claims import compare, guessing_bound
from adc_edge.evaluation.report.groups import METHOD_GROUPS, group_of, parts_of
from adc_edge.evaluation.report.views import (
    by_bytes,
    by_steps,
    learning_curve,
    records,
    representatives,
    standings,
    views,
)
from adc_edge.evaluation.study.records import Guess, Point, Run, Study
from adc_edge.evaluation.study.setting import METHODS, WITHOUT_RATIO, Setting, parse_setting
from adc_edge.method.ratio import Ratio

STUDY = Study(data="digits", epochs=4.0)
STEP_BYTES, STEPS = 1000, 10  # of an uncompressed step; steps of an epoch. So a budget of 1 is 40,000 bytes.


def a_run(
    setting: str,
    accuracies: Sequence[float],
    seed: int = 0,
    share: float = 1.0,
    through: Sequence[float | None] | None = None,
    every: int = STEPS,
) -> Run:
    """A run evaluated every ``every`` steps, once for each accuracy; 60 % of its bytes go up."""
    up, down = round(share * STEP_BYTES * 0.6), round(share * STEP_BYTES * 0.4)
    points = [
        Point(step, step / STEPS, step * up, step * down, accuracy, other, 1.0, float(step))
        for step, accuracy, other in zip(
            range(every, every * (len(accuracies) + 1), every),
            accuracies,
            through or [None] * len(accuracies),
            strict=True,
        )
    ]
    return Run(setting, seed, share, STEP_BYTES, STEPS, tuple(points), {"processor": "made up"})


def rises(*finals: float, setting: str, share: float) -> list[Run]:
    """A run of four epochs for each seed, from half of its final accuracy."""
    return [
        a_run(setting, (final / 2, final * 0.8, final * 0.9, final), seed, share) for seed, final in enumerate(finals)
    ]


def some_runs() -> list[Run]:
    """Several groups with three seeds each."""
    return [
        *rises(0.90, 0.92, 0.88, setting="none", share=1.0),
        *rises(0.89, 0.90, 0.85, setting="int8", share=0.25),
        *rises(0.70, 0.72, 0.74, setting="int2", share=0.05),
        *rises(0.80, 0.81, 0.79, setting="adc@0.1", share=0.1),
        *rises(0.60, 0.61, 0.65, setting="topk@0.05", share=0.05),
        *rises(0.85, 0.88, 0.86, setting="none/pca1:pca2", share=0.05),
        *rises(0.82, 0.83, 0.87, setting="adc@0.5/pca0.5", share=0.01),
    ]


def row(frame: pd.DataFrame, **wanted: Any) -> dict[str, Any]:
    """The only row that has these values."""
    found = [r for r in records(frame) if all(r[name] == value for name, value in wanted.items())]
    assert len(found) == 1, f"{len(found)} rows have {wanted}"
    return found[0]


@pytest.mark.parametrize(
    ("setting", "group"),
    {
        "none": "uncompressed",
        "int8": "plain quantization",
        "bf16": "plain quantization",
        "none/fp32:int2": "plain quantization",
        "pca1": "adc-edge",
        "none/pca0.5:pca1": "adc-edge",
        "adc@0.1/int4:pca1": "adc-edge",
        "adc@0.1/pca0.5": "adc-edge",
        "adc@0.1": "ADC, the paper's",
        "adc@0.5x0.2": "ADC, the paper's",
        "adc@0.1/int4": "ADC x low bits",
        "adc-cls@0.1/int2": "ADC x low bits",
        "adc@0.1/fp32:int8": "ADC x low bits",
        "adc-cls@0.1": "ADC, ablations",
        "adc-batch@0.1": "ADC, ablations",
        "topk@0.05": "Top-K",
        "randtopk@0.05": "RandTopK",
        "c3sl@0.25": "C3-SL",
        "bottlenetpp@0.1": "BottleNet++",
        "topk@0.05/int8": "Top-K x low bits",
        "bottlenetpp@0.1/fp16": "BottleNet++ x low bits",
        "aqsgd/int2:int4": "AQ-SGD",
        "aqsgd-direct/int4": "AQ-SGD",
        "tah@0.02": "TAH-Quant",
        "lowrank@0.02/int8": "low rank (NSC-SL)",
        "fedlite@0.01/fp16:fp32": "FedLite",
        "fedlite@0.01/fp16:pca0.25": "FedLite x pca",
        "tsflora@0.2/int2": "TSFLora",
        "none+freeze2": "adc-edge, frozen trunk",
        "int8+freeze1": "adc-edge, frozen trunk",
        "none/pca1:pca0.25+freeze0.5x2": "adc-edge, frozen trunk",
        "adc@0.1+freeze2": "adc-edge, frozen trunk",
        "none/pca4,int8:int8": "adc-edge",
        "none/dct1:pca0.25": "adc-edge",
        "none/int8:dct0.25": "adc-edge",
        "adc@0.1/fp32:int8,pca1": "adc-edge",
        "none/fp32,int8": "plain quantization",
        "adc@0.1/int8,int4": "ADC x low bits",
        "pca4,pca1+freeze2": "adc-edge, frozen trunk",
    }.items(),
)
def test_a_setting_belongs_to_its_group(setting: str, group: str) -> None:
    assert group_of(setting) == group


@pytest.mark.parametrize(
    ("text", "parts"),
    {
        "none+freeze2": ("none", "", "fp32", "fp32", "2"),
        "int8+freeze1": ("none", "", "int8", "int8", "1"),
        "none/pca1:pca0.25+freeze0.5x2": ("none", "", "pca1", "pca0.25", "0.5x2"),
        "none/pca4,pca1:pca0.25+freeze2": ("none", "", "pca4,pca1", "pca0.25", "2"),
        "int8,int4": ("none", "", "int8,int4", "int8,int4", ""),
        "adc@0.1+freeze2": ("adc", "0.1", "fp32", "fp32", "2"),
    }.items(),
)
def test_a_setting_that_freezes_is_taken_apart(text: str, parts: tuple[str, ...]) -> None:
    assert tuple(parts_of(text)) == parts


def test_every_setting_there_is_has_a_group_and_is_taken_apart_as_it_was_put_together() -> None:
    ratios = dict.fromkeys(WITHOUT_RATIO, (None,))
    for method, up, down in itertools.product(METHODS, PRECISIONS, PRECISIONS):
        for ratio in ratios.get(method, (Ratio(xi=0.05),)):
            setting = Setting(method, ratio, up, down)
            assert parse_setting(str(setting)) == setting
            assert group_of(setting) in METHOD_GROUPS
            assert (parts_of(setting).method, parts_of(setting).up, parts_of(setting).down) == (method, up, down)


def test_mean_spread_and_error_over_seeds_are_numpys() -> None:
    finals = (0.80, 0.83, 0.71, 0.9)
    found = row(by_steps(STUDY, rises(*finals, setting="adc@0.1", share=0.1)), setting="adc@0.1")
    assert found["accuracy"] == pytest.approx(np.mean(finals))
    assert found["std"] == pytest.approx(np.std(finals, ddof=1))
    assert found["sem"] == pytest.approx(np.std(finals, ddof=1) / np.sqrt(4))
    assert (found["seeds"], found["group"], found["method"], found["precision"]) == (
        4,
        "ADC, the paper's",
        "adc",
        "fp32",
    )
    assert found["share"] == pytest.approx(0.1)
    assert (found["bytes_up"], found["bytes_down"]) == (40 * 60, 40 * 40)


def test_one_seed_has_no_spread() -> None:
    found = row(by_steps(STUDY, [a_run("int8", (0.5, 0.6, 0.7, 0.8))]))
    assert found["seeds"] == 1
    assert math.isnan(found["std"])
    assert math.isnan(found["sem"])


def test_equal_steps_are_the_studys_also_of_a_run_that_went_on() -> None:
    longer = a_run("topk@0.05", (0.1, 0.6, 0.3, 0.4, 0.9, 0.95), share=0.05)
    found = row(by_steps(STUDY, [longer]))
    assert (found["accuracy"], found["best"], found["epoch"]) == (0.4, 0.6, 4.0)
    assert not found["ended"]


def test_epochs_that_end_within_a_step_are_rounded_as_training_does() -> None:
    study = Study(data="digits", epochs=0.36)  # 3.6 steps: the fourth is the last
    found = row(by_steps(study, [a_run("int8", (0.1, 0.2, 0.3, 0.4, 0.5), every=1)]))
    assert (found["epoch"], found["accuracy"]) == (0.4, 0.4)


def test_a_run_that_ended_before_its_steps_is_flagged() -> None:
    whole, cut_short = (0.5, 0.6, 0.7, 0.8), (0.5, 0.6, 0.7)
    assert row(by_steps(STUDY, [a_run("int8", whole), a_run("int8", cut_short, seed=1)]))["ended"]
    assert not row(by_steps(STUDY, [a_run("int8", whole), a_run("int8", whole, seed=1)]))["ended"]


def test_a_method_is_judged_by_whichever_way_of_testing_suits_it() -> None:
    found = row(by_steps(STUDY, [a_run("topk@0.05", (0.1, 0.2, 0.3, 0.4), through=(0.1, 0.9, 0.3, 0.7))]))
    assert (found["accuracy"], found["best"]) == (0.7, 0.9)


def test_at_a_budget_a_run_counts_as_it_stood_when_it_had_spent_that() -> None:
    frame = by_bytes(STUDY, [a_run("int8", (0.5, 0.6, 0.7, 0.8), share=0.25)], (0.13, 0.2, 0.25))
    assert [r["accuracy"] for r in records(frame)] == [0.6, 0.7, 0.8]
    assert [r["epoch"] for r in records(frame)] == [2.0, 3.0, 4.0]
    assert [r["spent"] for r in records(frame)] == pytest.approx([0.125 / 0.13, 0.1875 / 0.2, 1.0])


@pytest.mark.parametrize(("budget", "accuracy"), [(0.25 / 1.019, 0.8), (0.25 / 1.021, 0.7)])
def test_a_budget_may_be_overshot_by_two_percent_and_no_more(budget: float, accuracy: float) -> None:
    assert row(by_bytes(STUDY, [a_run("int8", (0.5, 0.6, 0.7, 0.8), share=0.25)], [budget]))["accuracy"] == accuracy


def test_a_rival_that_has_no_evaluation_within_a_budget_is_absent_there() -> None:
    runs = some_runs()
    frame = by_bytes(STUDY, runs, (0.05, 1.0))
    assert "none" not in set(frame[frame["budget"] == 0.05]["setting"])  # its first epoch costs a quarter
    assert "none" in set(frame[frame["budget"] == 1.0]["setting"])
    table = standings(STUDY, runs, (0.05, 1.0))
    assert "uncompressed" not in set(table[table["budget"] == 0.05]["group"])
    assert set(table[table["budget"] == 1.0]["group"]) >= {"uncompressed", "Top-K"}


def test_a_run_that_was_over_with_bytes_left_is_flagged_and_one_that_was_judged_coarsely_is_not() -> None:
    runs = [a_run("topk@0.05", (0.5, 0.6, 0.7, 0.8), share=0.05), a_run("int8", (0.5, 0.6, 0.7, 0.8), share=0.25)]
    frame = by_bytes(STUDY, runs, (0.05, 0.1))
    assert not row(frame, setting="topk@0.05", budget=0.05)["ended"]  # spent it all
    over = row(frame, setting="topk@0.05", budget=0.1)
    assert (over["ended"], over["spent"]) == (True, pytest.approx(0.5))
    coarse = row(frame, setting="int8", budget=0.1)
    assert (coarse["ended"], coarse["spent"]) == (False, pytest.approx(0.625))  # its next evaluation lies beyond


def test_the_best_of_a_group_at_equal_steps_is_among_those_within_the_share() -> None:
    table = standings(STUDY, some_runs(), (0.05, 1.0))
    assert row(table, view="steps", budget=0.05, group="plain quantization")["setting"] == "int2"
    best = row(table, view="steps", budget=1.0, group="plain quantization")
    assert (best["setting"], best["tried"]) == ("int8", 2)
    assert row(table, view="steps", budget=0.05, group="adc-edge")["setting"] == "none/pca1:pca2"
    fewest = records(standings(STUDY, some_runs(), (0.01,)))
    assert {r["group"] for r in fewest if r["view"] == "steps"} == {"adc-edge"}


@pytest.mark.parametrize("view", ["steps", "bytes"])
def test_a_lead_is_claimed_by_a_paired_t_test_over_seeds(view: str) -> None:
    found = row(standings(STUDY, some_runs(), (0.05,)), view=view, budget=0.05, group="plain quantization")
    ours, theirs = np.array((0.85, 0.88, 0.86)), np.array((0.70, 0.72, 0.74))
    assert [found["difference"], found["paired"]] == pytest.approx([np.mean(ours - theirs)] * 2)
    assert found["paired_sem"] == pytest.approx(np.std(ours - theirs, ddof=1) / np.sqrt(3))
    assert found["p_value"] == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    assert (found["paired_seeds"], found["claim"]) == (3, "ahead")


def seeded(setting: str, finals: Mapping[int, float]) -> list[Run]:
    return [a_run(setting, (0.1, 0.1, 0.1, final), seed, 0.05) for seed, final in finals.items()]


def test_only_seeds_that_both_have_are_paired() -> None:
    runs = seeded("none/pca1", {0: 0.9, 1: 0.8, 5: 0.1}) + seeded("topk@0.05", {5: 0.2, 1: 0.5, 7: 0.0})
    found = row(standings(STUDY, runs, (0.05,)), view="steps", group="Top-K")
    assert found["paired_seeds"] == 2
    assert found["paired"] == pytest.approx((0.8 - 0.5 + 0.1 - 0.2) / 2)
    assert found["difference"] == pytest.approx(0.6 - 0.7 / 3)
    assert found["claim"] == "within noise"


@pytest.mark.parametrize(
    ("ours", "theirs", "claim"),
    [
        ({0: 0.9, 1: 0.91, 2: 0.9}, {0: 0.5, 1: 0.52, 2: 0.5}, "ahead"),
        ({0: 0.5, 1: 0.52, 2: 0.5}, {0: 0.9, 1: 0.91, 2: 0.9}, "behind"),
        ({0: 0.9, 1: 0.7, 2: 0.8}, {0: 0.8, 1: 0.8, 2: 0.75}, "within noise"),
        ({0: 0.9, 1: 0.9}, {0: 0.9, 1: 0.9}, "within noise"),
        ({0: 0.9}, {0: 0.1}, "one seed: no claim"),
        ({0: 0.9, 1: 0.8}, {1: 0.1, 2: 0.1}, "one seed: no claim"),
        ({0: 0.9, 1: 0.9}, {2: 0.1, 3: 0.1}, "no common seed: no claim"),
    ],
)
def test_a_difference_within_noise_or_of_one_seed_is_no_lead(
    ours: Mapping[int, float], theirs: Mapping[int, float], claim: str
) -> None:
    runs = seeded("none/pca1", ours) + seeded("topk@0.05", theirs)
    assert row(standings(STUDY, runs, (0.05,)), view="steps", group="Top-K")["claim"] == claim


def test_two_seeds_that_differ_by_the_same_one_image_are_no_proof() -> None:
    ours, theirs = (pd.Series({0: 0.51, 1: 0.61}) - less for less in (0.0, 0.01))
    assert compare(ours, theirs, images=100).claim == "within noise"
    assert compare(ours, theirs - 0.4, images=100).claim == "ahead"


def test_without_adc_edge_nothing_is_compared() -> None:
    rivals = [run for run in some_runs() if group_of(run.setting) != "adc-edge"]
    assert all(math.isnan(r["difference"]) for r in records(standings(STUDY, rivals, (1.0,)))) is True


@pytest.mark.parametrize(("images", "chance"), [(50, 0.1), (360, 0.103), (10_000, 0.01)])
def test_one_guessing_model_in_a_hundred_exceeds_the_bound(images: int, chance: float) -> None:
    right = np.random.default_rng(0).binomial(images, chance, 100_000)
    assert 0.002 < np.mean(right > images * guessing_bound(images, chance) + 1e-9) <= 0.011


@pytest.mark.parametrize(
    ("accuracy", "images", "said"), [(0.12, 200, True), (0.5, 200, False), (0.12, 10_000, False), (0.1, 0, False)]
)
def test_nothing_was_learned_if_uncompressed_training_is_as_good_as_guessing(
    accuracy: float, images: int, said: bool
) -> None:
    runs = seeded("none", {0: accuracy, 1: accuracy}) + seeded("none/pca1", {0: 0.9, 1: 0.9})
    known = [msgspec.structs.replace(run, guess=Guess(images, 0.1) if images else None) for run in runs]
    assert views(STUDY, known, (0.05,)).note.startswith("Nothing was learned yet: uncompressed training has") is said
    assert views(STUDY, known[2:], (0.05,)).note == ""  # without an uncompressed run nobody can tell


@pytest.mark.parametrize(
    ("versions", "told"),
    [(("0.14.0", "0.15.0"), "0.14.0, 0.15.0"), (("0.15.0", "0.9.1"), "0.9.1, 0.15.0"), (("0.15.0", "0.15.0"), "")],
)
def test_runs_of_several_versions_are_told_and_still_compared(versions: tuple[str, str], told: str) -> None:
    runs = [
        msgspec.structs.replace(run, machine={"adc-edge": version})
        for setting in ("none", "none/pca1")
        for run, version in zip(seeded(setting, {0: 0.7, 1: 0.8}), versions, strict=True)
    ]
    seen = views(STUDY, runs, (0.05,))
    assert seen.note.startswith(f"The runs are of versions {told}." if told else "")
    assert bool(seen.note) is bool(told)
    assert "nothing learned: no claim" not in set(seen.standings["claim"])


def test_of_two_that_are_equally_accurate_the_one_of_fewer_bytes_is_best() -> None:
    runs = rises(0.8, 0.9, setting="int4", share=0.13) + rises(0.8, 0.9, setting="int3", share=0.1)
    assert row(standings(STUDY, runs, (1.0,)), view="steps")["setting"] == "int3"


def test_a_learning_curve_is_the_mean_where_every_seed_was_judged() -> None:
    curve = learning_curve([a_run("int8", (0.2, 0.4, 0.6), share=0.25), a_run("int8", (0.4, 0.5), 1, share=0.25)])
    assert list(curve["step"]) == [10, 20]
    assert list(curve["bytes"]) == [2500, 5000]
    assert list(curve["accuracy"]) == pytest.approx([0.3, 0.45])
    assert list(curve["std"]) == pytest.approx([np.std((0.2, 0.4), ddof=1), np.std((0.4, 0.5), ddof=1)])


def test_a_group_is_shown_by_its_best_within_the_budget_or_if_none_fits_by_its_smallest() -> None:
    runs = [*some_runs(), *rises(0.8, 0.8, setting="c3sl@0.5", share=0.5), *rises(0.7, setting="c3sl@0.4", share=0.4)]
    shown = representatives(views(STUDY, runs, (0.05, 1.0)), 0.05)
    assert shown == {
        "adc-edge": "none/pca1:pca2",
        "ADC, the paper's": "adc@0.1",
        "plain quantization": "int2",
        "Top-K": "topk@0.05",
        "C3-SL": "c3sl@0.4",
        "uncompressed": "none",
    }


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan])
def test_a_budget_of_nothing_is_refused(budget: float) -> None:
    with pytest.raises(SettingError, match="budget of"):
        views(STUDY, some_runs(), (0.05, budget))
