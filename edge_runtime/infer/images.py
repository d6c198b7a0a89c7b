"""The images to judge: files, folders, and a directory that others write to; each one decoded, or with its error."""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from adc_edge.arrays import Float32
from adc_edge.data.decoding import decode_image, reason_of
from adc_edge.data.preprocessing import Preprocessing, normalise, prepare
from adc_edge.data.walking import ClassWalk
from adc_edge.errors import DataError
from adc_edge.machine.threads import give_way

_POLL_S = 0.1  # between two looks at a directory, or five times as long as one takes
_SETTLED_S = 2.0  # a file that has not changed for so long is whole, and what is wrong with it stays wrong
_PNG_END = b"IEND\xaeB`\x82"
_ABSENT = -1  # size of a file that cannot be looked at
_MOST_GONE = 50_000  # images that were answered and have gone whose return is known; about 20 MB
_AHEAD = 3  # images of the next batches that are decoded meanwhile, for each thread

logger = logging.getLogger(__name__)


class FileVersion(NamedTuple):
    """A file as it was found. One that is written again is another image."""

    path: Path
    modified_ns: int
    size: int = 0

    @property
    def is_there(self) -> bool:
        """Whether the file could be looked at. A time of 0 does not tell: clocks of cameras may begin there."""
        return self.size != _ABSENT


class Picture(NamedTuple):
    """An image that was read, or why it could not be."""

    file: FileVersion
    pixels: Float32 | None  # [C, H, W], normalised
    error: str = ""


def read_picture(file: FileVersion, preprocessing: Preprocessing) -> Picture:
    """Return the image of a file as the model takes it, or the reason why there is none."""
    try:
        return Picture(file, normalise(prepare(decode_image(file.path), preprocessing), preprocessing))
    except Exception as error:  # any that a broken file causes
        return Picture(file, None, reason_of(error).removeprefix(f"{file.path.parent.name}/{file.path.name}: "))


def version_of(path: Path) -> FileVersion:
    """Return the present version of a file; one that cannot be looked at is not ``is_there``, and has time 0."""
    try:
        found = os.stat(path)
    except OSError:
        return FileVersion(path, 0, _ABSENT)
    return FileVersion(path, found.st_mtime_ns, found.st_size)


def listed_files(paths: Sequence[Path]) -> list[FileVersion]:
    """Return the files of a list of files and folders; a folder gives all images below it, in the order of their names.

    Raises:
        DataError: a folder cannot be listed.
    """
    found: list[Path] = []
    for path in paths:
        found += ClassWalk().images_below(path)[0] if path.is_dir() else [path]
    return [version_of(path) for path in dict.fromkeys(found)]


class ListedImages:
    """The images of files and folders, decoded by threads ahead of their use.

    Args:
        files: to read.
        preprocessing: the model's.
        workers: decoding threads.
    """

    def __init__(self, files: Sequence[FileVersion], preprocessing: Preprocessing, workers: int) -> None:
        self._files, self._preprocessing, self._workers = files, preprocessing, workers

    def batches(self, size: int, stop: Callable[[], bool]) -> Iterator[list[Picture]]:
        """Yield all of them in batches of ``size``, until ``stop`` returns True."""
        ahead: deque[Future[Picture]] = deque()
        left = iter(self._files)
        pool = ThreadPoolExecutor(self._workers, "decode", initializer=give_way)
        try:
            while not stop():
                while len(ahead) < size + _AHEAD * self._workers and (file := next(left, None)) is not None:
                    ahead.append(pool.submit(read_picture, file, self._preprocessing))
                if not ahead:
                    return
                yield [ahead.popleft().result() for _ in range(min(size, len(ahead)))]
        finally:
            pool.shutdown(cancel_futures=True)


