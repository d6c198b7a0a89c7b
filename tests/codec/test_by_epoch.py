"""Precisions by epoch: a function of the step alone, and one text for each list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adc_edge.codec.by_epoch import PrecisionsByEpoch, parse_precisions, shortest, text_of
from adc_edge.codec.precision import PRECISIONS, Precision
from adc_edge.errors import SettingError

LISTS = st.lists(st.sampled_from(PRECISIONS), min_size=1, max_size=6)


def test_the_first_epoch_has_the_first_precision_and_the_last_one_holds_from_its_epoch_on() -> None:
    both = PrecisionsByEpoch(("pca4", "pca1", "pca0.5"), ("pca1", "pca0.25"))
    found = [both.of_step(step, 3) for step in range(12)]
    assert found == [("pca4", "pca1")] * 3 + [("pca1", "pca0.25")] * 3 + [("pca0.5", "pca0.25")] * 6
    assert both.pairs() == [("pca4", "pca1"), ("pca1", "pca0.25"), ("pca0.5", "pca0.25")]
    assert both.changes
    assert not PrecisionsByEpoch(("int8",), ("pca1",)).changes


@given(LISTS)
def test_the_shortest_list_gives_every_epoch_the_same_precision(precisions: list[Precision]) -> None:
    short = shortest(precisions)
    whole, less = PrecisionsByEpoch(tuple(precisions), ("fp32",)), PrecisionsByEpoch(short, ("fp32",))
    assert [whole.of_epoch(epoch) for epoch in range(8)] == [less.of_epoch(epoch) for epoch in range(8)]
    assert len(short) == 1 or short[-1] != short[-2]
    assert parse_precisions(text_of(precisions)) == short


def test_spaces_around_a_precision_do_not_matter() -> None:
    assert parse_precisions("pca4, pca1 ,int8") == ("pca4", "pca1", "int8")


@pytest.mark.parametrize(("text", "unknown"), [("", "''"), ("pca4,", "''"), ("pca4,pca7,int8", "'pca7'"), ("x", "'x'")])
def test_an_unknown_precision_is_named(text: str, unknown: str) -> None:
    with pytest.raises(SettingError, match="for example pca1, or pca4,pca1") as caught:
        parse_precisions(text)
    assert caught.value.received.startswith(f"precision {unknown}")
