"""Some images of a data set: a study's fixed random sample, or those of one device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from adc_edge.arrays import Int64
from adc_edge.data.sources import Dataset, file_bytes

if TYPE_CHECKING:  # a study's records name its fleets, whose partition takes images from here
    from adc_edge.evaluation.study.records import Study


def sampled(dataset: Dataset, study: Study) -> Dataset:
    """Take the study's fixed random sample of a data set."""
    return Dataset(
        _sample(dataset.train, study.train_images), _sample(dataset.test, study.test_images), dataset.classes
    )


class SomeImages:
    """Some images of a split."""

    def __init__(self, split: Any, chosen: Int64) -> None:
        self._split, self._chosen = split, chosen
        self.labels = split.labels[chosen]

    def image(self, index: int) -> Any:
        """Return the image at ``index`` of those chosen."""
        return self._split.image(int(self._chosen[index]))

    def file_bytes(self, index: int) -> int | None:
        """Return the size of its file, as ``adc_edge.data.sources.file_bytes`` does."""
        return file_bytes(self._split, int(self._chosen[index]))


def _sample(split: Any, images: int) -> Any:
    if not 0 < images < len(split.labels):
        return split
    return SomeImages(split, np.sort(np.random.default_rng(0).permutation(len(split.labels))[:images]))
