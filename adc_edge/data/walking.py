"""The image files below the folders of a data set: links are followed, no file is listed twice, all others are counted.

Hidden and system files are skipped.
"""

from __future__ import annotations

import logging
import os
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from adc_edge.data.decoding import image_suffixes
from adc_edge.errors import DataError

logger = logging.getLogger(__name__)
# Files and folders of systems and network storage, besides all names that begin with a dot; in lower case.
_SYSTEM = {
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "@eadir",
    "@recycle",
    "__macosx",
    "__pycache__",
    "desktop.ini",
    "lost+found",
    "system volume information",
    "thumbs.db",
}


class FolderLevel(NamedTuple):
    """The entries of one folder, in the order of their names; ``skipped`` counts those of no other field."""

    folders: list[Path]
    links: list[Path]  # to folders
    images: list[Path]
    image_links: list[Path]  # dead ones too, which are named once they are opened
    dead: list[Path]  # links that lead nowhere or may not be followed, and are not named as images
    skipped: Counter[str]  # hidden, other


def read_level(folder: Path) -> FolderLevel:
    """Sort the entries of a folder by kind.

    Raises:
        DataError: the folder cannot be listed.
    """
    found = FolderLevel([], [], [], [], [], Counter())
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                _sort_in(entry, found)
    except OSError as error:
        raise DataError(
            f"{_printable(folder)} cannot be listed: {error.strerror}",
            "a folder that this user may read",
            "change its permissions, or name another folder",
        ) from None
    for paths in found[:5]:
        paths.sort()
    return found


def check_no_dead_folder(level: FolderLevel) -> None:
    """Raise DataError if a link among class folders leads nowhere and may stand for a class.

    Raises:
        DataError: such a link has no suffix of a file.
    """
    folders = [path for path in level.dead if not path.suffix[1:2].isalpha()]
    if folders:
        raise DataError(
            f"{_printable(folders[0])} is a link to {_printable(folders[0].readlink())}, which cannot be opened",
            "class folders, or links to folders that this user may read",
            "mend or remove the link",
        )


class ClassWalk:
    """The images of one data set, class by class; no folder and no file is in two of them.

    Args:
        roots: the folders that hold the class folders, into which no link may lead.
    """

    def __init__(self, roots: Sequence[Path] = ()) -> None:
        self._folders: dict[str, tuple[Path, Path]] = {}  # real path -> class and path as it was reached
        self._links: dict[str, tuple[Path, Path]] = {}  # the same of the files that links lead to
        self._roots = {os.path.realpath(root) for root in roots}
        for root in roots:
            self._is_new(self._folders, os.path.realpath(root), root, root)

    def images_below(self, top: Path) -> tuple[list[Path], Counter[str]]:
        """Return all images below a class folder in the order of their names, and the numbers of entries skipped.

        What a class reaches twice is listed once, so that a loop of links ends. Links come after folders and files,
        which keep their own names.

        Raises:
            DataError: a folder cannot be listed, or a link leads to a folder or file of another class or split.
        """
        images: list[Path] = []
        image_links: list[Path] = []
        skipped, waiting = Counter[str](), [top]
        while waiting:
            links: list[Path] = []
            while waiting:
                folder = waiting.pop()
                real = os.path.realpath(folder)
                if not self._is_new(self._folders, real, top, folder):
                    continue
                level = read_level(folder)
                self._check_not_linked(real, level.images, top)
                images += level.images
                image_links += level.image_links
                skipped += level.skipped
                links += level.links
                waiting += level.folders
                for path in level.dead:
                    logger.warning("data     %s is a link that leads nowhere and is left out", _printable(path))
            waiting = sorted(links, reverse=True)
        images += [path for path in sorted(image_links) if self._is_new_file(path, top)]
        return sorted(images), skipped

    def _is_new_file(self, link: Path, top: Path) -> bool:
        if not os.path.isfile(link):  # dead: named once it is opened
            return True
        real = os.path.realpath(link)
        folder, name = os.path.split(real)
        if folder in self._folders and folder not in self._roots and _is_image_name(name) and not _is_hidden(name):
            self._links.setdefault(real, (self._folders[folder][0], self._folders[folder][1] / name))
        return self._is_new(self._links, real, top, link)

    def _check_not_linked(self, real: str, images: list[Path], top: Path) -> None:
        if self._links:
            for path in images:
                self._is_new(self._links, os.path.join(real, path.name), top, path)

    @staticmethod
    def _is_new(seen: dict[str, tuple[Path, Path]], real: str, top: Path, path: Path) -> bool:
        """Note that a class reaches a folder or file; return whether it does so for the first time."""
        owner, first = seen.setdefault(real, (top, path))
        if owner != top:
            raise DataError(
                f"{_printable(first)} and {_printable(path)} are the same",
                "no folder and no file in two classes, or in train and test",
                "remove the link, or one of the two",
            )
        return first is path


def _sort_in(entry: os.DirEntry[str], found: FolderLevel) -> None:
    path = Path(entry.path)
    if _is_hidden(entry.name):
        found.skipped["hidden"] += 1
    elif entry.is_symlink():
        _sort_link(entry, path, found)
    elif entry.is_dir(follow_symlinks=False):
        found.folders.append(path)
    elif _is_image_name(entry.name) and entry.is_file(follow_symlinks=False):
        found.images.append(path)
    else:
        found.skipped["other"] += 1


def _sort_link(entry: os.DirEntry[str], path: Path, found: FolderLevel) -> None:
    try:
        mode = entry.stat().st_mode
    except OSError:  # the target is absent or closed, or the link leads to itself
        mode = None
    if mode is not None and stat.S_ISDIR(mode):
        found.links.append(path)
    elif _is_image_name(entry.name) and (mode is None or stat.S_ISREG(mode)):  # a pipe would hang whoever opens it
        found.image_links.append(path)
    else:
        found.skipped["other"] += 1
        if mode is None:
            found.dead.append(path)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _SYSTEM


def _is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in image_suffixes()


def _printable(path: Path) -> str:
    return str(path).encode("utf-8", "backslashreplace").decode()
