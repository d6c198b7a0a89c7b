"""Images for a calibration: a random sample of the train split for ranges, of the test split for quality."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adc_edge.arrays import Float32
from adc_edge.data.loader import Loader
from adc_edge.data.preprocessing import Preprocessing
from adc_edge.data.sources import Split
from adc_edge.errors import DataError

_CHUNK = 8  # images that are decoded and held at once


class CalibrationImages:
    """A random sample of a split, not augmented; broken images are replaced and counted.

    Args:
        split: the images.
        preprocessing: the model's preprocessing.
        images: size of the sample.
        seed: random seed of the choice.
        allow_broken: accept any number of broken images.

    Raises:
        DataError: the split has fewer images; while it is read: too many of them are broken.
    """

    def __init__(
        self, split: Split, preprocessing: Preprocessing, images: int, seed: int, allow_broken: bool = False
    ) -> None:
        total = len(split.labels)
        if total < images:
            raise DataError(f"{total} training images", f"the {images} of --images", f"--images {total}, or add images")
        self.broken = 0
        self._split, self._preprocessing, self._images, self._seed = split, preprocessing, images, seed
        self._allow_broken = allow_broken

    def __iter__(self) -> Iterator[Float32]:
        """Yield batches ``[b, C, H, W]`` of up to 8 images."""
        order = np.random.default_rng(self._seed).permutation(len(self._split.labels))
        size = min(_CHUNK, len(order))
        loader = Loader(self._split, self._preprocessing, size, allow_broken=self._allow_broken)
        try:
            left, position = self._images, 0
            while left:
                chunk = order[position : position + min(_CHUNK, left)]
                images = loader.plain(chunk).images
                self.broken = len(loader.broken)
                if not len(chunk):
                    raise DataError(
                        f"{self.broken} of {position} training images are broken (first: {loader.broken.first})",
                        f"enough to replace them: {self._images} are wanted",
                        "check the files and their format, or lower --images",
                    )
                left, position = left - len(images), position + len(chunk)
                yield images
        finally:
            loader.close()
