"""An .npz in other people's shapes is read where there is no doubt, or refused with the line of NumPy that mends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adc_edge.data.sources import Dataset, check_labels, load_dataset
from adc_edge.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 6, 7, 3), dtype=np.uint8)
IMAGES[0, 0, 0], IMAGES[0, 0, 1] = 0, 255
GREY = IMAGES[..., 0]
LABELS = np.arange(12) % 3


def opened(directory: Path, **arrays: Any) -> Dataset:
    np.savez(directory / "d.npz", **arrays)
    return load_dataset(f"npz:{directory / 'd.npz'}")


def both(x: Any = IMAGES, y: Any = LABELS) -> dict[str, Any]:
    return {"x_train": x, "y_train": y, "x_test": x, "y_test": y}


def refused(directory: Path, **arrays: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        opened(directory, **arrays)
    return caught.value


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (IMAGES.transpose(0, 3, 1, 2), IMAGES),
        (GREY[:, None], GREY),
        (GREY[..., None], GREY),
        ((IMAGES / 255).astype(np.float32), IMAGES),
        (IMAGES.transpose(0, 3, 1, 2) / 255, IMAGES),
        (IMAGES.astype(np.float64), IMAGES),
        (IMAGES.astype(np.int64), IMAGES),
        (GREY.astype(">u2"), GREY),
        (GREY > 99, (GREY > 99) * np.uint8(255)),
    ],
    ids=lambda x: f"{x.dtype}{list(x.shape)}",
)
def test_images_in_another_layout_or_type_are_the_same_images(tmp_path: Path, x: Any, expected: Any) -> None:
    dataset = opened(tmp_path, **both(x))
    for index in range(12):
        np.testing.assert_array_equal(np.asarray(dataset.train.image(index)), expected[index])
    np.testing.assert_array_equal(np.asarray(dataset.test.image(3)), expected[3])


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (LABELS[:, None], ["0", "1", "2"]),
        (np.eye(3)[LABELS], ["0", "1", "2"]),
        (np.eye(5, dtype=bool)[LABELS], ["0", "1", "2", "3", "4"]),
        (LABELS.astype(np.float32), ["0", "1", "2"]),
        (LABELS.astype(np.uint64), ["0", "1", "2"]),
        (np.array(["ant", "bee", "cat"])[LABELS], ["ant", "bee", "cat"]),
        (np.array([b"ant", b"bee", b"cat"])[LABELS][:, None], ["ant", "bee", "cat"]),
    ],
    ids=lambda y: f"{y.dtype}{list(y.shape)}" if isinstance(y, np.ndarray) else "",
)
def test_labels_in_another_shape_or_type_are_the_same_labels(tmp_path: Path, y: Any, classes: list[str]) -> None:
    dataset = opened(tmp_path, **both(y=y))
    assert dataset.train.labels.tolist() == dataset.test.labels.tolist() == LABELS.tolist()
    assert list(dataset.classes) == classes


def test_two_classes_may_be_booleans(tmp_path: Path) -> None:
    assert opened(tmp_path, **both(y=LABELS > 0)).train.labels.tolist() == (LABELS > 0).astype(int).tolist()


@pytest.mark.parametrize(
    "names", ["train_images train_labels test_images test_labels", "X_train Y_train X_test Y_test"]
)
def test_the_usual_other_names_are_known_and_further_arrays_ignored(tmp_path: Path, names: str) -> None:
    arrays = dict(zip(names.split(), (IMAGES, LABELS, IMAGES[:4], LABELS[:4]), strict=True))
    dataset = opened(tmp_path, **arrays, val_images=IMAGES[:2], val_labels=LABELS[:2], ids=np.arange(3))
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (12, 4)


@pytest.mark.parametrize(("x", "y"), [("X", "y"), ("images", "labels"), ("data", "target")])
def test_without_a_split_a_tenth_is_held_out_the_same_each_time(tmp_path: Path, x: str, y: str) -> None:
    first, again = (opened(tmp_path, **{x: IMAGES, y: np.arange(12)}) for _ in range(2))
    assert len(first.test.labels) == 2
    assert first.test.labels.tolist() == again.test.labels.tolist()
    assert sorted([*first.train.labels, *first.test.labels]) == list(range(12))
    label = int(first.test.labels[0])
    np.testing.assert_array_equal(np.asarray(first.test.image(0)), IMAGES[label])


@pytest.mark.parametrize(
    ("x", "remedy"),
    [
        (IMAGES / 127.5 - 1, "x_train = np.rint((x_train + 1) * 127.5).astype(np.uint8)"),
        (IMAGES / 40 - 2, "x_train = np.rint(np.clip(x_train * std + mean, 0, 1) * 255).astype(np.uint8)"),
        (IMAGES * 0.9, "x_train = np.rint(x_train).astype(np.uint8)"),
        (IMAGES // 16 / 1.0, "x_train = np.rint(x_train * (255 / 15)).astype(np.uint8)"),
        (IMAGES.astype(np.uint16) * 257, "x_train = (x_train >> 8).astype(np.uint8)"),
        (np.where(IMAGES > 200, np.nan, 0.5), "x_train = np.nan_to_num(x_train"),
        (GREY.reshape(12, -1), "x_train = x_train.reshape(-1, H, W)"),
        (IMAGES[:, :5, :5].reshape(12, -1), "x_train = x_train.reshape(-1, 5, 5, 3)"),
        (np.moveaxis(IMAGES[:, :5], 0, -1), "x_train = np.moveaxis(x_train, -1, 0)"),
        (np.concatenate([IMAGES, IMAGES], axis=-1), "x_train = x_train[..., :3]"),
        (IMAGES.astype(str), "x_train = x_train.astype(np.uint8)"),
    ],
)
def test_images_that_leave_a_doubt_are_refused_with_the_line_that_mends_them(
    tmp_path: Path, x: Any, remedy: str
) -> None:
    error = refused(tmp_path, **both(x))
    assert error.remedy.startswith(remedy)
    assert f"x_train is {x.dtype}" in error.received
    if "mean" in remedy or "H" in remedy or "nan" in remedy or "<U" in str(x.dtype):
        return
    scope = {"np": np, "x_train": x}
    exec(remedy.partition(", ")[0] if remedy.endswith(" white") else remedy, scope)
    assert len(opened(tmp_path, **both(scope["x_train"])).train.labels) == 12


@pytest.mark.parametrize(
    ("y", "received", "remedy"),
    [
        (LABELS + 0.5, "not whole numbers", "y_train = y_train.astype(np.int64)"),
        (np.full((12, 3), 1 / 3), "not one-hot", "y_train = y_train.argmax(axis=1)"),
        (np.zeros((12, 3), int), "not one-hot", "y_train = y_train.argmax(axis=1)"),
        (LABELS.astype(np.uint64) + 2**63, "the largest label is 9223372036854775810", "np.unique(np.concatenate("),
        (LABELS + 2**40, "the largest label is 1099511627778", "np.unique(np.concatenate("),
        (LABELS.astype("m8[s]"), "timedelta64", "y_train = np.unique(y_train, return_inverse=True)[1]"),
        (LABELS[:5], "y_train int64 [5]", "save one label for each image"),
    ],
)
def test_labels_that_leave_a_doubt_are_refused(tmp_path: Path, y: Any, received: str, remedy: str) -> None:
    error = refused(tmp_path, **both(y=y))
    assert received in error.received
    assert remedy in error.remedy


def test_splits_of_different_types_are_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, x_train=IMAGES / 255, y_train=LABELS, x_test=IMAGES, y_test=LABELS)
    assert "x_train is float64" in error.received
    assert "x_test is uint8" in error.received


def test_a_test_class_without_training_images_is_named(tmp_path: Path) -> None:
    names = np.array(["ant", "bee", "cat"])
    error = refused(tmp_path, x_train=IMAGES, y_train=names[LABELS], x_test=IMAGES[:1], y_test=np.array(["dog"]))
    assert "the test split has the classes dog" in error.received


def test_a_train_split_alone_may_be_a_file_cut_off_and_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, x_train=IMAGES, y_train=LABELS)
    assert error.received.endswith("x_test and y_test are missing")
    assert "np.savez(FILE, x=x_train, y=y_train)" in error.remedy


def test_two_arrays_of_one_meaning_are_refused(tmp_path: Path) -> None:
    assert "x_train and train_images" in refused(tmp_path, **both(), train_images=IMAGES).received


def test_an_unlabelled_image_and_a_count_from_one_have_remedies_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels from -1 to 1\n[^$]*x\[y >= 0\]"):
        check_labels(opened(tmp_path, **both(y=LABELS - 1)), 3)
    with pytest.raises(DataError, match=r"labels from 1 to 3\n[^$]*y = y - 1"):
        check_labels(opened(tmp_path, **both(y=LABELS + 1)), 3)


def test_labels_that_are_names_are_found_in_the_array_classes(tmp_path: Path) -> None:
    y = np.array(["cat"] * 8 + ["zebra"] * 4)
    for classes in (np.array(["zebra", "cat"]), np.array([b"zebra", b"cat"])):
        dataset = opened(tmp_path, **both(y=y), classes=classes)
        assert list(dataset.classes) == ["zebra", "cat"]
        assert dataset.train.labels.tolist() == dataset.test.labels.tolist() == [1] * 8 + [0] * 4


def test_a_name_that_the_array_classes_lacks_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, **both(y=np.array(["cat", "dog", "yak"])[LABELS]), classes=np.array(["dog", "cat"]))
    assert "y_train has yak, which the array classes lacks" in error.received


def test_class_names_in_bytes_are_decoded(tmp_path: Path) -> None:
    names = np.array(["Bär".encode(), b"cat", b"dog"])
    assert list(opened(tmp_path, **both(), classes=names).classes) == ["Bär", "cat", "dog"]


@pytest.mark.parametrize("classes", [np.array("cat"), np.array([["a", "b", "c"]]), np.array([0.5, 1, 2])])
def test_an_array_classes_of_another_kind_is_refused(tmp_path: Path, classes: Any) -> None:
    assert f"classes is {classes.dtype}" in refused(tmp_path, **both(), classes=classes).received


@pytest.mark.parametrize(
    ("train", "test", "remedy"),
    [
        (IMAGES, (IMAGES > 99).astype(np.int64), "x_test = np.rint(x_test * (255 / 1)).astype(np.uint8)"),
        ((IMAGES > 99).astype(np.int64), IMAGES, "x_train = np.rint(x_train * (255 / 1)).astype(np.uint8)"),
        (IMAGES, IMAGES > 99, "x_test = np.rint(np.clip(x_test, 0, 1) * 255).astype(np.uint8)"),
        (IMAGES / 255, IMAGES / 1.0, "x_train = np.rint(np.clip(x_train, 0, 1) * 255).astype(np.uint8)"),
    ],
)
def test_splits_on_two_scales_are_refused(tmp_path: Path, train: Any, test: Any, remedy: str) -> None:
    error = refused(tmp_path, x_train=train, y_train=LABELS, x_test=test, y_test=LABELS)
    assert error.remedy.startswith(remedy)


def test_a_dark_tenth_of_one_array_is_on_the_scale_of_the_whole(tmp_path: Path) -> None:
    x = IMAGES.astype(np.int64)
    held = np.sort(np.random.default_rng(0).permutation(12)[:2])
    x[held] = 0
    dataset = opened(tmp_path, x=x, y=LABELS)
    levels = [np.asarray(dataset.train.image(n)).max() for n in range(10)]
    assert levels == [image.max() for n, image in enumerate(IMAGES) if n not in held]


def test_a_class_whose_images_are_all_held_out_is_named(tmp_path: Path) -> None:
    y = np.array(["cat"] * 12)
    y[np.random.default_rng(0).permutation(12)[:2]] = "yak"
    error = refused(tmp_path, x=IMAGES, y=y)
    assert "all images are in the tenth that is held out of the classes yak" in error.received
    assert error.remedy.startswith("add images of them to the file")


def test_a_file_with_too_few_images_is_to_get_more(tmp_path: Path) -> None:
    error = refused(tmp_path, x=IMAGES[:1], y=LABELS[:1])
    assert "the train split is empty" in error.received
    assert error.remedy.startswith("add images to ")
