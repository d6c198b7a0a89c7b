"""Image files in class directories: which files there are, and which of them are held out as the test split.

PATH/{train,test}/CLASS/*.jpg    both splits as they stand; val or valid may stand for test
PATH/CLASS/*.jpg                 a tenth of the files is held out
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from adc_edge.arrays import Labels
from adc_edge.data.decoding import decode_image
from adc_edge.errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


class FileSplit:
    """Images in files, each decoded when it is asked for."""

    def __init__(self, paths: Sequence[Path], labels: Labels) -> None:
        self.paths, self.labels = paths, labels

    def image(self, index: int) -> Image.Image:
        """Return the image at ``index`` as a viewer shows it; raises DataError with the reason if it is broken."""
        return decode_image(self.paths[index])


def list_folder(where: str) -> tuple[FileSplit, FileSplit, list[str]]:
    """Return the train split, the test split and the class names of a directory of images.

    Raises:
        DataError: there is no such directory, it holds no image, or a test class is no train class.
    """
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
        return _files(root / "train", classes), _files(held_out, classes), classes
    if _class_names(root) == ["train"]:  # alone, without a test directory: a split, not a class
        root /= "train"
    classes = _class_names(root)
    everything = _files(root, classes)
    if not everything.paths:
        raise DataError(
            f"folder:{where} holds no image", "class directories with image files", f"suffixes: {sorted(SUFFIXES)}"
        )
    # A hash of the name decides, so that adding files never moves one from test to train.
    names = [path.relative_to(root).as_posix() for path in everything.paths]
    held = np.array([hashlib.sha256(name.encode()).digest()[0] < 26 for name in names])
    return _subset(everything, np.flatnonzero(~held)), _subset(everything, np.flatnonzero(held)), classes


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
