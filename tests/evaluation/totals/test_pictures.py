"""The record of a study's images as pictures, and what the page says of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adc_edge.data.pictures import measured_split
from adc_edge.data.sources import load_dataset
from adc_edge.evaluation.study.samples import SomeImages
from adc_edge.evaluation.totals import pictures
from adc_edge.evaluation.totals.pictures import measured_pictures, pictures_facts
from tests.data.test_pictures import ALL, COLOUR, a_folder


def test_both_splits_are_measured_apart(tmp_path: Path) -> None:
    data = a_folder(tmp_path)
    found = measured_pictures(data, COLOUR)
    assert found.train == measured_split(data.train, COLOUR, ALL)
    assert found.test == measured_split(data.test, COLOUR, ALL)
    assert found.size == (24, 24)


def test_the_page_is_told_of_samples_and_of_broken_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = a_folder(tmp_path, train=30)
    assert pictures_facts(measured_pictures(data, COLOUR))["train"].startswith("30 images; an image on average: own")
    broken = tmp_path / "test" / "cats" / "00.jpg"
    broken.write_bytes(b"nothing")
    monkeypatch.setattr(pictures, "MOST_MEASURED", 20)
    facts = pictures_facts(measured_pictures(load_dataset(f"folder:{tmp_path}"), COLOUR))
    assert "30 images, scaled up from a sample of 20; an image on average: own files" in facts["train"]
    assert "2 images, without 1 that cannot be read; an" in facts["test"]
    assert (facts["size"], facts["encoder"].partition(" ")[0]) == ("24 x 24", "Pillow")


def test_a_chosen_image_has_the_size_of_its_own_file(tmp_path: Path) -> None:
    train = a_folder(tmp_path).train
    chosen = SomeImages(train, np.array([4, 1]))
    paths = sorted((tmp_path / "train" / "cats").iterdir()) + sorted((tmp_path / "train" / "dogs").iterdir())
    assert [chosen.file_bytes(0), chosen.file_bytes(1)] == [paths[4].stat().st_size, paths[1].stat().st_size]
    assert SomeImages(load_dataset("digits").train, np.array([1])).file_bytes(0) is None
