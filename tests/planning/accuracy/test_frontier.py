"""The accuracy of a setting: measured, between two measured settings, or not known. Nothing is invented."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adc_edge.codec.precision import PRECISIONS
from adc_edge.evaluation.study.setting import parse_setting
from adc_edge.method.ratio import Ratio
from adc_edge.planning.accuracy.frontier import (
    MeasuredPoint,
    MeasuredStudy,
    SentSetting,
    estimate,
    nearest_studies,
    read_setting,
)

POINTS = [
    MeasuredPoint("none", 0.0, 0.0, 3),
    MeasuredPoint("none/pca4:pca2", 0.1, 0.9, 3),
    MeasuredPoint("none/pca1:pca0.25", -0.5, 1.2, 3),
    MeasuredPoint("adc@1x0.5/pca1:pca0.25", -2.5, 0.9, 3),
    MeasuredPoint("int3", 0.2, None, 1),
    MeasuredPoint("adc@0.1", -19.0, 3.2, 3),
    MeasuredPoint("topk@0.1", -16.0, 1.0, 3),
]


def study(points: list[MeasuredPoint], source: str = "here", tokens: int = 197, model: str = "m") -> MeasuredStudy:
    return MeasuredStudy("accuracy", source, "photos", model, tokens, 3, 128, 4.0, 82.9, points)


def asked(text: str) -> SentSetting:
    found = read_setting(text)
    assert found is not None
    return SentSetting.of(*found)


@pytest.mark.parametrize("point", [point for point in POINTS if point.setting != "topk@0.1"], ids=lambda p: p.setting)
def test_a_measured_setting_has_its_measured_value(point: MeasuredPoint) -> None:
    found = estimate([study(POINTS)], asked(point.setting))
    assert found is not None
    assert found.measured
    assert (found.value, found.spread, found.settings) == (point.value, point.spread, (point.setting,))


def test_the_two_ratios_whose_product_is_xi_are_the_same_setting() -> None:
    found = estimate([study(POINTS)], SentSetting.of(Ratio(batch=0.1**0.5, token=0.1**0.5), "fp32", "fp32"))
    assert found is not None
    assert found.settings == ("adc@0.1",)


def test_a_setting_between_two_measured_ones_has_a_value_between_theirs_and_a_spread_that_says_so() -> None:
    found = estimate([study(POINTS)], asked("adc@1x0.75/pca1:pca0.25"))
    assert found is not None
    assert found.settings == ("adc@1x0.5/pca1:pca0.25", "none/pca1:pca0.25")
    share = math.log2(0.75 / 0.5)
    assert found.value == pytest.approx(-2.5 + share * 2.0)
    assert found.spread == pytest.approx(1.2)


def test_two_settings_far_apart_tell_what_lies_between_only_if_they_are_equally_good() -> None:
    alike = estimate([study(POINTS)], asked("int8"))
    assert alike is not None
    assert alike.settings == ("int3", "none")
    assert 0.0 <= alike.value <= 0.2
    assert estimate([study(POINTS)], asked("adc@0.5")) is None  # between -19 and 0
    assert estimate([study(POINTS[:2]), study(POINTS)], asked("int8")) is None  # only in the study that counts most


def test_of_several_studies_the_one_that_encloses_a_setting_closest_is_taken() -> None:
    near = study([MeasuredPoint("none", 0.0, 0.0, 3), MeasuredPoint("adc@1x0.5", -13.0)], "near")
    far = study([MeasuredPoint("none", 0.0, 0.0, 3), MeasuredPoint("adc@1x0.25", -17.0)], "far")
    found = estimate([far, near], asked("adc@1x0.75"))
    assert found is not None
    assert found.source == "near"
    assert found.value == pytest.approx(-13.0 * (1 - math.log2(1.5)))


@pytest.mark.parametrize("text", ["none/pca0.5:pca0.125", "adc@0.05", "int2", "adc@1x0.5/int3", "none/pca4:int3"])
def test_a_setting_that_no_two_measured_ones_enclose_is_not_measured(text: str) -> None:
    assert estimate([study(POINTS)], asked(text)) is None


def test_a_study_of_nothing_tells_nothing() -> None:
    assert estimate([], asked("none")) is None
    assert estimate([study([])], asked("none")) is None


def test_a_measured_value_goes_before_one_between_two_settings_of_a_nearer_study() -> None:
    second = study([MeasuredPoint("none", 0.0), MeasuredPoint("none/pca2:pca1", -7.0)], "second")
    found = estimate([study(POINTS), second], asked("none/pca2:pca1"))
    assert found is not None
    assert (found.value, found.source) == (-7.0, "second")


RATIOS = st.one_of(
    st.builds(Ratio, xi=st.floats(0.01, 1.0)),
    st.builds(Ratio, batch=st.floats(0.1, 1.0), token=st.floats(0.1, 1.0)),
)
SETTINGS = st.builds(SentSetting.of, RATIOS, st.sampled_from(PRECISIONS), st.sampled_from(PRECISIONS))
VALUES = st.lists(st.tuples(st.sampled_from(POINTS), st.floats(-60, 1)), max_size=7, unique_by=lambda pair: pair[0])


@given(SETTINGS, VALUES)
def test_a_value_is_never_outside_those_of_the_two_settings_that_enclose_it(
    setting: SentSetting, values: list[tuple[MeasuredPoint, float]]
) -> None:
    points = [MeasuredPoint(point.setting, value, point.spread) for point, value in values]
    found = estimate([study(points)], setting)
    if found is not None:
        known = {point.setting: point for point in points}
        ends = [known[name].value for name in found.settings]
        assert min(ends) - 1e-9 <= found.value <= max(ends) + 1e-9
        if len(ends) == 2:
            less, more = (asked(name) for name in found.settings)
            assert less.batch <= setting.batch * (1 + 1e-6)
            assert setting.token <= more.token * (1 + 1e-6)


@given(
    st.sampled_from(["none", "int4", "adc@0.1", "adc@0.5x0.2/int4:int2", "adc-batch@0.5", "adc-tokens@0.25/pca1"]),
)
def test_a_setting_is_read_as_evaluate_reads_it(text: str) -> None:
    mine, theirs = read_setting(text), parse_setting(text)
    assert mine is not None
    assert mine[1:] == (theirs.precision, theirs.gradient_precision)
    half = {"adc-batch": (0.5, 1.0), "adc-tokens": (1.0, 0.25)}.get(theirs.method)
    expected = Ratio(xi=1.0) if theirs.ratio is None else theirs.ratio
    assert mine[0] == (expected if half is None else Ratio(batch=half[0], token=half[1]))


@pytest.mark.parametrize("text", ["topk@0.1", "none@0.1", "adc", "adc@1..2", "none/pca9", "", "adc-cls@0.1", "adc@0"])
def test_a_method_that_serve_does_not_have_is_left_out(text: str) -> None:
    assert read_setting(text) is None


def test_studies_of_the_nearest_number_of_tokens_are_taken_and_those_of_the_same_model_first() -> None:
    small, other, mine = study(POINTS, "small", 17), study(POINTS, "other", 197, "x"), study(POINTS[:2], "mine", 197)
    assert [one.source for one in nearest_studies([small, other, mine], "m", 145)] == ["mine", "other"]
    assert [one.source for one in nearest_studies([small, other, mine], "m", 10)] == ["small"]
    assert nearest_studies([], "m", 10) == []
