"""Images for a calibration: a random sample of the train split for ranges, of the test split for quality."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adc_edge.arrays import Float32
from adc_edge.data.loader import Batch, Loader
from adc_edge.data.preprocessing import Preprocessing
from adc_edge.data.sources import Split
from adc_edge.errors import DataError

_CHUNK = 8  # images that are decoded and held at once
_BROKEN_SHARE = 0.1


class CalibrationImages:
    """A random sample of a split, not augmented; broken images are replaced and counted.

    Args:
        split: the images.
        preprocessing: the model's preprocessing.
        images: size of the sample.
        seed: random seed of the choice.

    Raises:
        DataError: the split has fewer images; while it is read: more than a tenth of ``images`` are broken.
    """

    def __init__(self, split: Split, preprocessing: Preprocessing, images: int, seed: int) -> None:
        total = len(split.labels)
        if total < images:
            raise DataError(f"{total} training images", f"the {images} of --images", f"--images {total}, or add images")
        self.broken = 0
        self._split, self._preprocessing, self._images, self._seed = split, preprocessing, images, seed

    def __iter__(self) -> Iterator[Float32]:
        """Yield batches ``[b, C, H, W]`` of up to 8 images."""
        order = np.random.default_rng(self._seed).permutation(len(self._split.labels))
        loader = Loader(self._split, self._preprocessing, min(_CHUNK, len(order)))
        try:
            left, position = self._images, 0
            while left:
                chunk = order[position : position + min(_CHUNK, left)]
                images = loader.plain(chunk).images
                self.broken = len(loader.broken)
                self._check_broken(position + len(chunk), is_end=len(chunk) == 0)
                left, position = left - len(images), position + len(chunk)
                yield images
        finally:
            loader.close()

    def _check_broken(self, seen: int, is_end: bool) -> None:
        if is_end or self.broken > max(1, _BROKEN_SHARE * self._images):
            raise DataError(
                f"{self.broken} of {seen} training images are broken",
                f"at most a tenth of the {self._images} that are wanted, and enough to replace them",
                "check the files and their format, or lower --images",
            )


def test_batches(split: Split, preprocessing: Preprocessing, limit: int, batch_size: int) -> Iterator[Batch]:
    """Yield up to ``limit`` images (0: all) in batches, the same ones each time; broken images are left out.

    Raises:
        DataError: none of them can be read.
    """
    loader = Loader(split, preprocessing, min(batch_size, len(split.labels)))
    seen = 0
    try:
        for indices in loader.sample(limit):
            batch = loader.plain(indices)
            seen += len(batch.labels)
            if len(batch.labels):
                yield batch
    finally:
        loader.close()
    if not seen:
        raise DataError(
            f"all {len(loader.broken)} test images are broken",
            "at least one that Pillow can read",
            "check the files and their format",
        )
