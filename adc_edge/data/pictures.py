"""The images of a split as pictures that are sent once: their bytes as source files, and as JPEG at the training size.

That is the plainest rival of split learning: its bytes are spent once, not in each epoch.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import msgspec
import numpy as np
import PIL
from PIL import Image

from adc_edge.data.preprocessing import Preprocessing, prepare
from adc_edge.data.sources import Split, file_bytes
from adc_edge.errors import DataError
from adc_edge.machine.threads import give_way

PICTURE_LINES = {
    "own files": "bytes_files",
    "JPEG q90": "bytes_q90",
    "JPEG q75": "bytes_q75",
}  # name -> field of SplitPictures
ENCODER = f"Pillow {PIL.__version__}, 4:2:0, tables not optimised"
_QUALITIES = (90, 75)
_THREADS = 2


class SplitPictures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The images of one split as pictures. Bytes are of ``images`` pictures, scaled up if fewer were measured."""

    images: int  # that can be read
    measured: int
    broken: int  # images that could not be read, of those tried
    bytes_files: int | None  # of the source's own files; None: the source has no file for each image
    bytes_q90: int  # of JPEG at the training size
    bytes_q75: int


class _Sizes(NamedTuple):
    """Bytes of one image as each kind of picture; ``file`` is None where the source has no file for it."""

    file: int | None
    jpeg: tuple[int, ...]


def line_bytes(split: SplitPictures) -> Mapping[str, int]:
    """Return the bytes of a split by name of the line, without the source's files where it has none."""
    sizes = {name: getattr(split, field) for name, field in PICTURE_LINES.items()}
    return {name: size for name, size in sizes.items() if size is not None}


def measured_split(split: Split, preprocessing: Preprocessing, most: int) -> SplitPictures:
    """Measure the images of a split as pictures, without those that cannot be read.

    An image is resized and cropped as for training, before augmentation and normalisation, and encoded by Pillow with
    its defaults (4:2:0, Huffman tables not optimised) at qualities 90 and 75.

    Args:
        split: the images.
        preprocessing: of the model.
        most: images that are measured; of a larger split a fixed random sample of so many is scaled up.

    Raises:
        DataError: none of them can be read.
    """
    total = len(split.labels)
    chosen = np.arange(total)
    if total > most:
        chosen = np.sort(np.random.default_rng(0).permutation(total)[:most])
    with ThreadPoolExecutor(_THREADS, "pictures", initializer=give_way) as pool:
        tried = list(pool.map(lambda index: _sizes(split, int(index), preprocessing), chosen))
    found = [sizes for sizes in tried if sizes is not None]
    if not found:
        raise DataError("no image can be read", "at least one that Pillow can read", "check the files")
    scale = total / len(tried)

    def scaled(values: list[int]) -> int:
        return round(scale * sum(values))

    files = [sizes.file for sizes in found if sizes.file is not None]
    jpegs = [scaled([sizes.jpeg[number] for sizes in found]) for number in range(len(_QUALITIES))]
    whole = scaled(files) if len(files) == len(found) else None
    return SplitPictures(round(scale * len(found)), len(found), len(tried) - len(found), whole, *jpegs)


def _sizes(split: Split, index: int, preprocessing: Preprocessing) -> _Sizes | None:
    """Return the sizes of an image, None if it cannot be read."""
    try:
        image, size = prepare(split.image(index), preprocessing), file_bytes(split, index)
    except Exception:  # any that a source raises; the loader names it
        return None
    return _Sizes(size, tuple(_jpeg_bytes(image, quality) for quality in _QUALITIES))


def _jpeg_bytes(image: Image.Image, quality: int) -> int:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.tell()
