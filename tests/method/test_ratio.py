"""The share that is sent: the requested one, and the paper's rules."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adc_edge.errors import SettingError
from adc_edge.method.ratio import Ratio, Shape


@given(images=st.integers(128, 1024), tokens=st.integers(197, 1100), prefix=st.integers(1, 6), xi=st.floats(0.01, 1.0))
@settings(deadline=None)
def test_what_is_sent_is_within_two_percent_of_what_was_asked(images: int, tokens: int, prefix: int, xi: float) -> None:
    shape = Ratio(xi=xi).check().shape(images, tokens, prefix)
    assert abs(shape.clusters * shape.kept / (images * tokens) - xi) <= 0.02 * xi
    assert shape.xi == shape.clusters * shape.kept / (images * tokens)


@given(images=st.integers(128, 1024), tokens=st.integers(197, 1100), xi=st.floats(0.01, 1.0))
@settings(deadline=None)
def test_one_ratio_is_shared_evenly_between_images_and_tokens(images: int, tokens: int, xi: float) -> None:
    shape = Ratio(xi=xi).shape(images, tokens, 1)
    assert shape.clusters / images == pytest.approx(math.sqrt(xi), rel=0.25, abs=1 / images)
    assert shape.kept / tokens == pytest.approx(math.sqrt(xi), rel=0.3, abs=1 / tokens)


def test_fewer_clusters_make_up_for_a_token_floor_above_the_ratio() -> None:
    # √0.01 of 5 tokens is half a token; two must be kept, so a quarter of the clusters sends what was asked for.
    assert Ratio(xi=0.01).shape(1000, 5, 1) == Shape(images=1000, tokens=5, clusters=25, kept=2)


@given(
    images=st.integers(2, 1024),
    tokens=st.integers(8, 1100),
    prefix=st.integers(1, 6),
    percent=st.tuples(st.integers(1, 100), st.integers(1, 100)),
)
@settings(deadline=None)
def test_two_parts_are_floored_as_in_the_paper(images: int, tokens: int, prefix: int, percent: tuple[int, int]) -> None:
    batch, token = percent
    shape = Ratio(batch=batch / 100, token=token / 100).check().shape(images, tokens, prefix)
    assert shape.clusters == max(2, batch * images // 100)  # whole numbers: 0.29 * 100 is 29, not 28
    assert shape.kept == max(prefix + 1, token * tokens // 100)


@given(images=st.integers(2, 600), tokens=st.integers(2, 600), prefix=st.integers(1, 6), xi=st.floats(1e-6, 1.0))
@settings(deadline=None)
def test_there_are_always_two_clusters_a_patch_token_and_never_more_than_there_is(
    images: int, tokens: int, prefix: int, xi: float
) -> None:
    tokens = max(tokens, prefix + 1)
    for ratio in (Ratio(xi=xi), Ratio(batch=xi, token=xi)):
        shape = ratio.shape(images, tokens, prefix)
        assert 2 <= shape.clusters <= images
        assert prefix + 1 <= shape.kept <= tokens


def test_ratio_one_sends_everything() -> None:
    everything = Shape(images=32, tokens=197, clusters=32, kept=197)
    assert Ratio(xi=1.0).check().shape(32, 197, 1) == everything
    assert Ratio(batch=1.0, token=1.0).check().shape(32, 197, 1) == everything


@pytest.mark.parametrize("ratio", [Ratio(xi=0.5), Ratio(batch=0.5, token=0.5)])
def test_a_batch_of_one_image_is_refused(ratio: Ratio) -> None:
    with pytest.raises(SettingError, match=r"batch of 1 image.*\n.*at least 2"):
        ratio.shape(1, 197, 1)


@pytest.mark.parametrize(
    "ratio",
    [
        Ratio(),
        Ratio(batch=0.5),
        Ratio(token=0.5),
        Ratio(xi=0.5, batch=0.5),
        Ratio(xi=0.5, token=0.5),
        Ratio(xi=0.5, batch=0.5, token=0.5),
        Ratio(xi=0.0),
        Ratio(xi=-0.1),
        Ratio(xi=1.1),
        Ratio(xi=math.nan),
        Ratio(xi=math.inf),
        Ratio(batch=0.5, token=0.0),
        Ratio(batch=1.5, token=0.5),
    ],
)
def test_a_ratio_that_is_not_one_number_or_two_parts_is_refused_with_an_example(ratio: Ratio) -> None:
    with pytest.raises(SettingError, match=r"either --ratio, or --batch-ratio and --token-ratio[^$]*--ratio 0.1"):
        ratio.check()
