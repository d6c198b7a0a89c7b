"""Folders of images: the files found, their classes, the images held out, and refused layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adc_edge.data.listing import FileSplit
from adc_edge.data.sources import Split, load_dataset
from adc_edge.errors import DataError


def put(directory: Path, *names: str) -> None:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(split: Split, root: Path) -> set[str]:
    assert isinstance(split, FileSplit)
    return {path.relative_to(root).as_posix() for path in split.paths}


@pytest.mark.parametrize("held_out", ["test", "val", "valid"])
def test_a_folder_with_train_and_test_is_read_as_it_stands(tmp_path: Path, held_out: str) -> None:
    put(tmp_path, "train/cat/1.jpg", "train/cat/2.JPEG", "train/cat/more/3.png", "train/ant/1.webp", "train/ant/no.txt")
    put(tmp_path, f"{held_out}/cat/9.jpg", "train/.cache/1.jpg")
    (tmp_path / "train/bee").mkdir()  # a class without an image keeps its number
    dataset = load_dataset(f"folder:{tmp_path}")
    assert dataset.classes == ["ant", "bee", "cat"]
    assert names(dataset.train, tmp_path) == {
        *("train/cat/1.jpg", "train/cat/2.JPEG", "train/cat/more/3.png", "train/ant/1.webp")
    }
    assert sorted(dataset.train.labels.tolist()) == [0, 2, 2, 2]
    assert names(dataset.test, tmp_path) == {f"{held_out}/cat/9.jpg"}
    assert dataset.test.labels.tolist() == [2]


def test_the_images_of_a_folder_are_its_files(tmp_path: Path) -> None:
    put(tmp_path, "train/a/0.png", "test/a/0.png")
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "test/a/0.png")
    np.testing.assert_array_equal(np.asarray(load_dataset(f"folder:{tmp_path}").test.image(0)), image)


def test_without_a_split_a_tenth_is_held_out_and_new_files_never_move_an_old_one(tmp_path: Path) -> None:
    put(tmp_path, *(f"{kind}/{n}.jpg" for kind in ("cat", "dog") for n in range(400)))
    before = load_dataset(f"folder:{tmp_path}")
    train, test = names(before.train, tmp_path), names(before.test, tmp_path)
    assert len(train | test) == 800
    assert not train & test
    assert 50 <= len(test) <= 120
    assert before.classes == ["cat", "dog"]
    put(tmp_path, *(f"{kind}/new{n}.jpg" for kind in ("ant", "cat", "dog") for n in range(100)))
    after = load_dataset(f"folder:{tmp_path}")
    assert train < names(after.train, tmp_path)
    assert test < names(after.test, tmp_path)
    assert after.classes == ["ant", "cat", "dog"]


def test_a_folder_with_train_alone_holds_a_tenth_of_it_out(tmp_path: Path) -> None:
    put(tmp_path, *(f"train/{kind}/{n}.jpg" for kind in ("cat", "dog") for n in range(100)))
    dataset = load_dataset(f"folder:{tmp_path}")
    assert dataset.classes == ["cat", "dog"]
    assert 0 < len(dataset.test.labels) < 50


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    put(tmp_path, *(f"{kind}/{n}.jpg" for kind in ("bus", "train") for n in range(100)))
    assert load_dataset(f"folder:{tmp_path}").classes == ["bus", "train"]


def test_a_class_that_was_never_trained_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.jpg", "test/cat/1.jpg", "test/dog/1.jpg")
    with pytest.raises(DataError, match=r"test has the classes dog"):
        load_dataset(f"folder:{tmp_path}")


def test_a_folder_without_an_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image"):
        load_dataset(f"folder:{tmp_path}")
    put(tmp_path, "cat/notes.txt")
    with pytest.raises(DataError, match=r"holds no image[^$]*\.jpg"):
        load_dataset(f"folder:{tmp_path}")
    put(tmp_path, "train/cat/1.jpg", "test/readme")
    with pytest.raises(DataError, match="the test split is empty"):
        load_dataset(f"folder:{tmp_path}")


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "file")
    for name in ("absent", "file"):
        with pytest.raises(DataError, match=f"{name} is no directory"):
            load_dataset(f"folder:{tmp_path / name}")
