"""The image files below a folder: links are followed, hidden and system files are skipped, all others are counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from adc_edge.data.decoding import image_suffixes
from adc_edge.errors import DataError

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
    """The entries of one folder: ``folders`` and ``images`` in the order of their names; ``skipped`` counts others."""

    folders: list[Path]
    links: list[Path]  # to folders
    images: list[Path]
    skipped: Counter[str]  # hidden, other


def read_level(folder: Path) -> FolderLevel:
    """Sort the entries of a folder by kind.

    Raises:
        DataError: the folder cannot be listed.
    """
    found = FolderLevel([], [], [], Counter())
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
    for paths in found[:3]:
        paths.sort()
    return found


def images_below(top: Path) -> tuple[list[Path], Counter[str]]:
    """Return all images below a folder in the order of their names, and the number of entries skipped, by kind.

    Each folder is listed once, so that a loop of links ends. Links come after folders, which keep their own names.
    """
    images: list[Path] = []
    skipped, seen, waiting = Counter[str](), set[str](), [top]
    while waiting:
        links: list[Path] = []
        while waiting:
            folder = waiting.pop()
            real = os.path.realpath(folder)
            if real in seen:
                continue
            seen.add(real)
            level = read_level(folder)
            images += level.images
            skipped += level.skipped
            links += level.links
            waiting += level.folders
        waiting = sorted(links, reverse=True)
    return sorted(images), skipped


def _sort_in(entry: os.DirEntry[str], found: FolderLevel) -> None:
    path, is_link = Path(entry.path), entry.is_symlink()
    if entry.name.startswith(".") or entry.name.casefold() in _SYSTEM:
        found.skipped["hidden"] += 1
    elif _holds(entry.is_dir):
        (found.links if is_link else found.folders).append(path)
    elif path.suffix.lower() in image_suffixes() and (is_link or _holds(entry.is_file)):  # a dead link is named later
        found.images.append(path)
    else:
        found.skipped["other"] += 1


def _holds(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link to itself
        return False


def _printable(path: Path) -> str:
    return str(path).encode("utf-8", "backslashreplace").decode()
