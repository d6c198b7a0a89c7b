"""Data sources: ``SRC`` on the command line -> images and labels, in a train and a test split.

digits          scikit-learn's 8×8 digits, 1 437 train + 360 test
folder:PATH     image files in class directories (`listing.py`)
npz:PATH        x_train, y_train, x_test, y_test (uint8 images [n, H, W] or [n, H, W, C])
cifar10:ROOT, cifar100:ROOT, food101:ROOT    in torchvision's layout
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from adc_edge.arrays import Labels
from adc_edge.data.decoding import upright
from adc_edge.data.listing import list_folder
from adc_edge.errors import DataError

SOURCES = "digits, folder:PATH, npz:PATH, cifar10:ROOT, cifar100:ROOT or food101:ROOT"


class Split(Protocol):
    """Images with their labels; a broken image makes ``image`` raise."""

    labels: Labels

    def image(self, index: int) -> Image.Image:
        """Return the decoded image at ``index``."""


class Dataset(NamedTuple):
    """The two splits of a data source, and its class names."""

    train: Split
    test: Split
    classes: Sequence[str]
    named: bool = True  # False: the source has no names, and these are the labels' numbers


class ArraySplit:
    """Images in memory: uint8 ``[n, H, W]`` or ``[n, H, W, C]``."""

    def __init__(self, images: npt.NDArray[np.uint8], labels: Labels) -> None:
        self._images, self.labels = images, labels

    def image(self, index: int) -> Image.Image:
        """Return the image at ``index``."""
        pixels = self._images[index]
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels)


class TorchvisionSplit:
    """Images of a torchvision dataset, which yields pairs of PIL image and label."""

    def __init__(self, dataset: Any, labels: Sequence[int]) -> None:
        self._dataset = dataset
        self.labels = np.asarray(labels, np.int64)

    def image(self, index: int) -> Image.Image:
        """Return the image at ``index``."""
        image: Image.Image = self._dataset[index][0]
        return upright(image)


def load_dataset(source: str) -> Dataset:
    """Open a data source.

    Raises:
        DataError: the source is unknown, absent, empty, or in another layout than it must have.
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
    train, test = ArraySplit(x_train, y_train), ArraySplit(x_test, y_test)
    return Dataset(train, test, names or [str(n) for n in range(top + 1)], named=bool(names))


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
    "folder": lambda where: Dataset(*list_folder(where)),
    "npz": _npz,
    "cifar10": _torchvision("CIFAR10", "targets"),
    "cifar100": _torchvision("CIFAR100", "targets"),
    "food101": _torchvision("Food101", "_labels"),
}
