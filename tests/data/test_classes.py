"""Labels are class names: data are mapped to the head's outputs by name, and what does not go together is refused."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from adc_edge.data.classes import (
    append_classes,
    class_counts,
    composed_names,
    label_for_head,
    map_classes,
    short_list,
)
from adc_edge.data.sources import ArraySplit, Dataset
from adc_edge.errors import DataError


def dataset(names: list[str], train: list[int], test: list[int], named: bool = True) -> Dataset:
    first, second = (ArraySplit(np.zeros((len(y), 4, 4), np.uint8), np.array(y, np.int64)) for y in (train, test))
    return Dataset(first, second, names, named)


def test_each_label_becomes_the_heads_output_of_its_class() -> None:
    data = dataset(["cat", "dog"], [0, 1, 1], [1])
    label_for_head(data, ["dog", "zebra", "cat"], 3)
    assert data.train.labels.tolist() == [2, 0, 0]
    assert data.test.labels.tolist() == [0]


def test_a_head_without_names_takes_labels_as_they_are() -> None:
    data = dataset(["cat", "dog"], [0, 1], [1])
    label_for_head(data, [], 2)
    assert data.train.labels.tolist() == [0, 1]
    with pytest.raises(DataError, match="labels from 0 to 1"):
        label_for_head(data, [], 1)


def test_a_class_that_the_head_lacks_is_refused_with_the_heads_classes() -> None:
    with pytest.raises(DataError) as caught:
        map_classes(["cat", "yak"], ["cat", "dog"], [3, 1])
    assert caught.value.received == "1 class that the head lacks: yak"
    assert caught.value.expected == "some of the head's 2 classes: cat, dog"
    assert "--classes FILE" in caught.value.remedy


def test_a_class_without_images_needs_no_output() -> None:
    assert map_classes(["cat", "misc"], ["dog", "cat"], [3, 0]).tolist() == [1, -1]


@pytest.mark.parametrize("name", ["Cat", "sea lion", "sea-lion", "SEA LION"])
def test_a_name_that_differs_in_case_or_blanks_only_is_told_as_nearly_another(name: str) -> None:
    with pytest.raises(DataError, match=f"'{name}' is nearly '(cat|sea_lion)'"):
        map_classes([name], ["cat", "sea_lion"], [1])


def test_an_accent_of_macos_is_the_same_name() -> None:
    apart = unicodedata.normalize("NFD", "éléphant")
    assert composed_names([apart], "here") == ["éléphant"]
    with pytest.raises(DataError, match="there twice: éléphant"):
        composed_names([apart, "éléphant"], "here")


def test_a_directory_name_that_is_no_utf8_still_has_a_name() -> None:
    assert composed_names(["caf\udce9"], "here") == ["caf\\udce9"]


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(DataError, match="empty or there twice: ' '"):
        composed_names(["cat", " "], "here")


def test_new_classes_are_appended_and_none_moves() -> None:
    assert append_classes(["dog", "cat"], ["ant", "cat"], 3) == ["dog", "cat", "ant"]


def test_more_classes_than_outputs_are_refused_with_the_command_that_makes_room() -> None:
    with pytest.raises(DataError) as caught:
        append_classes(["dog", "cat"], ["ant", "bee"], 3)
    assert caught.value.received == "2 new classes: ant, bee"
    assert caught.value.expected == "room in the head, which has 3 outputs, of which 2 have a class: dog, cat"
    assert "export --num-classes 4" in caught.value.remedy


def test_labels_without_names_fit_a_head_of_positions_only() -> None:
    data = dataset(["0", "1", "2"], [0, 2], [1], named=False)
    label_for_head(data, ["0", "1", "2", "3"], 4)
    assert data.train.labels.tolist() == [0, 2]
    with pytest.raises(DataError, match="without class names") as caught:
        label_for_head(data, ["cat", "dog", "yak"], 3)
    assert "array `classes`" in caught.value.remedy


def test_a_label_without_a_class_is_refused() -> None:
    with pytest.raises(DataError, match="labels from 0 to 2"):
        class_counts(dataset(["cat", "dog"], [0, 2], [1]))
    assert class_counts(dataset(["cat", "dog", "yak"], [0, 1, 1], [0])) == [(1, 1), (2, 0), (0, 0)]


def test_names_are_shown_short_and_without_control_characters(tmp_path: Path) -> None:
    assert short_list([f"n{number}" for number in range(9)]) == "n0, n1, n2, n3, n4 and 4 more"
    assert short_list(["\x1b[31mred\n", "x" * 99]) == "\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}, " + (
        "x" * 29 + "…"
    )


def test_a_trained_head_whose_order_is_unknown_takes_no_other_number_of_classes() -> None:
    with pytest.raises(DataError, match="2 of the 3 classes of a trained head whose order is unknown"):
        label_for_head(dataset(["cat", "dog"], [0, 1], [1]), [], 3, trained=True)
    label_for_head(dataset(["cat", "dog"], [0, 1], [1]), [], 2, trained=True)
    label_for_head(dataset(["cat", "dog"], [0, 1], [1]), [], 3)
