"""Every data source but folders, on files in its real layout, and the refusal of others."""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from adc_edge.data import sources as data
from adc_edge.data.sources import Dataset
from adc_edge.errors import DataError

Pixels = npt.NDArray[np.uint8]


def random_pixels(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pixels(image: Image.Image) -> Pixels:
    return np.asarray(image)


# digits


def test_digits_are_those_of_scikit_learn_in_1437_and_360() -> None:
    from sklearn.datasets import load_digits

    digits = data.load_dataset("digits")
    assert (len(digits.train.labels), len(digits.test.labels)) == (1437, 360)
    assert digits.classes == [str(n) for n in range(10)]
    both = [
        (int(label), pixels(split.image(i)).tobytes())
        for split in (digits.train, digits.test)
        for i, label in enumerate(split.labels)
    ]
    source = load_digits()
    scaled = np.rint(source.images / 16 * 255).astype(np.uint8)
    assert sorted(both) == sorted((int(y), x.tobytes()) for x, y in zip(scaled, source.target, strict=True))
    assert digits.train.image(0).size == (8, 8)


def test_digits_are_split_the_same_way_each_time() -> None:
    first, again = data.load_dataset("digits"), data.load_dataset("digits")
    assert first.test.labels.tolist() == again.test.labels.tolist()


def test_a_source_whose_library_is_absent_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(DataError, match=r"torchvision, which is not installed[^$]*pip install 'adc-edge\[data\]'"):
        data.load_dataset("cifar10:here")


# npz


def npz(directory: Path, **changes: Any) -> str:
    arrays: dict[str, Any] = {
        "x_train": random_pixels(6, 5, 7, 3),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": random_pixels(2, 5, 7, 3, seed=1),
        "y_test": np.array([2, 1]),
    }
    arrays = {name: value for name, value in {**arrays, **changes}.items() if value is not None}
    np.savez(directory / "images.npz", **arrays)
    return f"npz:{directory / 'images.npz'}"


def test_an_npz_of_colour_images_is_read(tmp_path: Path) -> None:
    dataset = data.load_dataset(npz(tmp_path))
    assert dataset.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert dataset.test.labels.tolist() == [2, 1]
    assert dataset.classes == ["0", "1", "2"]
    np.testing.assert_array_equal(pixels(dataset.test.image(1)), random_pixels(2, 5, 7, 3, seed=1)[1])


@pytest.mark.parametrize("shape", [(6, 5, 7), (6, 5, 7, 1), (6, 1, 7), (6, 5, 1, 1)])
def test_an_npz_of_grey_images_is_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = data.load_dataset(npz(tmp_path, x_train=random_pixels(*shape))).train.image(4)
    assert image.mode == "L"
    np.testing.assert_array_equal(pixels(image), random_pixels(*shape)[4].reshape(shape[1:3]))


@pytest.mark.parametrize("shape", [(6, 5, 1, 3), (6, 1, 7, 3), (6, 1, 1, 3)])
def test_thin_colour_images_stay_colour(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = data.load_dataset(npz(tmp_path, x_train=random_pixels(*shape))).train.image(0)
    assert (image.mode, image.size) == ("RGB", (shape[2], shape[1]))


def test_an_npz_may_name_its_classes(tmp_path: Path) -> None:
    assert data.load_dataset(npz(tmp_path, classes=np.array(["cat", "dog", "eel"]))).classes == ["cat", "dog", "eel"]


@pytest.mark.parametrize(
    ("changes", "received"),
    [
        ({"x_test": None}, "x_test"),
        ({"x_train": np.zeros((6, 5, 7, 3))}, "x_train is float64"),
        ({"x_train": random_pixels(6, 5)}, r"x_train is uint8 \[6, 5\]"),
        ({"x_train": random_pixels(6, 5, 7, 5)}, r"x_train is uint8 \[6, 5, 7, 5\]"),
        ({"y_train": np.arange(5)}, r"y_train int64 \[5\]"),
        ({"y_test": np.array([0.5, 1.5])}, "y_test float64"),
        ({"y_test": np.array(["cat", "dog"])}, "y_test <U3"),
        ({"y_test": np.array([{}, {}])}, "Object arrays cannot be loaded"),
        ({"x_test": random_pixels(0, 5, 7, 3), "y_test": np.zeros(0, np.int64)}, "the test split is empty"),
    ],
)
def test_an_npz_with_other_arrays_is_refused_with_what_it_holds(
    tmp_path: Path, changes: dict[str, Any], received: str
) -> None:
    with pytest.raises(DataError, match=received):
        data.load_dataset(npz(tmp_path, **changes))


@pytest.mark.parametrize("content", [b"", b"some text", b"\x93NUMPY\x01\x00", pickle.dumps({"x_train": 1})])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "images.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"images.npz: no .npz archive[^$]*numpy.savez"):
        data.load_dataset(f"npz:{tmp_path / 'images.npz'}")


def test_a_single_array_is_no_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", random_pixels(6, 5, 7))
    with pytest.raises(DataError, match=r"no \.npz archive"):
        data.load_dataset(f"npz:{tmp_path / 'images.npy'}")


def test_a_missing_npz_or_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        data.load_dataset(f"npz:{tmp_path / 'absent.npz'}")
    with pytest.raises(DataError, match="Is a directory"):
        data.load_dataset(f"npz:{tmp_path}")


def test_a_damaged_npz_is_refused_or_reads_as_before(tmp_path: Path) -> None:
    source = npz(tmp_path)
    file = tmp_path / "images.npz"
    with np.load(file) as arrays:
        np.savez_compressed(file, **arrays)
    whole = file.read_bytes()
    refused = 0
    for position in range(0, len(whole), 5):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        try:
            assert len(data.load_dataset(source).train.labels) == 6
        except DataError:
            refused += 1
    assert refused > len(whole) // 5 // 2


# torchvision's


def write_batch(path: Path, images: Pixels, labels: dict[str, Any]) -> list[str]:
    """A pickled batch, one image a row, channels first, its dtype as NumPy 1 wrote it; returns name and MD5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    pickled = pickle.dumps({"data": rows, **labels}, protocol=2).replace(b"\x89\x88\x87", b"K\x00K\x01\x87")
    path.write_bytes(pickled)
    return [path.name, hashlib.md5(pickled).hexdigest()]


def write_meta(path: Path, key: str, classes: list[str]) -> dict[str, str]:
    path.write_bytes(pickle.dumps({key: classes}, protocol=2))
    return {"filename": path.name, "key": key, "md5": hashlib.md5(path.read_bytes()).hexdigest()}


def check_cifar(dataset: Dataset, train: Pixels, test: Pixels, classes: list[str]) -> None:
    assert dataset.train.labels.tolist() == [i % len(classes) for i in range(len(train))]
    assert dataset.test.labels.tolist() == [i % len(classes) for i in range(len(test))]
    assert list(dataset.classes) == classes
    np.testing.assert_array_equal(pixels(dataset.train.image(len(train) - 1)), train[-1])
    np.testing.assert_array_equal(pixels(dataset.test.image(1)), test[1])


def test_cifar10_is_read_as_torchvision_lays_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    base = tmp_path / "cifar-10-batches-py"
    train, test = random_pixels(20, 32, 32, 3), random_pixels(10, 32, 32, 3, seed=1)
    classes = [f"class {n}" for n in range(10)]
    labels = [i % 10 for i in range(20)]
    batches = [
        write_batch(base / f"data_batch_{n + 1}", train[4 * n : 4 * n + 4], {"labels": labels[4 * n : 4 * n + 4]})
        for n in range(5)
    ]
    monkeypatch.setattr(CIFAR10, "train_list", batches)
    monkeypatch.setattr(CIFAR10, "test_list", [write_batch(base / "test_batch", test, {"labels": labels[:10]})])
    monkeypatch.setattr(CIFAR10, "meta", write_meta(base / "batches.meta", "label_names", classes))
    check_cifar(data.load_dataset(f"cifar10:{tmp_path}"), train, test, classes)


def test_cifar100_is_read_with_its_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR100

    base = tmp_path / "cifar-100-python"
    train, test = random_pixels(120, 32, 32, 3), random_pixels(100, 32, 32, 3, seed=1)
    classes = [f"class {n}" for n in range(100)]

    def both(n: int) -> dict[str, Any]:
        return {"fine_labels": [i % 100 for i in range(n)], "coarse_labels": [i % 20 for i in range(n)]}

    monkeypatch.setattr(CIFAR100, "train_list", [write_batch(base / "train", train, both(120))])
    monkeypatch.setattr(CIFAR100, "test_list", [write_batch(base / "test", test, both(100))])
    monkeypatch.setattr(CIFAR100, "meta", write_meta(base / "meta", "fine_label_names", classes))
    check_cifar(data.load_dataset(f"cifar100:{tmp_path}"), train, test, classes)


def food101(root: Path) -> list[tuple[str, Pixels]]:
    """Two train images and one test image of each of three dishes; returns the test images by class."""
    base = root / "food-101"
    dishes = ("apple_pie", "baklava", "waffles")
    lists = {"train": {d: [f"{d}/10{n}" for n in (1, 2)] for d in dishes}, "test": {d: [f"{d}/99"] for d in dishes}}
    (base / "meta").mkdir(parents=True)
    for split, files in lists.items():
        (base / "meta" / f"{split}.json").write_text(json.dumps(files))
        for number, file in enumerate(name for of_class in files.values() for name in of_class):
            path = base / "images" / f"{file}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random_pixels(8, 12, 3, seed=number)).save(path)
    return [(d, pixels(Image.open(base / "images" / d / "99.jpg"))) for d in dishes]


def test_food101_is_read_as_torchvision_lays_it_out(tmp_path: Path) -> None:
    expected = food101(tmp_path)
    dataset = data.load_dataset(f"food101:{tmp_path}")
    assert dataset.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for index, (dish, image) in enumerate(expected):
        assert dataset.classes[int(dataset.test.labels[index])] == dish
        np.testing.assert_array_equal(pixels(dataset.test.image(index)), image)


def test_food101_tells_the_size_of_each_file_and_arrays_have_none(tmp_path: Path) -> None:
    food101(tmp_path)
    test = data.load_dataset(f"food101:{tmp_path}").test
    sizes = [
        (tmp_path / f"food-101/images/{dish}/99.jpg").stat().st_size for dish in ("apple_pie", "baklava", "waffles")
    ]
    assert [data.file_bytes(test, index) for index in range(3)] == sizes
    assert data.file_bytes(data.load_dataset("digits").test, 0) is None


def test_a_missing_food101_image_raises_only_when_it_is_read(tmp_path: Path) -> None:
    food101(tmp_path)
    (tmp_path / "food-101/images/baklava/99.jpg").unlink()
    test = data.load_dataset(f"food101:{tmp_path}").test
    with pytest.raises(OSError, match=r"99\.jpg"):
        test.image(1)


@pytest.mark.parametrize(("kind", "name"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100"), ("food101", "Food101")])
def test_a_dataset_that_is_not_there_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name} at .*not found[^$]*download it there first"):
        data.load_dataset(f"{kind}:{tmp_path}")


@pytest.mark.parametrize("content", [None, "{"])
def test_food101_without_its_lists_is_refused(tmp_path: Path, content: str | None) -> None:
    food101(tmp_path)
    file = tmp_path / "food-101/meta/train.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match="Food101 at"):
        data.load_dataset(f"food101:{tmp_path}")


def test_a_damaged_cifar_is_refused_before_it_is_unpickled(tmp_path: Path) -> None:
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        write_batch(tmp_path / "cifar-10-batches-py" / name, random_pixels(1, 32, 32, 3), {"labels": [0]})
    with pytest.raises(DataError, match="corrupted"):
        data.load_dataset(f"cifar10:{tmp_path}")


# any source


@pytest.mark.parametrize("source", ["", "photos", "zip:a.zip", "folder", "folder:", "npz:", "cifar10", "/data/flowers"])
def test_an_unknown_source_is_refused_with_those_that_exist(source: str) -> None:
    with pytest.raises(DataError, match=r"digits, folder:PATH, npz:PATH, cifar10:ROOT, cifar100:ROOT or food101:ROOT"):
        data.load_dataset(source)


def test_labels_must_be_classes_of_the_bundle(tmp_path: Path) -> None:
    dataset = data.load_dataset(npz(tmp_path))
    data.check_labels(dataset, 3)
    with pytest.raises(DataError, match=r"labels from 0 to 2[^$]*0 to 1, the bundle's 2 classes[^$]*--num-classes 3"):
        data.check_labels(dataset, 2)
    with pytest.raises(DataError, match=r"labels from 0 to 7"):
        data.check_labels(data.load_dataset(npz(tmp_path, y_test=np.array([7, 0]))), 7)
    with pytest.raises(DataError, match=r"labels from -1 to 2"):
        data.check_labels(data.load_dataset(npz(tmp_path, y_test=np.array([-1, 0]))), 3)
