"""The labels of a device's run: each class of its data is an output of the head, and stays that one within the run."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from adc_edge.arrays import Int64
from adc_edge.data.classes import append_classes, check_positions, class_counts, composed_names, map_classes, relabel
from adc_edge.data.sources import Dataset, check_labels
from adc_edge.edge_runtime.classes.summary import Images, changes, faults, overview
from adc_edge.errors import CheckpointError
from adc_edge.storage.bundle import Manifest
from adc_edge.storage.run_dir import CLASSES, RunDir

logger = logging.getLogger(__name__)


class KeptClasses(msgspec.Struct, frozen=True):
    """classes.json of a device's run: ``head[i]`` is the class of output ``i``; ``images`` of the device's own data."""

    head: list[str]
    images: dict[str, Images]


class DeviceClasses:
    """Gives both splits of a data set the head's labels, by the names of the classes.

    Args:
        dataset: the data, whose labels are still its own.
        manifest: the bundle's.

    Raises:
        DataError: the bundle's head has no such class, or not enough outputs.
    """

    def __init__(self, dataset: Dataset, manifest: Manifest) -> None:
        self._dataset, self._manifest = dataset, manifest
        self.positions = not dataset.named
        if self.positions:
            check_labels(dataset, manifest.classes)
        self._names = composed_names(dataset.classes, "the data")
        self._images = dict(zip(self._names, class_counts(dataset), strict=True))
        self._known = list(manifest.class_names)  # the head's classes as far as this run knows them
        self._run_dir: RunDir | None = None
        self._kept: KeptClasses | None = None
        self._labelled = False
        if self._complete:
            self._outputs(self._known)
        else:
            self.told()

    @property
    def _complete(self) -> bool:
        return len(self._manifest.class_names) == self._manifest.classes

    def resume(self, run_dir: RunDir, step: int) -> None:
        """Take up the classes of a run that stands at ``step``.

        Raises:
            CheckpointError: its file is damaged.
        """
        self._run_dir = run_dir
        data = run_dir.kept(CLASSES)
        if data is not None:
            try:
                self._kept = msgspec.json.decode(data, type=KeptClasses)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise CheckpointError(
                    f"{CLASSES}: {error}", "the classes as `serve` wrote them", "restore it, or use --fresh"
                ) from None
            self._known = self._kept.head
        elif step:  # a run of 0.6: its labels were positions in this list
            self._known = self._own()

    def told(self) -> list[str]:
        """Return the names to tell a trainer: those that this run knows, then the data's others that have images.

        A trained head without names is told every class: their number must be its own.

        Raises:
            DataError: the head has not enough outputs, or labels without names meet a head with names.
        """
        if self.positions or (self._manifest.classifier_kept and not self._known):
            return self._own()
        return append_classes(self._known, self.present(), self._manifest.classes)

    def present(self) -> list[str]:
        """Return the names of the data's classes that have images."""
        return [name for name, images in self._images.items() if sum(images)]

    def images_of(self, names: Sequence[str]) -> dict[str, int]:
        """Return the number of training images of each of these classes."""
        return {name: self._images.get(name, (0, 0))[0] for name in names}

    def _own(self) -> list[str]:
        """Return every class of the data at its position, unless this run knows another list: as in 0.6."""
        if self.positions:
            check_positions(self._names, self._known)
        return append_classes(self._known, self._names, self._manifest.classes)

    def take(self, head: Sequence[str]) -> None:
        """Label the data by the head's classes; the first time in a process this is also logged.

        Raises:
            DataError: the head lacks a class of the data.
            CheckpointError: the head has a class of this run at another output.
            OSError: the classes cannot be kept.
        """
        self._check_same(head)
        outputs = self._outputs(head)
        kept = KeptClasses(list(head), self._images)
        if self._run_dir is not None and kept != self._kept:
            self._run_dir.keep(CLASSES, msgspec.json.encode(kept))
        if not self._labelled:
            relabel(self._dataset, outputs)
            self._log(head)
        self._known, self._kept, self._labelled = kept.head, kept, True

    def take_own(self) -> None:
        """Label the data without a trainer's list: by the bundle's names, or as a trainer of 0.6 expects it."""
        if not self._complete and not self._labelled:
            logger.warning(
                "this trainer keeps no class names (it is older than 0.7): labels are positions in this device's list"
            )
        self.take(self._known if self._complete else self._own())

    def _outputs(self, head: Sequence[str]) -> Int64:
        if self.positions:
            check_positions(self._names, head)
        return map_classes(self._names, head, [sum(images) for images in self._images.values()])

    def _check_same(self, head: Sequence[str]) -> None:
        """Raise CheckpointError if a class of the data would train another output than before in this run."""
        before = {name: index for index, name in enumerate(self._kept.head if self._kept else self._known)}
        now = {name: index for index, name in enumerate(head)}
        for name in self._names:
            if name in before and now.get(name) != before[name]:
                raise CheckpointError(
                    f"the trainer's head has the class {name!r} at output {now.get(name)}",
                    f"output {before[name]}, which it has trained in this run",
                    "start the trainer with the --run directory it had, or start both sides over with --fresh",
                )

    def _log(self, head: Sequence[str]) -> None:
        logger.info(overview(head, self._images))
        for fault in faults(self._images):
            logger.warning(fault)
        for change in changes(self._kept.images, self._images) if self._kept else []:
            logger.warning(change)
