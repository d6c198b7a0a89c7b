"""Settings as users write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adc_edge.codec.by_epoch import PrecisionsByEpoch
from adc_edge.codec.precision import PRECISIONS, Precision
from adc_edge.errors import SettingError
from adc_edge.evaluation.study.records import run_name
from adc_edge.evaluation.study.setting import METHODS, SERVED, WITHOUT_RATIO, Setting, parse_setting, product, unique
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
        (
            "none/pca4,pca1,pca0.5:pca1,pca0.25+freeze3x2",
            Setting("none", None, "pca4", "pca1", 3.0, 2, ("pca1", "pca0.5"), ("pca0.25",)),
        ),
        ("none/pca4,pca1", Setting("none", None, "pca4", "pca4", later=("pca1",), gradient_later=("pca1",))),
        ("adc@0.1/fp32,int8:fp32", Setting("adc", Ratio(xi=0.1), "fp32", "fp32", later=("int8",))),
        ("int8,int4+freeze1", Setting("none", None, "int8", "int8", 1.0, 1, ("int4",), ("int4",))),
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


@given(
    st.sampled_from(SERVED),
    st.lists(st.sampled_from(PRECISIONS), min_size=1, max_size=5),
    st.lists(st.sampled_from(PRECISIONS), max_size=5),
    st.none() | st.tuples(st.sampled_from([0.0, 1.5, 3.0]), st.integers(1, 3)),
)
def test_precisions_by_epoch_read_back_and_have_one_text(
    method: str, up: list[Precision], down: list[Precision], freeze: tuple[float, int] | None
) -> None:
    text = f"{method}{'' if method == 'none' else '@0.1'}/{','.join(up)}" + (f":{','.join(down)}" if down else "")
    setting = parse_setting(text + ("" if freeze is None else f"+freeze{freeze[0]}x{freeze[1]}"))
    assert parse_setting(str(setting)) == setting
    assert str(parse_setting(str(setting))) == str(setting)
    asked = PrecisionsByEpoch(tuple(up), tuple(down or up))
    assert [setting.by_epoch.of_epoch(epoch) for epoch in range(6)] == [asked.of_epoch(epoch) for epoch in range(6)]
    assert parse_setting(text.replace(",", " , ")).by_epoch == setting.by_epoch


def test_a_precision_that_is_repeated_at_the_end_of_a_list_makes_no_other_setting() -> None:
    assert str(parse_setting("none/pca4,pca0.5,pca0.5:int8,int8")) == "none/pca4,pca0.5:int8"
    assert str(parse_setting("none/int8,int8")) == "int8"
    assert run_name("none/pca4,pca1:pca0.25", 3) == "none_pca4,pca1-pca0.25.seed3.json"


@pytest.mark.parametrize("method", [method for method in METHODS if method not in SERVED])
def test_a_method_that_serve_does_not_have_keeps_its_precisions(method: str) -> None:
    with pytest.raises(SettingError, match=f"{method} has one each way"):
        parse_setting(f"{method}{'' if method in WITHOUT_RATIO else '@0.1'}/fp32:fp16,int8")


def test_a_setting_too_long_for_the_name_of_a_file_is_refused() -> None:
    with pytest.raises(SettingError, match="the last one holds"):
        parse_setting("none/" + "pca4,pca1," * 30 + "int8")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none/pca4,",
        "none/pca4,pca7",
        "none/pca4:int8,",
        "pca7,pca4",
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


@pytest.mark.parametrize("text", ["none/pca4,pca7", "pca4,pca7", "adc@0.1/pca4:pca7,pca1", "topk@0.1/fp32:pca7"])
def test_a_precision_that_does_not_exist_is_named(text: str) -> None:
    with pytest.raises(SettingError, match="precision 'pca7' in '") as caught:
        parse_setting(text)
    assert caught.value.received.startswith(f"setting '{text}': ")
    assert "one for each epoch" in caught.value.expected


def test_methods_ratios_and_precisions_are_multiplied_and_nothing_comes_twice() -> None:
    settings = product(["none", "int8", "adc"], ["0.1", "0.2"], ["fp32", "int8"])
    assert [str(s) for s in settings] == ["none", "int8", "adc@0.1", "adc@0.1/int8", "adc@0.2", "adc@0.2/int8"]
    assert unique([*settings, *settings]) == settings
    rivals = product(["aqsgd", "tah", "lowrank"], ["0.1"], ["fp16", "int8"])
    assert [str(s) for s in rivals] == ["aqsgd/fp16", "aqsgd/int8", "tah@0.1", "lowrank@0.1/fp16", "lowrank@0.1/int8"]
