"""Data sources: ``SRC`` on the command line -> images and labels, in a train and a test split.

digits          8×8 digits that come with adc-edge (digits.LICENSE), 1 437 train + 360 test
folder:PATH     image files in class directories (`listing.py`)
npz:PATH        arrays (`npz.py`): x_train, y_train, x_test, y_test
csv:FILE        a table of image files and their labels (`csv_listing.py`)
cifar10:ROOT, cifar100:ROOT, food101:ROOT    in torchvision's layout
MODULE:FACTORY  your own Python function (`user_module.py`), for example mypackage.flowers:make
"""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from adc_edge.arrays import Labels
from adc_edge.data.decoding import upright
from adc_edge.data.listing import list_folder
from adc_edge.errors import DataError

SOURCES = (
    "digits, folder:PATH, npz:PATH, cifar10:ROOT, cifar100:ROOT or food101:ROOT; csv:FILE; MODULE:FACTORY for a Python "
    "function of yours"
)


class Split(Protocol):
    """Images with their labels; a broken image makes ``image`` raise. Some have ``file_bytes(index)`` too."""

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

    def file_bytes(self, index: int) -> int | None:
        """Return the size of the file of the image at ``index``; None where many images share one, as in CIFAR."""
        files = getattr(self._dataset, "_image_files", None)
        return None if files is None else Path(files[index]).stat().st_size


def file_bytes(split: Split, index: int) -> int | None:
    """Return the size of the file that holds the image at ``index`` alone, in bytes; None if there is no such file.

    Raises:
        OSError: the file is gone.
    """
    told = getattr(split, "file_bytes", None)
    return None if told is None else told(index)


def load_dataset(source: str) -> Dataset:
    """Open a data source.

    Raises:
        DataError: the source is unknown, absent, empty, or in another layout than it must have.
    """
    kind, _, where = source.partition(":")
    dataset = _loader(source, kind, where)(where)
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        if len(split.labels) == 0:
            raise DataError(f"{source}: the {name} split is empty", "at least one image", _filling(kind, where))
    return dataset


def _filling(kind: str, where: str) -> str:
    if kind in ("npz", "csv"):
        return f"add images to {where}"
    return f"put images under {where}" if kind in _LOADERS else f"let {where} return images in both splits"


def _loader(source: str, kind: str, where: str) -> Callable[[str], Dataset]:
    if kind in _LOADERS and (where or kind == "digits"):
        return _LOADERS[kind]
    if kind not in _LOADERS and all(name.isidentifier() for name in (*kind.split("."), *where.split("."))):
        from adc_edge.data.user_module import load_module

        return functools.partial(load_module, kind)
    raise DataError(f"data source {source!r}", SOURCES, _likely(source, kind, where))


def _likely(source: str, kind: str, where: str) -> str:
    """Return the remedy: the source that was likely meant, or an example."""
    suffix = os.path.splitext(source)[1].removeprefix(".")
    if os.path.isdir(source):
        return f"--data folder:{source}"
    if suffix in ("npz", "csv") and ":" not in source:
        return f"--data {suffix}:{source}"
    if near := difflib.get_close_matches(kind, _LOADERS, n=1):
        return "do you mean " + (near[0] if near[0] == "digits" else f"{near[0]}:{where or 'PATH'}") + "?"
    return "for example --data folder:/data/flowers"


def check_labels(dataset: Dataset, classes: int) -> None:
    """Raise DataError unless every label is a class of the bundle."""
    highest = int(max(dataset.train.labels.max(), dataset.test.labels.max()))
    lowest = int(min(dataset.train.labels.min(), dataset.test.labels.min()))
    if lowest < 0:
        remedy = "images without a label often have -1: leave them out, in NumPy x, y = x[y >= 0], y[y >= 0]"
    elif highest < classes:
        return
    elif lowest == 1 and highest == classes:
        remedy = f"count labels from 0, in NumPy y = y - 1, or export the bundle with --num-classes {highest + 1}"
    else:
        remedy = f"export the bundle with --num-classes {highest + 1}, or mend the labels"
        found = np.unique(np.concatenate([dataset.train.labels, dataset.test.labels]))
        if len(found) <= classes:  # such as 0, 100, 200
            remedy = (
                "number the labels without gaps, in NumPy values, y = np.unique(np.concatenate([y_train, y_test]), "
                f"return_inverse=True), then y_train, y_test = np.split(y, [len(y_train)]); or {remedy}"
            )
    expected = f"labels from 0 to {classes - 1}, the bundle's {classes} classes"
    raise DataError(f"labels from {lowest} to {highest}", expected, remedy)


def _digits(_: str) -> Dataset:
    with np.load(Path(__file__).with_name("digits.npz")) as digits:
        images = np.rint(digits["images"] * (255.0 / 16.0)).astype(np.uint8)
        labels = digits["labels"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[:360], order[360:]
    return Dataset(
        ArraySplit(images[train], labels[train]), ArraySplit(images[test], labels[test]), [str(n) for n in range(10)]
    )


def _npz(where: str) -> Dataset:
    from adc_edge.data.npz import NpzReader

    return NpzReader(where).load()


def _csv(where: str) -> Dataset:
    from adc_edge.data.csv_listing import list_csv

    return list_csv(where)


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
    "csv": _csv,
    "cifar10": _torchvision("CIFAR10", "targets"),
    "cifar100": _torchvision("CIFAR100", "targets"),
    "food101": _torchvision("Food101", "_labels"),
}
