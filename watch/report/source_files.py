"""The size of a run's own training images as pictures: what it would take to send them instead."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from adc_edge.errors import AdcEdgeError, DataError

if TYPE_CHECKING:
    from adc_edge.data.sources import Split

_JPEG = {".jpg", ".jpeg", ".jfif"}
_SOURCES = ("folder", "csv", "npz", "digits")  # that are read without torch, and run no code of the user's
_LARGEST_NPZ = 256 * 2**20  # bytes
_MEASURED = 200  # images that are encoded


class SourceFiles(NamedTuple):
    """The pictures of a train split. Sizes are bytes of all; None: not known."""

    images: int
    size: int | None  # of the source's own files; None: it has no file for each image
    jpeg: bool = False  # every one of them is a JPEG by its name
    side: str = ""  # height and width of the model's images
    q90: int | None = None  # as JPEG at that size, scaled up from a sample
    q75: int | None = None


def source_files(settings: Mapping[str, Any], manifest: Mapping[str, Any]) -> SourceFiles | None:
    """Return the pictures of a run's training images; None where that is not known: another source, or not here.

    Args:
        settings: of the run, flat.
        manifest: of its bundle, with the preprocessing of its images; {} if there is none.
    """
    source = str(settings.get("data", ""))
    kind, _, where = source.partition(":")
    path = Path(where)
    if kind not in _SOURCES or not path.exists() or (kind == "npz" and path.stat().st_size > _LARGEST_NPZ):
        return None
    from adc_edge.data.sources import load_dataset

    with _silent(), contextlib.suppress(OSError, AdcEdgeError):
        train = load_dataset(source).train
        found = SourceFiles(len(train.labels), *_own(train))
        return _with_jpegs(found, train, manifest.get("preprocessing"))
    return None


def _own(train: Split) -> tuple[int | None, bool]:
    """Return the bytes of a split's own files, and whether all are JPEG."""
    from adc_edge.data.listing import FileSplit

    if not isinstance(train, FileSplit):
        return None, False
    jpeg = all(path.suffix.lower() in _JPEG for path in train.paths)
    return sum(path.stat().st_size for path in train.paths), jpeg


def _with_jpegs(found: SourceFiles, train: Split, preprocessing: Any) -> SourceFiles:
    """Add the sizes as JPEG, if the preprocessing is one that this version knows and an image can be read."""
    import msgspec

    from adc_edge.data.pictures import measured_split
    from adc_edge.data.preprocessing import Preprocessing

    try:
        known = msgspec.convert(preprocessing, Preprocessing)
    except msgspec.ValidationError:
        return found
    try:
        measured = measured_split(train, known, _MEASURED)
    except DataError:
        return found
    side = " x ".join(map(str, known.size))
    return found._replace(side=side, q90=measured.bytes_q90, q75=measured.bytes_q75)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep a data source from telling again what the run told when it began."""
    logger = logging.getLogger("adc_edge.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