class WatchedImages:
    """The images that appear in a directory and below it.

    A file is read once it has been the same at two looks and ends as a whole JPEG, PNG, WebP or BMP does. Any other
    one, and one that cannot be read, may still be written, so it is read once it has not changed for two seconds.

    Args:
        directory: to watch.
        preprocessing: the model's.
        answered: whether a version of a file has been answered by an earlier start.
    """

    def __init__(self, directory: Path, preprocessing: Preprocessing, answered: Callable[[FileVersion], bool]) -> None:
        self._directory, self._preprocessing, self._answered = directory, preprocessing, answered
        self._done: dict[Path, FileVersion] = {}
        self._gone: OrderedDict[FileVersion, None] = OrderedDict()  # done, and not there any more: a mount may be away
        self._seen: dict[Path, FileVersion] = {}
        self._tried: dict[Path, FileVersion] = {}  # versions that could not be read so far
        self._trouble = ""  # why the directory could not be listed
        self._changed_s: dict[Path, float] = {}  # monotonic time at which a file was last seen to change

    def batches(self, size: int, stop: Callable[[], bool]) -> Iterator[list[Picture]]:
        """Yield whole images as they come, up to ``size`` at once, until ``stop`` returns True."""
        while not stop():
            start = time.monotonic()
            ready = self._look(start)
            looked_s = time.monotonic() - start
            batch: list[Picture] = []
            for file in ready:
                if stop():
                    break
                if (picture := self._read(file)) is not None:
                    batch.append(picture)
                if len(batch) == size:
                    yield batch
                    batch = []
            if batch:
                yield batch
            _pause(max(_POLL_S, 5 * looked_s) - (time.monotonic() - start), stop)

    def _look(self, now: float) -> list[FileVersion]:
        """Return the files that were the same at the last look and are not answered, the oldest first."""
        ready: list[FileVersion] = []
        found: dict[Path, FileVersion] = {}
        if (paths := self._listed()) is None:  # nothing is known: files that come back have been answered
            return ready
        self._part_from(set(self._done).difference(paths))
        for path in paths:
            file = version_of(path)
            if not file.is_there or self._done.get(path) == file:
                continue
            found[path] = file
            if self._seen.get(path) != file:
                self._changed_s[path] = now
            elif path not in self._done and (file in self._gone or self._answered(file)):
                self._finish(file)
            else:
                ready.append(file)
        self._seen = found
        for noted in (self._tried, self._changed_s):
            for path in noted.keys() - found.keys():
                del noted[path]
        return sorted(ready, key=lambda file: (file.modified_ns, file.path))

    def _part_from(self, paths: Iterable[Path]) -> None:
        """Remember images that were answered and have gone, the last _MOST_GONE of them."""
        for path in paths:
            self._gone[self._done.pop(path)] = None
        while len(self._gone) > _MOST_GONE:
            self._gone.popitem(last=False)

    def _listed(self) -> list[Path] | None:
        """Return the files; None: a folder cannot be listed, for example since a mount is away."""
        try:
            paths = ClassWalk().images_below(self._directory)[0]
        except DataError as error:
            if error.received != self._trouble:
                logger.warning("%s", error.received)
            self._trouble = error.received
            return None
        self._trouble = ""
        return paths

    def _read(self, file: FileVersion) -> Picture | None:
        """Return the image of a file; None: it has gone, or may still be written."""
        settled = time.monotonic() - self._changed_s.get(file.path, 0.0) > _SETTLED_S
        if not settled and (self._tried.get(file.path) == file or not _ends_whole(file)):
            return None
        picture = read_picture(file, self._preprocessing)
        if picture.pixels is None:
            if not file.path.exists():
                logger.warning("%s has gone before it could be read", file.path)
                return None
            if not settled:
                self._tried[file.path] = file
                return None
        if version_of(file.path) != file:  # written to meanwhile
            return None
        self._finish(file)
        return picture

    def _finish(self, file: FileVersion) -> None:
        self._done[file.path] = file
        self._gone.pop(file, None)
        self._tried.pop(file.path, None)
        self._changed_s.pop(file.path, None)


def _ends_whole(file: FileVersion) -> bool:
    """Return whether a file has the end of its format; a decoder may do without, so its success tells less."""
    try:
        with file.path.open("rb") as opened:
            head = opened.read(12)
            opened.seek(-min(file.size, 8), os.SEEK_END)
            tail = opened.read(8)
    except OSError:
        return True  # reading it tells why
    if head.startswith(b"RIFF"):
        return int.from_bytes(head[4:8], "little") + 8 <= file.size
    if head.startswith(b"BM"):
        return int.from_bytes(head[2:6], "little") == file.size
    return (head[:4], tail) == (b"\x89PNG", _PNG_END) or (head[:2], tail[-2:]) == (b"\xff\xd8", b"\xff\xd9")


def _pause(seconds: float, stop: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not stop():
        time.sleep(min(left, _POLL_S))
