"""Images that cannot be read: their reasons, the check at the start, and the share of them that ends a run."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from adc_edge.data.decoding import check_header, decode_image, reason_of
from adc_edge.data.listing import FileSplit
from adc_edge.data.sources import Dataset
from adc_edge.errors import DataError

logger = logging.getLogger(__name__)
_SHARE = 0.1
_HEADERS, _DECODED = 20_000, 256  # most files of a split that the check at the start opens, and decodes
_THREADS = 8  # they wait for the disk
_TOLD = {10, 100, 1_000, 10_000, 100_000}


class UnreadableImages:
    """The images of a split that could not be read, with reasons; more than a tenth of those tried end the run.

    One image is always tolerated, and as long as fewer than 256 were tried, so are a tenth of 256 or of the split.

    Args:
        total: images of the split.
        allowed: accept any number.
    """

    def __init__(self, total: int, allowed: bool = False) -> None:
        self.reasons: dict[int, str] = {}
        self._tried, self._allowed = np.zeros(total, bool), allowed
        self._first: DataError | None = None
        self._lock = threading.Lock()

    def __contains__(self, index: int) -> bool:
        return index in self.reasons

    def __len__(self) -> int:
        return len(self.reasons)

    @property
    def first(self) -> str | None:
        """File name and reason of the first one that was met."""
        return None if self._first is None else self._first.received

    def tried(self, index: int, error: Exception | None = None) -> None:
        """Count an image that was read, or keep the ``error`` that it raised. The first one is logged by its name."""
        self._tried[index] = True
        if error is None:
            return
        with self._lock:
            if index in self.reasons:
                return
            fault = _fault(index, error)
            self.reasons[index] = fault.received
            self._first = self._first or fault
            if len(self.reasons) == 1:
                logger.warning("images   %s: it is left out", fault.received)
            elif len(self.reasons) in _TOLD:
                logger.warning("images   %d are unreadable so far", len(self.reasons))

    def check(self) -> None:
        """Raise DataError if too many of the images tried are unreadable."""
        if self._first is not None and not self._allowed:
            tried = int(np.count_nonzero(self._tried))
            _check_share(len(self.reasons), tried, min(len(self._tried), _DECODED), self._first)


def check_images(dataset: Dataset, allow_broken: bool = False) -> None:
    """Log the number of images, and of files that are skipped or unreadable; nothing that a run computes depends on it.

    Raises:
        DataError: see ``summarise_images``.
    """
    text, unreadable = summarise_images(dataset, allow_broken)
    logger.log(logging.WARNING if unreadable else logging.INFO, "data     %s", text)


def summarise_images(dataset: Dataset, allow_broken: bool = False) -> tuple[str, bool]:
    """Return in words the number of images and classes, files skipped or unreadable, and whether any are unreadable.

    Of each split of files up to 20,000 are opened, and 256 decoded.

    Raises:
        DataError: more than a tenth of a split's files looked at are unreadable, unless ``allow_broken``.
    """
    skipped, faults = Counter[str](), list[DataError]()
    for split in (dataset.train, dataset.test):
        if isinstance(split, FileSplit):
            skipped += Counter(split.skipped)
            faults += _look(split.paths, allow_broken)
    parts = [f"{count:,} {kind}" for kind, count in sorted(skipped.items())]
    if faults:
        parts.append(f"{len(faults):,} unreadable (first: {faults[0].received})")
    tail = f"; skipped {', '.join(parts)}" if parts else ""
    train, test = (f"{len(split.labels):,}" for split in dataset[:2])
    classes = f"{len(dataset.classes)} class{'' if len(dataset.classes) == 1 else 'es'}"
    return f"{train} train, {test} test images, {classes}{tail}", bool(faults)


def _look(paths: Sequence[Path], allow_broken: bool) -> list[DataError]:
    """Return the faults of a split's files, in its order."""
    found: dict[int, DataError] = {}
    for read, most in ((check_header, _HEADERS), (decode_image, _DECODED)):
        chosen = np.unique(np.linspace(0, len(paths) - 1, min(most, len(paths))).astype(int)).tolist()
        faults = dict(_faults(read, paths, chosen))
        if faults and not allow_broken:
            _check_share(len(faults), len(chosen), len(chosen), faults[min(faults)])
        found |= faults
    return [found[index] for index in sorted(found)]


def _faults(
    read: Callable[[Path], object], paths: Sequence[Path], chosen: Sequence[int]
) -> Iterator[tuple[int, DataError]]:
    def attempt(index: int) -> DataError | None:
        try:
            read(paths[index])
        except Exception as error:
            return _fault(index, error)
        return None

    with ThreadPoolExecutor(_THREADS, "look") as pool:
        for index, fault in zip(chosen, pool.map(attempt, chosen), strict=True):
            if fault is not None:
                yield index, fault


def _fault(index: int, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    return DataError(f"image {index}: {reason_of(error)}", "an image that Pillow can read", "mend it, or leave it out")


def _check_share(unreadable: int, tried: int, least: int, first: DataError) -> None:
    if unreadable > max(1, _SHARE * max(tried, least)):
        raise DataError(
            f"{unreadable:,} of {tried:,} images are unreadable (first: {first.received})",
            f"at most a tenth; {first.expected}",
            f"{first.remedy}; or take the others alone: --allow-broken",
        )
