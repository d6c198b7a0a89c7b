"""Settings as users write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adc_edge.codec.precision import PRECISIONS
from adc_edge.errors import SettingError
from adc_edge.evaluation.study.setting import METHODS, WITHOUT_RATIO, Setting, parse_setting, product, unique
from adc_edge.method.ratio import Ratio


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("none", Setting("none")),
        ("int8", Setting("none", None, "int8", "int8")),
        ("none/int4:int2", Setting("none", None, "int4", "int2")),
        ("adc@0.1", Setting("adc", Ratio(xi=0.1))),
        ("adc@0.5x0.2/int4", Setting("adc", Ratio(batch=0.5, token=0.2), "int4", "int4")),
        ("topk@0.05/fp32:int8", Setting("topk", Ratio(xi=0.05), "fp32", "int8")),
        ("adc-tokens@0.25", Setting("adc-tokens", Ratio(xi=0.25))),
        ("int8+freeze0", Setting("none", None, "int8", "int8", 0.0)),
        ("adc@0.5x0.2/int4:int2+freeze1.5", Setting("adc", Ratio(batch=0.5, token=0.2), "int4", "int2", 1.5)),
        ("int8+freeze1x2", Setting("none", None, "int8", "int8", 1.0, 2)),
        ("aqsgd/int2:int4", Setting("aqsgd", None, "int2", "int4")),
        ("tah@0.02", Setting("tah", Ratio(xi=0.02))),
        ("fedlite@0.02/fp16:fp32", Setting("fedlite", Ratio(xi=0.02), "fp16", "fp32")),
    ],
)
def test_a_setting_is_read_as_it_is_written(text: str, setting: Setting) -> None:
    assert parse_setting(text) == setting
    assert parse_setting(str(setting)) == setting


@given(
    st.sampled_from(sorted(METHODS)),
    st.sampled_from([0.01, 0.05, 0.3, 1.0]),
    st.sampled_from(PRECISIONS),
    st.sampled_from(PRECISIONS),
)
def test_what_a_setting_prints_reads_back(method: str, ratio: float, up: str, down: str) -> None:
    setting = parse_setting(f"{method}/{up}:{down}" if method in WITHOUT_RATIO else f"{method}@{ratio}/{up}:{down}")
    assert parse_setting(str(setting)) == setting


@pytest.mark.parametrize(
    "text",
    [
        "",
        "adc",
        "none@0.1",
        "adc@2",
        "adc@0",
        "adc@x",
        "topk@0.5x0.5",
        "adc@0.1/int5",
        "top-k@0.1",
        "adc@0.1/int4:",
        "aqsgd@0.1",
        "tah",
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SettingError, match="for example"):
        parse_setting(text)


def test_methods_ratios_and_precisions_are_multiplied_and_nothing_comes_twice() -> None:
    settings = product(["none", "int8", "adc"], ["0.1", "0.2"], ["fp32", "int8"])
    assert [str(s) for s in settings] == ["none", "int8", "adc@0.1", "adc@0.1/int8", "adc@0.2", "adc@0.2/int8"]
    assert unique([*settings, *settings]) == settings
    rivals = product(["aqsgd", "tah", "lowrank"], ["0.1"], ["fp16", "int8"])
    assert [str(s) for s in rivals] == ["aqsgd/fp16", "aqsgd/int8", "tah@0.1", "lowrank@0.1/fp16", "lowrank@0.1/int8"]
