"""The size of a run's own training images as files: what it would take to send the pictures instead."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from adc_edge.errors import AdcEdgeError

_JPEG = {".jpg", ".jpeg", ".jfif"}


class SourceFiles(NamedTuple):
    """The files of a train split."""

    images: int
    size: int  # bytes of all
    jpeg: bool  # every one of them is a JPEG by its name


def source_files(settings: Mapping[str, Any]) -> SourceFiles | None:
    """Return the files of a run's training images; None where that is not known: no folder of files, or not here."""
    kind, _, where = str(settings.get("data", "")).partition(":")
    if kind != "folder" or not Path(where).is_dir():
        return None
    from adc_edge.data.listing import list_folder

    logger = logging.getLogger("adc_edge.data")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it tells what the run told when it began
    try:
        with contextlib.suppress(OSError, AdcEdgeError):
            paths = list_folder(where)[0].paths
            jpeg = all(path.suffix.lower() in _JPEG for path in paths)
            return SourceFiles(len(paths), sum(path.stat().st_size for path in paths), jpeg)
    finally:
        logger.setLevel(level)
    return None
