"""Image files in class directories: which files there are, and which of them are held out as the test split.

PATH/{train,test}/CLASS/*.jpg    both splits as they stand; the names of splits may be spelled otherwise
PATH/CLASS/*.jpg                 a tenth of the files is held out
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from adc_edge.arrays import Labels
from adc_edge.data.decoding import decode_image
from adc_edge.data.walking import ClassWalk, FolderLevel, check_no_dead_folder, read_level
from adc_edge.errors import DataError

logger = logging.getLogger(__name__)
_TRAIN = {"train", "training"}
_TEST, _VALIDATION = {"test", "testing", "eval", "evaluation"}, {"val", "valid", "validation", "dev"}
_LEAST = 20  # images of which a tenth is held out
_HELD_OUT = _TEST | _VALIDATION
# Names such as train2017, "Train Data" and tst, but not trains.
_LIKE_TRAIN = re.compile(r"(train|training|trn)([^a-z].*)?")
_LIKE_HELD_OUT = re.compile(r"(test|testing|tst|val|valid|validation|dev|eval|evaluation)([^a-z].*)?")
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

    def file_bytes(self, index: int) -> int:
        """Return the size of the file of the image at ``index``; raises OSError if there is none."""
        return self.paths[index].stat().st_size


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
    check_no_dead_folder(level)
    splits = _split_folders(root, level)
    return _held_out_by_hash(root) if splits is None else _as_they_stand(*splits, level.skipped)


def is_held_out(name: str) -> bool:
    """Return whether a file is of the held-out tenth: by its name, so that further files move none to another split."""
    return hashlib.sha256(os.fsencode(name)).digest()[0] < 26


def log_held_out() -> None:
    """Log that a tenth of the images is the test split, for a source that has none."""
    logger.info("data     there is no test split: a tenth is held out")


def _as_they_stand(train: Path, test: Path, skipped: Counter[str]) -> tuple[FileSplit, FileSplit, list[str]]:
    folders = _class_folders(train)
    _check_no_level_between(train, folders)
    classes, walk = [path.name for path in folders], ClassWalk([train, test])
    foreign = sorted({path.name for path in _class_folders(test)} - set(classes))
    if foreign:
        raise DataError(
            f"{test} has the classes {', '.join(foreign)}",
            f"no class that {train} lacks",
            "move or rename their directories",
        )
    found = _files(train, classes, walk)
    _check_classes(train, classes, found)
    held_out = _files(test, classes, walk)
    if not held_out.paths:
        raise _wrong(f"{test}: the test split is empty", f"put images into {test}/CLASS")
    found.skipped = Counter(found.skipped) + skipped
    return found, held_out, classes


def _held_out_by_hash(root: Path) -> tuple[FileSplit, FileSplit, list[str]]:
    folders = _class_folders(root)
    _check_no_splits_inside(root, folders)
    _check_no_level_between(root, folders)
    classes = [path.name for path in folders]
    everything = _files(root, classes, ClassWalk([root]))
    _check_classes(root, classes, everything)
    held = np.array([is_held_out(path.relative_to(root).as_posix()) for path in everything.paths])
    if len(held) < _LEAST or held.all() or not held.any():
        raise _wrong(
            f"folder:{root} has {len(held)} images in {len(classes)} classes, too few to hold a tenth of them out",
            "add images, or divide them into train and test yourself",
        )
    log_held_out()
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
    _check_no_other_spelling(root, splits, others)
    is_class_name = others and not (train and tests + validations) and not any(map(_holds_folders, splits))
    if not splits or is_class_name:  # such as trains beside buses
        return None
    beside = [path for path in others if _holds_images(path)]
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
    check_no_dead_folder(level)
    folders, loose = sorted(level.folders + level.links), len(level.images) + len(level.image_links)
    if not folders:
        images, others = loose, sum(level.skipped.values())
        raise _wrong(
            f"{root} holds no image in a class folder: {images} loose images and {others} other files",
            "make one folder for each class and move its images there",
        )
    if loose:
        logger.warning("data     %d images in %s are in no class folder and are left out", loose, root)
    return folders


def _check_no_splits_inside(root: Path, folders: Sequence[Path]) -> None:
    for folder in folders:
        inner = read_level(folder)
        names = {path.name.casefold() for path in inner.folders + inner.links}
        is_wrapped = len(folders) == 1 and len(names) > 1 and not inner.images + inner.image_links
        if is_wrapped or (names & _TRAIN and names & _HELD_OUT):
            raise _wrong(
                f"{folder} holds {_some(sorted(path.name for path in inner.folders + inner.links))}, and no class is "
                "above them",
                f"name folder:{folder}" if len(folders) == 1 else f"put the splits above the classes in {root}",
            )


def _check_no_other_spelling(root: Path, splits: Sequence[Path], others: Sequence[Path]) -> None:
    """Raise DataError if train2017, val2017, … stand for splits: one holds folders, or nothing is beside the two."""
    train = [path for path in others if _LIKE_TRAIN.fullmatch(path.name.casefold())]
    held_out = [path for path in others if _LIKE_HELD_OUT.fullmatch(path.name.casefold())]
    named = sorted(train + held_out)
    is_pair = train and held_out and len(named) == len(others)
    if not splits and named and (is_pair or any(map(_holds_folders, named))):
        raise _wrong(
            f"folder:{root} holds {_some([path.name for path in named])}: a split that is not whole",
            "if they are splits, call them train and test; if they are classes, give them other names",
        )


def _check_no_level_between(root: Path, folders: Sequence[Path]) -> None:
    """Raise DataError if what is below the class folders looks like the classes: splits, or a folder around all."""
    alike: dict[tuple[str, ...], list[Path]] = {}
    for folder in folders:
        inner = read_level(folder)
        names = tuple(sorted(path.name for path in inner.folders + inner.links))
        if len(names) > 1 and not inner.images and not inner.image_links:
            alike.setdefault(names, []).append(folder)
    for names, group in alike.items():
        if (len(group) > 1 or len(folders) == 1) and all(_holds_images(group[0] / name) for name in names):
            raise _wrong(
                f"{' and '.join(str(path) for path in group[:2])} {'each hold' if len(group) > 1 else 'holds'} "
                f"{_some(names)}: looks like splits, or a folder above the classes",
                f"move the class folders to {root}/CLASS, those of splits to train and test; if the upper folders are "
                "the classes, move their images into them, or list them in a table for --data csv:FILE",
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


def _files(root: Path, classes: Sequence[str], walk: ClassWalk) -> FileSplit:
    paths: list[Path] = []
    labels: list[int] = []
    skipped = read_level(root).skipped
    for label, name in enumerate(classes):
        if not (root / name).is_dir():  # a class without a test image
            continue
        found, more = walk.images_below(root / name)
        paths += found
        labels += [label] * len(found)
        skipped += more
    return FileSplit(paths, np.array(labels, np.int64), skipped)


def _subset(split: FileSplit, chosen: npt.NDArray[np.intp]) -> FileSplit:
    return FileSplit([split.paths[i] for i in chosen], split.labels[chosen])


def _holds_images(path: Path) -> bool:
    return bool(ClassWalk().images_below(path)[0])


def _holds_folders(path: Path) -> bool:
    level = read_level(path)
    return bool(level.folders or level.links)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name}/" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _wrong(received: str, remedy: str) -> DataError:
    return DataError(received.encode("utf-8", "backslashreplace").decode(), _LAYOUT, remedy)
