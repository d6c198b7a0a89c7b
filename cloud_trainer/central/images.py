"""The test images of a trainer's own data source, labelled by the head's outputs as far as these have names yet."""

from __future__ import annotations

import logging

import numpy as np

from adc_edge.arrays import Int64
from adc_edge.cloud_trainer.classes import HeadClasses
from adc_edge.data.classes import check_order_known, check_positions, composed_names, map_classes, short_list
from adc_edge.data.loader import Batch, Loader
from adc_edge.data.sources import Dataset, check_labels
from adc_edge.storage.bundle import Manifest

logger = logging.getLogger(__name__)


class CentralImages:
    """A fixed choice of test images.

    Args:
        dataset: the data source; its labels stay its own.
        manifest: the bundle's.
        classes: class names of the head, which devices may still extend.
        limit: most images; 0: all.
        allow_broken: accept any number of broken images.

    Raises:
        DataError: the bundle names every class of the head, and the source has others; or its labels are no outputs.
    """

    def __init__(
        self, dataset: Dataset, manifest: Manifest, classes: HeadClasses, limit: int = 0, allow_broken: bool = False
    ) -> None:
        self._test, self._manifest, self._classes = dataset.test, manifest, classes
        self._names, self._named = composed_names(dataset.classes, "the data"), dataset.named
        self._missing: list[str] = []
        if not classes.asked_for:
            map_classes(self._names, classes.names, np.bincount(self._labels, minlength=len(self._names)).tolist())
        elif not self._named:
            check_labels(dataset, manifest.classes)
        self._loader = Loader(dataset.test, manifest.preprocessing, 1, allow_broken=allow_broken)
        self._chosen = np.concatenate(self._loader.sample(limit))

    @property
    def _labels(self) -> Int64:
        return self._test.labels

    def begin(self) -> tuple[Int64, Int64]:
        """Return the indices of the images whose classes the head has, and the output of the head for each of them.

        Raises:
            DataError: nobody knows which outputs the classes are.
        """
        outputs = self._outputs()[self._labels[self._chosen]]
        self._tell_missing(sorted(set(self._labels[self._chosen[outputs < 0]].tolist())))
        known = outputs >= 0
        return self._chosen[known], outputs[known]

    def load(self, indices: Int64) -> tuple[Batch, Int64]:
        """Return these images, and the places in ``indices`` of those that can be read.

        Raises:
            DataError: too many images cannot be read.
        """
        batch = self._loader.plain(indices)
        return batch, np.array(
            [place for place, i in enumerate(indices) if int(i) not in self._loader.broken], np.int64
        )

    def close(self) -> None:
        """End the decoding threads."""
        self._loader.close()

    def _outputs(self) -> Int64:
        """Return the head's output of each class of the source; -1: it has none yet."""
        head, manifest = self._classes.names, self._manifest
        if not head:  # labels are positions
            if manifest.classifier_kept and self._named:
                check_order_known(self._names, manifest.classes)
            outputs = np.arange(len(self._names), dtype=np.int64)
            return np.where(outputs < manifest.classes, outputs, -1)
        if not self._named:
            check_positions(self._names, head)
        return map_classes(self._names, head, [0] * len(self._names))

    def _tell_missing(self, labels: list[int]) -> None:
        missing = [self._names[label] for label in labels]
        if missing and missing != self._missing:
            head = short_list(self._classes.names)
            logger.warning(
                "central evaluation leaves out classes that the head lacks: %s; it has %s", short_list(missing), head
            )
        self._missing = missing
