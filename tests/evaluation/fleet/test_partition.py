"""The images of a fleet's devices: every image has one owner, and the same seed gives the same owners."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adc_edge.arrays import Int64, Labels
from adc_edge.errors import SettingError
from adc_edge.evaluation.fleet.partition import Partition, divide_images, parse_partition

LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=300).map(lambda found: np.array(found, np.int64))
PARTITIONS = st.one_of(
    st.just("iid"), st.just("by-class"), st.floats(0.05, 100).map(lambda number: f"dirichlet:{number}")
).map(parse_partition)
TEN = np.repeat(np.arange(10), 100)  # ten classes of a hundred images


def shares(labels: Labels, owned: list[Int64]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Images of each device and class."""
    return np.stack([np.bincount(labels[chosen], minlength=10) for chosen in owned])


@settings(deadline=None, max_examples=60)  # up to 200 draws each
@given(LABELS, st.integers(1, 9), PARTITIONS, st.integers(1, 8), st.integers(0, 2**32))
def test_every_image_goes_to_exactly_one_device_and_each_device_has_a_batch_or_it_is_told(
    labels: Labels, devices: int, partition: Partition, batch: int, seed: int
) -> None:
    try:
        owned = divide_images(labels, devices, partition, batch, seed)
    except SettingError:
        assert partition.kind != "iid" or devices * batch > len(labels)  # iid never fails where it is possible
        return
    assert len(owned) == devices
    assert np.array_equal(np.sort(np.concatenate(owned)), np.arange(len(labels)))
    for chosen in owned:
        assert len(chosen) >= batch
        assert np.array_equal(chosen, np.sort(chosen))
    again = divide_images(labels, devices, partition, batch, seed)
    assert all(np.array_equal(first, second) for first, second in zip(owned, again, strict=True))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 10), st.integers(0, 100))
def test_iid_gives_nearly_as_many_images_to_each_device_and_by_class_each_class_to_one(devices: int, seed: int) -> None:
    sizes = [len(chosen) for chosen in divide_images(TEN, devices, parse_partition("iid"), 1, seed)]
    assert max(sizes) - min(sizes) <= 1
    counts = shares(TEN, divide_images(TEN, devices, parse_partition("by-class"), 1, seed))
    assert set(counts.max(axis=0)) == {100}
    classes = (counts > 0).sum(axis=1)
    assert max(classes) - min(classes) <= 1


def test_a_smaller_x_divides_classes_less_evenly_and_a_large_one_evenly() -> None:
    spread = {}
    for text in ("dirichlet:0.1", "dirichlet:1", "dirichlet:1000"):
        drawn = [shares(TEN, divide_images(TEN, 4, parse_partition(text), 1, seed)).std() for seed in range(10)]
        spread[text] = float(np.mean(drawn))
    assert spread["dirichlet:0.1"] > 1.3 * spread["dirichlet:1"] > 1.3 * 5 * spread["dirichlet:1000"]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(0, 1000))
def test_another_seed_divides_the_images_differently(first: int, second: int) -> None:
    assume(first != second)
    for text in ("iid", "dirichlet:0.3"):
        one, other = (divide_images(TEN, 4, parse_partition(text), 1, seed) for seed in (first, second))
        assert any(not np.array_equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "text",
    [*(f"dirichlet{end}" for end in ("", ":", ":x", ":0", ":-1", ":nan", ":inf")), "iid:2", "by-class:1", "random", ""],
)
def test_a_partition_that_does_not_exist_is_refused_with_those_that_do(text: str) -> None:
    with pytest.raises(SettingError, match="iid, dirichlet:X or by-class, X a number from"):
        parse_partition(text)


@pytest.mark.parametrize(
    ("partition", "devices", "told"),
    [
        ("iid", 100, "100 devices and 1000 training images"),
        ("by-class", 11, "10 classes for 11 devices"),
        ("dirichlet:0.001", 20, "in 200 draws for 20 devices"),
    ],
)
def test_a_device_without_a_batch_is_told_with_what_to_change(partition: str, devices: int, told: str) -> None:
    with pytest.raises(SettingError, match=told) as found:
        divide_images(TEN, devices, parse_partition(partition), 16, 0)
    assert "at least one batch of 16 images for each device" in str(found.value)
    assert "--batch-size" in str(found.value)
