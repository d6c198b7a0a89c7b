"""Image files in class directories: which files there are, and which of them are held out as the test split.

PATH/{train,test}/CLASS/*.jpg    both splits as they stand; the names of splits may be spelled otherwise
PATH/CLASS/*.jpg                 a tenth of the files is held out
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from adc_edge.arrays import Labels
from adc_edge.data.decoding import decode_image
from adc_edge.data.walking import FolderLevel, images_below, read_level
from adc_edge.errors import DataError

logger = logging.getLogger(__name__)
_TRAIN = {"train", "training"}
_TEST, _VALIDATION = {"test", "testing", "eval", "evaluation"}, {"val", "valid", "validation", "dev"}
_LEAST = 20  # images of which a tenth is held out
_HELD_OUT = _TEST | _VALIDATION
_LAYOUT = (
    "PATH/train/CLASS/*.jpg and PATH/test/CLASS/*.jpg\n            or PATH/CLASS/*.jpg, of which a tenth is held out"
)


class FileSplit:
    """Images in files, each decoded when it is asked for.

    Args:
        paths: the files.
        labels: the class of each.
        skipped: numbers of the files beside them that are no images, by kind.
    """

    def __init__(self, paths: Sequence[Path], labels: Labels, skipped: Mapping[str, int] | None = None) -> None:
        self.paths, self.labels = paths, labels
        self.skipped: Mapping[str, int] = skipped or {}

    def image(self, index: int) -> Image.Image:
        """Return the image at ``index`` as a viewer shows it; raises DataError with the reason if it is broken."""
        return decode_image(self.paths[index])


def list_folder(where: str) -> tuple[FileSplit, FileSplit, list[str]]:
    """Return the train split, the test split and the class names of a directory of images.

    Raises:
        DataError: there is no such directory, it has another layout, a class holds no image, or a test class is no
            train class.
    """
    root = Path(where)
    if not root.is_dir():
        raise DataError(f"folder:{where} is no directory", "a directory of class directories", "check the path")
    level = read_level(root)
    splits = _split_folders(root, level)
    return _held_out_by_hash(root) if splits is None else _as_they_stand(*splits, level.skipped)


def is_held_out(name: str) -> bool:
    """Return whether a file is of the held-out tenth: by its name, so that further files move none to another split."""
    return hashlib.sha256(os.fsencode(name)).digest()[0] < 26


def _as_they_stand(train: Path, test: Path, skipped: Counter[str]) -> tuple[FileSplit, FileSplit, list[str]]:
    classes = [path.name for path in _class_folders(train)]
    foreign = sorted({path.name for path in _class_folders(test)} - set(classes))
    if foreign:
        raise DataError(
            f"{test} has the classes {', '.join(foreign)}",
            f"no class that {train} lacks",
            "move or rename their directories",
        )
    found = _files(train, classes)
    _check_classes(train, classes, found)
    held_out = _files(test, classes)
    if not held_out.paths:
        raise _wrong(f"{test}: the test split is empty", f"put images into {test}/CLASS")
    found.skipped = Counter(found.skipped) + skipped
    return found, held_out, classes


def _held_out_by_hash(root: Path) -> tuple[FileSplit, FileSplit, list[str]]:
    folders = _class_folders(root)
    _check_no_splits_inside(root, folders)
    classes = [path.name for path in folders]
    everything = _files(root, classes)
    _check_classes(root, classes, everything)
    held = np.array([is_held_out(path.relative_to(root).as_posix()) for path in everything.paths])
    if len(held) < _LEAST or held.all() or not held.any():
        raise _wrong(
            f"folder:{root} has {len(held)} images in {len(classes)} classes, too few to hold a tenth of them out",
            "add images, or divide them into train and test yourself",
        )
    train, test = _subset(everything, np.flatnonzero(~held)), _subset(everything, np.flatnonzero(held))
    return FileSplit(train.paths, train.labels, everything.skipped), test, classes


def _split_folders(root: Path, level: FolderLevel) -> tuple[Path, Path] | None:
    """Return the folders of train and test, or None where the folders of this level are classes."""
    folders = sorted(level.folders + level.links)
    train = [path for path in folders if path.name.casefold() in _TRAIN]
    tests = [path for path in folders if path.name.casefold() in _TEST]
    validations = [path for path in folders if path.name.casefold() in _VALIDATION]
    splits = train + tests + validations
    others = [path for path in folders if path not in splits]
    is_class_name = others and not (train and tests + validations) and not any(map(_holds_folders, splits))
    if not splits or is_class_name:  # such as trains beside buses
        return None
    beside = [path for path in others if images_below(path)[0]]
    held_out = tests or validations
    if len(train) == len(held_out) == 1 and not beside:
        for path in splits:
            if path not in (train[0], held_out[0]):
                logger.info("data     %s is not used: %s is the test split", path, held_out[0].name)
        return train[0], held_out[0]
    names = ", ".join(f"{path.name}/" for path in splits + beside)
    if len(splits) == 1 and not beside:
        remedy = f"add the other split, or name folder:{splits[0]}, of which a tenth is then held out"
    else:
        remedy = "keep one train and one test folder, and move all else out of the directory"
    raise _wrong(f"folder:{root} holds {names}: a split that is not whole", remedy)


def _class_folders(root: Path) -> list[Path]:
    level = read_level(root)
    folders = sorted(level.folders + level.links)
    if not folders:
        images, others = len(level.images), sum(level.skipped.values())
        raise _wrong(
            f"{root} holds no image in a class folder: {images} loose images and {others} other files",
            "make one folder for each class and move its images there",
        )
    if level.images:
        logger.warning("data     %d images in %s are in no class folder and are left out", len(level.images), root)
    return folders


def _check_no_splits_inside(root: Path, folders: Sequence[Path]) -> None:
    for folder in folders:
        inner = read_level(folder)
        names = {path.name.casefold() for path in inner.folders + inner.links}
        is_wrapped = len(folders) == 1 and len(names) > 1 and not inner.images
        if is_wrapped or (names & _TRAIN and names & _HELD_OUT):
            raise _wrong(
                f"{folder} holds {_some(sorted(path.name for path in inner.folders + inner.links))}, and no class is "
                "above them",
                f"name folder:{folder}" if len(folders) == 1 else f"put the splits above the classes in {root}",
            )


def _check_classes(root: Path, classes: Sequence[str], found: FileSplit) -> None:
    """Raise DataError unless there are images, and some in each class."""
    images = np.bincount(found.labels, minlength=len(classes))
    empty = [name for name, count in zip(classes, images, strict=True) if count == 0]
    if empty:
        others = sum(found.skipped.values())
        what = f"no image in {_some(empty)}" if found.paths else "no image"
        raise _wrong(
            f"{root} holds {what}: {len(found.paths)} images in {len(classes)} class folders, {others} other files",
            "add images that Pillow reads (jpg, png, webp, avif, tif, …), or remove the folder",
        )


def _files(root: Path, classes: Sequence[str]) -> FileSplit:
    paths: list[Path] = []
    labels: list[int] = []
    skipped = read_level(root).skipped
    for label, name in enumerate(classes):
        if not (root / name).is_dir():  # a class without a test image
            continue
        found, more = images_below(root / name)
        paths += found
        labels += [label] * len(found)
        skipped += more
    return FileSplit(paths, np.array(labels, np.int64), skipped)


def _subset(split: FileSplit, chosen: npt.NDArray[np.intp]) -> FileSplit:
    return FileSplit([split.paths[i] for i in chosen], split.labels[chosen])


def _holds_folders(path: Path) -> bool:
    level = read_level(path)
    return bool(level.folders or level.links)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name}/" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _wrong(received: str, remedy: str) -> DataError:
    return DataError(received.encode("utf-8", "backslashreplace").decode(), _LAYOUT, remedy)
