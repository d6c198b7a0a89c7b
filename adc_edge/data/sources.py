"""Data sources: ``SRC`` on the command line -> images and labels, in a train and a test split.

digits          scikit-learn's 8×8 digits, 1 437 train + 360 test
folder:PATH     PATH/{train,test}/CLASS/*.jpg, or PATH/CLASS/*.jpg (a tenth is then held out)
npz:PATH        x_train, y_train, x_test, y_test (uint8 images [n, H, W] or [n, H, W, C])
cifar10:ROOT, cifar100:ROOT, food101:ROOT    as torchvision lays them out
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from adc_edge.arrays import Labels
from adc_edge.errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
SOURCES = "digits, folder:PATH, npz:PATH, cifar10:ROOT, cifar100:ROOT or food101:ROOT"


class Split(Protocol):
    """Images with their labels; ``image`` raises OSError where one is broken."""

    labels: Labels

    def image(self, index: int) -> Image.Image:
        """The image at ``index``, decoded."""


class Dataset(NamedTuple):
    """Both splits of a source and its class names."""

    train: Split
    test: Split
    classes: Sequence[str]


class ArraySplit:
    """Images in memory: uint8 ``[n, H, W]`` or ``[n, H, W, C]``."""

    def __init__(self, images: npt.NDArray[np.uint8], labels: Labels) -> None:
        self._images, self.labels = images, labels

    def image(self, index: int) -> Image.Image:
        """The image at ``index``."""
        pixels = self._images[index]
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels)


class FileSplit:
    """Image files."""

    def __init__(self, paths: Sequence[Path], labels: Labels) -> None:
        self.paths, self.labels = paths, labels

    def image(self, index: int) -> Image.Image:
        """The image at ``index``, read from its file."""
        with Image.open(self.paths[index]) as image:
            image.load()
            return image.copy()


class TorchvisionSplit:
    """A torchvision dataset of (PIL image, label)."""

    def __init__(self, dataset: Any, labels: Sequence[int]) -> None:
        self._dataset = dataset
        self.labels = np.asarray(labels, np.int64)

    def image(self, index: int) -> Image.Image:
        """The image at ``index``."""
        image: Image.Image = self._dataset[index][0]
        return image


def load_dataset(source: str) -> Dataset:
    """Open a data source.

    Raises:
        DataError: unknown source, nothing there, or not in the layout that it must have.
    """
    kind, _, where = source.partition(":")
    loader = _LOADERS.get(kind)
    if loader is None or (kind != "digits" and not where):
        raise DataError(f"data source {source!r}", SOURCES, "for example --data folder:/data/flowers")
    dataset = loader(where)
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        if len(split.labels) == 0:
            raise DataError(f"{source}: the {name} split is empty", "at least one image", f"put images under {where}")
    return dataset


def check_labels(dataset: Dataset, classes: int) -> None:
    """Raise DataError unless every label is a class of the bundle."""
    highest = int(max(dataset.train.labels.max(), dataset.test.labels.max()))
    lowest = int(min(dataset.train.labels.min(), dataset.test.labels.min()))
    if lowest < 0 or highest >= classes:
        raise DataError(
            f"labels from {lowest} to {highest}",
            f"labels from 0 to {classes - 1}, the bundle's {classes} classes",
            f"export the bundle with --num-classes {highest + 1}, or mend the labels",
        )


def _digits(_: str) -> Dataset:
    sets = _need("sklearn.datasets", "scikit-learn")
    digits = sets.load_digits()
    images = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[:360], order[360:]
    labels = digits.target.astype(np.int64)
    return Dataset(
        ArraySplit(images[train], labels[train]), ArraySplit(images[test], labels[test]), [str(n) for n in range(10)]
    )


def _npz(where: str) -> Dataset:
    keys = ("x_train", "y_train", "x_test", "y_test")
    try:
        with open(where, "rb") as raw:
            if not zipfile.is_zipfile(raw):
                raise ValueError("no .npz archive")
            raw.seek(0)
            with np.load(raw, allow_pickle=False) as file:
                x_train, y_train, x_test, y_test = (file[key] for key in keys)
                names = [str(name) for name in file["classes"]] if "classes" in file else None
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise DataError(
            f"npz:{where}: {error}", f"an .npz with {', '.join(keys)}", "write it with numpy.savez"
        ) from None
    for name, images, labels in (("train", x_train, y_train), ("test", x_test, y_test)):
        pictures = images.dtype == np.uint8 and images.ndim >= 3 and images.shape[3:] in ((), (1,), (3,), (4,))
        if not pictures or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise DataError(
                f"npz:{where}: x_{name} is {images.dtype} {list(images.shape)}, "
                f"y_{name} {labels.dtype} {list(labels.shape)}",
                "uint8 images [n, H, W] or [n, H, W, C], C 1, 3 or 4, and one integer label each",
                "convert the arrays before saving",
            )
    y_train, y_test = y_train.astype(np.int64), y_test.astype(np.int64)
    top = max(y_train.max(initial=-1), y_test.max(initial=-1))
    return Dataset(ArraySplit(x_train, y_train), ArraySplit(x_test, y_test), names or [str(n) for n in range(top + 1)])


def _folder(where: str) -> Dataset:
    root = Path(where)
    if not root.is_dir():
        raise DataError(f"folder:{where} is no directory", "a directory of class directories", "check the path")
    held_out = next((root / name for name in ("test", "val", "valid") if (root / name).is_dir()), None)
    if (root / "train").is_dir() and held_out is not None:
        classes = _class_names(root / "train")
        foreign = sorted(set(_class_names(held_out)) - set(classes))
        if foreign:
            raise DataError(
                f"{held_out} has the classes {', '.join(foreign)}",
                f"no class that {root / 'train'} lacks",
                "move or rename their directories",
            )
        return Dataset(_files(root / "train", classes), _files(held_out, classes), classes)
    if _class_names(root) == ["train"]:  # without a test directory: the split, not a class
        root /= "train"
    classes = _class_names(root)
    everything = _files(root, classes)
    if not everything.paths:
        raise DataError(
            f"folder:{where} holds no image", "class directories with image files", f"suffixes: {sorted(SUFFIXES)}"
        )
    # By the file's name, so that adding files never moves one from test to train.
    names = [path.relative_to(root).as_posix() for path in everything.paths]
    held = np.array([hashlib.sha256(name.encode()).digest()[0] < 26 for name in names])
    return Dataset(_subset(everything, np.flatnonzero(~held)), _subset(everything, np.flatnonzero(held)), classes)


def _class_names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(root: Path, classes: Sequence[str]) -> FileSplit:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (root / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        paths += found
        labels += [label] * len(found)
    return FileSplit(paths, np.array(labels, np.int64))


def _subset(split: FileSplit, chosen: npt.NDArray[np.intp]) -> FileSplit:
    return FileSplit([split.paths[i] for i in chosen], split.labels[chosen])


def _torchvision(kind: str, labels: str) -> Callable[[str], Dataset]:
    def build(where: str) -> Dataset:
        datasets = _need("torchvision.datasets", "torchvision")
        make = getattr(datasets, kind)
        both = [{"split": "train"}, {"split": "test"}] if kind == "Food101" else [{"train": True}, {"train": False}]
        try:
            train, test = (make(where, download=False, **which) for which in both)
        except (RuntimeError, OSError, ValueError) as error:  # absent; Food-101 also without or with other meta files
            raise DataError(
                f"{kind} at {where!r}: {error}", "the dataset, unpacked", "download it there first"
            ) from None
        return Dataset(
            TorchvisionSplit(train, getattr(train, labels)),
            TorchvisionSplit(test, getattr(test, labels)),
            train.classes,
        )

    return build


def _need(module: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise DataError(
            f"this data source needs {package}, which is not installed",
            "the data extra",
            "pip install 'adc-edge[data]', or use folder: or npz:",
        ) from None


_LOADERS: dict[str, Callable[[str], Dataset]] = {
    "digits": _digits,
    "folder": _folder,
    "npz": _npz,
    "cifar10": _torchvision("CIFAR10", "targets"),
    "cifar100": _torchvision("CIFAR100", "targets"),
    "food101": _torchvision("Food101", "_labels"),
}
